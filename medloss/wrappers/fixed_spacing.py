"""A loss with a fixed spacing, for trainers that pass none."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from medloss.call_arguments import CallArguments, tensors_of
from medloss.checks import check_axes, checked_tensors
from medloss.create import call_loss, pass_epoch_on
from medloss.errors import InputError
from medloss.spacing import resolve_spacing, scaled_spacing


class FixedSpacing(nn.Module):
    r"""A loss with the spacing that all training volumes were brought to: $L(z, y;\ s\,n/m)$.

    MONAI's Auto3DSeg, for one, makes plain tensors of its labels before it calls the loss, and the spacing is lost:
    distances would be in voxels. $s$ is `spacing` (mm), $n$ `patch_size`, $m$ the grid that the loss is called on: a
    coarser output of deep supervision covers the same millimetres with fewer voxels.

    Args:
        loss: the loss, ours or not.
        spacing: mm per axis, in the order of the array's axes.
        patch_size: voxels per axis of the grid that has this spacing; None: whatever grid comes has it.

    Raises:
        InputError: a spacing or patch that is not positive, or of different lengths; a call with another number of
            axes, or a mask for a loss from elsewhere that takes none.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> label[..., 2:6, 2:6, 2:6] = 1
        >>> logits = torch.zeros(1, 2, 8, 8, 8)
        >>> loss = medloss.HausdorffDTLoss(softmax=True, to_onehot_y=True)
        >>> fixed = medloss.FixedSpacing(loss, spacing=[3.0, 0.8, 0.8])
        >>> bool(fixed(logits, label) == loss(logits, label, spacing=(3.0, 0.8, 0.8)))
        True
    """

    def __init__(self, loss: nn.Module, spacing: Sequence[float], patch_size: Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(spacing, Sequence):
            raise InputError(f"spacing: got {spacing!r}; expected one number (mm) per axis")
        (self.spacing,) = resolve_spacing(spacing, None, 1, len(spacing))
        if patch_size is not None and (len(patch_size) != len(spacing) or not all(size >= 1 for size in patch_size)):
            raise InputError(
                f"patch_size: got {list(patch_size)}; expected {len(spacing)} numbers of voxels, as spacing"
            )
        self.loss = loss
        self.patch_size = None if patch_size is None else tuple(patch_size)

    def forward(
        self,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        *,
        input: Tensor | None = None,
        **given: Unpack[CallArguments],
    ) -> Tensor:
        """The loss; see `SegmentationLoss.forward` for the arguments. `spacing` is ignored: the fixed one holds."""
        logits, target = checked_tensors(logits, target, input=input, **tensors_of(given))
        check_axes(logits, target)
        grid = tuple(logits.shape[2:])
        if len(grid) != len(self.spacing):
            raise InputError(f"logits: got {len(grid)} spatial axes {grid}; expected {len(self.spacing)}, as spacing")
        whole = self.patch_size or grid
        given["spacing"] = scaled_spacing(self.spacing, whole, grid)
        return call_loss(self.loss, logits, target, **given)

    def start_epoch(self, epoch: int) -> None:
        """Update the weights where the loss is a `CombinedLoss`; call it before the epoch's first batch."""
        pass_epoch_on(self.loss, epoch)
