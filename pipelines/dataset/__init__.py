"""Data sets: manifests, their checks, and the phantom that the project makes itself."""
