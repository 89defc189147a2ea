"""The kernel set for the CPU: passes compiled by numba, distances, erosions, balls and windows."""

from medloss.kernels.numba.sums import entropy_map as entropy_map
from medloss.kernels.numba.sums import preferred as preferred
from medloss.kernels.numba.sums import supports as supports
from medloss.kernels.numba.sums import voxel_sums as voxel_sums
from medloss.kernels.numba.sums import voxel_sums_backward as voxel_sums_backward
