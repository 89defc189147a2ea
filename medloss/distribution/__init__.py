"""Distribution-based losses: cross entropy a voxel, times a weight map."""
