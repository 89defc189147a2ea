"""Prediction of label maps for new images."""
