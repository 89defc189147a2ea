"""Boundary-based losses: they read how far a wrong voxel lies from the border."""
