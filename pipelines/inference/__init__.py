"""Label maps of new images, by a trained model."""
