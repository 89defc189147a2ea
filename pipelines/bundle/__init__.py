"""The repository as a MONAI bundle."""
