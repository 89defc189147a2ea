"""The passes over voxels that the losses stand on: plain torch, numba (CPU), Triton (GPU); `choice` picks one."""

from medloss.kernels.choice import available as available
from medloss.kernels.choice import in_use as in_use
from medloss.kernels.choice import use as use
