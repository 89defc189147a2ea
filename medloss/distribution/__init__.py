"""Distribution-based losses: cross entropy per voxel, times a weight map."""
