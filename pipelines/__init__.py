"""Training, comparison and reports for segmentation losses, on NIfTI data sets."""
