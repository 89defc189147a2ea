"""What a segmentation is worth: measures by case and class, in mm."""
