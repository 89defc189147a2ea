"""Evaluation of segmentations: metrics per case and class, in mm."""
