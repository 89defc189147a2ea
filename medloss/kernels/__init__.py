"""The passes over voxels that the losses stand on: plain torch, numba (CPU), Triton (GPU); `choice` picks one."""

from medloss.kernels.dispatch import available as available
from medloss.kernels.dispatch import in_use as in_use
from medloss.kernels.dispatch import use as use
