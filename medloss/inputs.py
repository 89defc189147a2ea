"""What every loss reads: logits, target, mask, spacing; checked, once."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from medloss.kernels.sum_spec import sum_type
from medloss.spacing import UnknownSpacingError

# Voxels; torch works on so many with one thread.
_BLOCK = 1 << 15


class Mode(Enum):
    """What a voxel is: one class out of C, or C yes/no answers (from logits, or as probabilities)."""

    CATEGORICAL = "softmax"
    BERNOULLI = "sigmoid"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class LossInputs:
    """Checked inputs of a loss, as they came: nothing of their size is made unless a method is called.

    Attributes:
        logits: `[B, C, *spatial]`, in any floating type; probabilities in `Mode.PROBABILITIES`.
        target: an index map `[B, 1, *spatial]`, or one map per class `[B, C, *spatial]`, in any type.
        mask: `[B, 1, *spatial]` bool, True where a voxel counts; None when all do. Elsewhere logits and target may
            be anything, NaN included.
        mode: how `logits` become probabilities.
        include_background: whether class 0 belongs to the sums.
        class_weight: `[1]` or `[C']`; None for 1.
        item_spacing: mm, one tuple per item; the error instead where it is unknown, for the losses that ask for it.
        distance_map: `[B, C or C', *spatial]`, the target's signed distance in mm; None to compute it.
        skeleton_map: `[B, C or C', *spatial]`, tubes around the target's centre lines; None to compute them.
        instance_map: `[B, C or C', *spatial]`, numbers of the target's nearest component; None to compute them.
        ignore_index: the label, in the target's numbers, whose voxels the mask leaves out.
    """

    logits: Tensor
    target: Tensor
    mask: Tensor | None
    mode: Mode
    include_background: bool
    class_weight: Tensor | None
    item_spacing: list[tuple[float, ...]] | UnknownSpacingError
    distance_map: Tensor | None = None
    skeleton_map: Tensor | None = None
    instance_map: Tensor | None = None
    ignore_index: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type in which sums and maps are kept: float32, or float64 for float64 logits."""
        return sum_type(self.logits)

    @property
    def spacing(self) -> list[tuple[float, ...]]:
        """The voxels' spacing in mm, one tuple per item.

        Raises:
            UnknownSpacingError: none was passed, and that of the target does not fit its axes.
        """
        if isinstance(self.item_spacing, UnknownSpacingError):
            raise self.item_spacing
        return self.item_spacing

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """The spatial axes of `logits`: (2, 3) or (2, 3, 4)."""
        return tuple(range(2, self.logits.ndim))

    @property
    def categorical(self) -> bool:
        """Whether a voxel is one class out of C."""
        return self.mode is Mode.CATEGORICAL

    def probabilities(self) -> Tensor:
        """p of all C classes, `[B, C, *spatial]`; at masked voxels the target, without gradient."""
        logits = self.logits.to(self.dtype)
        if self.mask is not None:
            logits = torch.where(self.mask, logits, 0.0)
        if self.mode is Mode.CATEGORICAL:
            p = torch.softmax(logits, 1)
        else:
            p = torch.sigmoid(logits) if self.mode is Mode.BERNOULLI else logits
        return p if self.mask is None else torch.where(self.mask, p, self.target_maps())

    def target_maps(self) -> Tensor:
        """y of all C classes, `[B, C, *spatial]`, 0 where the label is none of them or ignored; masked voxels, too."""
        target = self.target
        if target.shape[1] != self.logits.shape[1]:
            return self.target_masks().to(self.dtype)
        maps = target.to(self.dtype)
        if self.ignore_index is not None:
            maps = torch.where(target == self.ignore_index, 0.0, maps)
        if self.mask is not None:
            # What a mask hides may be NaN, or a label to ignore.
            maps = torch.where(self.mask | ((maps >= 0) & (maps <= 1)), maps, 0.0)
        return maps

    def target_masks(self) -> Tensor:
        """y > 0.5 of all C classes, `[B, C, *spatial]` bool, as `target_maps`."""
        channels = self.logits.shape[1]
        if self.target.shape[1] == channels:
            return self.target_maps() > 0.5
        masks = torch.empty(self.logits.shape, dtype=torch.bool, device=self.target.device)
        labels = self.target[:, 0]
        if channels > 128 and labels.dtype in (torch.uint8, torch.int8):
            labels = labels.short()  # compared in its type, 259 would be 3
        for c in range(channels):
            masks[:, c] = labels == c
        if self.ignore_index is not None and 0 <= self.ignore_index < channels:
            masks[:, self.ignore_index] = False
        return masks

    def hard_prediction(self) -> Tensor:
        """q of all C classes, bool: the first argmax (categorical), or p > 0.5; the target where masked."""
        with torch.no_grad():
            if self.mode is Mode.CATEGORICAL:
                winner = _first_largest(self.logits)
                classes = torch.arange(self.logits.shape[1], device=winner.device)
                q = winner == classes.view(1, -1, *(1,) * len(self.spatial_axes))
            else:
                q = self.logits > (0 if self.mode is Mode.BERNOULLI else 0.5)
            return q if self.mask is None else torch.where(self.mask, q, self.target_masks())

    def included(self, maps: Tensor) -> Tensor:
        """The C' channels that count: all, or all but class 0."""
        return maps if self.include_background else maps[:, 1:]

    def counted(self, maps: Tensor) -> Tensor:
        """`maps` with 0 at masked voxels. It selects, never multiplies: NaN under a mask stays there."""
        return maps if self.mask is None else torch.where(self.mask, maps, 0.0)

    def counts(self) -> Tensor:
        """Number of voxels that count, `[B, 1]`."""
        if self.mask is None:
            voxels = self.logits[0, 0].numel()
            return self.logits.new_full((self.logits.shape[0], 1), voxels, dtype=self.dtype)
        return self.mask.sum(self.spatial_axes).to(self.dtype)


def _first_largest(logits: Tensor) -> Tensor:
    """`logits.argmax(1, keepdim=True)`."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return logits.argmax(1, keepdim=True)
    # On a CPU torch's argmax is slow along any axis but the last. Class by class, in blocks of the cache's size.
    lines = logits.flatten(2)
    winner = torch.zeros(lines.shape[0], 1, lines.shape[2], dtype=torch.int16, device="cpu")
    for item in range(lines.shape[0]):
        for z, out in zip(lines[item].split(_BLOCK, 1), winner[item, 0].split(_BLOCK), strict=True):
            best = z[0].clone()
            for c in range(1, len(z)):
                better = (z[c] <= best).logical_not_()  # "not at most": NaN wins, as in torch
                torch.maximum(out, better * torch.tensor(c, dtype=out.dtype, device="cpu"), out=out)
                torch.maximum(best, z[c], out=best)
    return winner.view(logits.shape[0], 1, *logits.shape[2:])
