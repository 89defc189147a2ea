"""The passes over voxels that the losses build on: plain torch, numba (CPU), Triton (GPU); `dispatch` selects one."""

from medloss.kernels.dispatch import available as available
from medloss.kernels.dispatch import check as check
from medloss.kernels.dispatch import in_use as in_use
from medloss.kernels.dispatch import use as use
