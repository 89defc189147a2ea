"""The kernel set for GPUs, and exact distance maps there."""

from medloss.kernels.triton.sums import entropy_map as entropy_map
from medloss.kernels.triton.sums import preferred as preferred
from medloss.kernels.triton.sums import supports as supports
from medloss.kernels.triton.sums import voxel_sums as voxel_sums
from medloss.kernels.triton.sums import voxel_sums_backward as voxel_sums_backward
