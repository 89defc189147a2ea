"""What every loss reads: logits, target, mask, spacing; checked, once."""

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from medloss.kernels import dispatch, self_check
from medloss.kernels.operators import logit_lines
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import sum_type
from medloss.spacing import UnknownSpacingError

# Voxels; torch works on so many with one thread.
_BLOCK = 1 << 15
# Logits of which the probability is exactly 0, and finite: an infinity times 0 would be NaN.
_NO_SOFTMAX, _NO_SIGMOID = -1e30, -1e4


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
        labelled: `[B, C]` bool, False for the item-class pairs that leave the sums and means, in whose `logits` and
            `target` the class has probability 0 and no voxel; None when all are labelled.
        voxel_weight: w, `[B, 1, *spatial]` in the type of the sums, without gradient, 0 at masked voxels; None for 1.
            A loss that does not read it through `voxel_sums` must multiply its voxels' terms itself.
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
    labelled: Tensor | None = None
    voxel_weight: Tensor | None = None

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
        # Of channels-last logits torch's softmax is slower than a copy, and what reads its maps wants them one by one.
        logits = self.logits.to(self.dtype, memory_format=torch.contiguous_format)
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

    def smoothed(self, share: float) -> "LossInputs":
        """The inputs with a smoothed target, one map per class: (1 - e) y + e / C, with e = `share`.

        C is the number of the item's labelled classes; 2 for independent channels.
        """
        if not share:
            return self
        if self.labelled is None:
            added: Tensor | float = share / (self.logits.shape[1] if self.categorical else 2)
        else:
            number = self.labelled.sum(1, keepdim=True) if self.categorical else 2
            added = self.labelled * (share / number)
            added = _over(added, self.logits).to(self.dtype)
        return replace(self, target=self.target_maps() * (1 - share) + added, ignore_index=None)

    def target_masks(self) -> Tensor:
        """y > 0.5 of all C classes, `[B, C, *spatial]` bool, as `target_maps`."""
        channels = self.logits.shape[1]
        if self.target.shape[1] == channels:
            if self.mask is None and self.target.dtype in (torch.bool, torch.uint8):
                # Ten times as fast as a comparison. A copy also of a bool target: the masks may be written to.
                return self.target.to(torch.bool, copy=True)
            return self.target_maps() > 0.5
        if dispatch.direct(self.logits, "labels"):
            from medloss.kernels.numba.labels import class_masks

            return class_masks(self.target, channels, self.ignore_index)
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

    def hard_labels(self) -> tuple[Tensor, Tensor]:
        """`hard_prediction` and `target_masks` as one class per voxel, int16 `[B, 1, *spatial]`; -1 for none.

        For categorical inputs with an index map.
        """
        with torch.no_grad():
            target, channels = self.target, self.logits.shape[1]
            if dispatch.direct(self.logits, "labels"):
                from medloss.kernels.numba.labels import target_labels

                y = target_labels(target, channels, self.ignore_index)
                q = _first_largest(self.logits)
                return (q if self.mask is None else torch.where(self.mask, q, y)), y
            if not target.is_floating_point() and target.element_size() < 4:
                target = target.to(torch.int32)  # torch takes a number for one of the tensor's type: 300 is 44 there
            y = target.to(torch.int16)
            # Compared in the wider type: what int16 cannot hold would be another label there.
            valid = (target >= 0) & (target < channels)
            if target.is_floating_point():
                valid &= target == y
            if self.ignore_index is not None:
                valid &= target != self.ignore_index
            y = torch.where(valid, y, -1)
            q = _first_largest(self.logits).to(torch.int16)
            return (q if self.mask is None else torch.where(self.mask, q, y)), y

    def included(self, maps: Tensor) -> Tensor:
        """The C' channels that count: all, or all but class 0."""
        return maps if self.include_background else maps[:, 1:]

    def counted(self, maps: Tensor) -> Tensor:
        """`maps` with 0 at masked voxels. It selects, never multiplies: NaN under a mask stays there."""
        return maps if self.mask is None else torch.where(self.mask, maps, 0.0)

    def counts(self) -> Tensor:
        """Number of voxels that count, `[B, 1]`."""
        if self.mask is None:
            voxels = math.prod(self.logits.shape[2:])
            return self.logits.new_full((self.logits.shape[0], 1), voxels, dtype=self.dtype)
        return self.mask.sum(self.spatial_axes).to(self.dtype)

    def total_count(self) -> Tensor | int:
        """Number of voxels that count in all items, at least 1."""
        if self.mask is None:
            return max(self.logits.shape[0] * math.prod(self.logits.shape[2:]), 1)
        return self.counts().sum().clamp(min=1)

    def class_counts(self, *, weighted: bool = False) -> Tensor:
        """Number of voxels that count for a class, `[B, C]`: 0 in items that do not label it.

        Args:
            weighted: a voxel counts `voxel_weight` times.
        """
        by_weight = weighted and self.voxel_weight is not None
        counts = self.voxel_weight.sum(self.spatial_axes) if by_weight else self.counts()  # type: ignore[union-attr]
        counts = counts.expand(-1, self.logits.shape[1])
        return counts if self.labelled is None else counts * self.labelled

    def times_voxel_weight(self, maps: Tensor) -> Tensor:
        """`maps` times w."""
        return maps if self.voxel_weight is None else maps * self.voxel_weight

    def pairs(self) -> Tensor | None:
        """Which item-class pairs count, `[B, C']` bool; None when all do."""
        return None if self.labelled is None else self.included(self.labelled)

    def labelled_only(self, maps: Tensor) -> Tensor:
        """`[B, C', *any]` with 0 in the item-class pairs that do not count. It selects, as `counted`."""
        pairs = self.pairs()
        return maps if pairs is None else torch.where(_over(pairs, maps), maps, 0.0)


def without_unlabelled(logits: Tensor, labelled: Tensor, mask: Tensor | None, mode: Mode) -> Tensor:
    """Logits in which a class has probability 0 in the items that do not label it; differentiable.

    Categorical: its probability goes to the background, ln(p_0 + sum p) by logsumexp.

    Args:
        logits: `[B, C, *spatial]`, or probabilities.
        labelled: `[B, C]` bool, in categorical mode True for class 0.
        mask: `[B, 1, *spatial]` bool, True where a voxel counts.
        mode: how they become probabilities.

    Returns:
        Logits of the same shape; float32 (float64 for float64) in categorical mode.
    """
    kept = _over(labelled, logits)
    if mode is not Mode.CATEGORICAL:
        return torch.where(kept, logits, 0.0 if mode is Mode.PROBABILITIES else _NO_SIGMOID)
    logits = logits.to(sum_type(logits))
    if mask is not None:
        logits = torch.where(mask, logits, 0.0)  # NaN there would come back through the gradient of logsumexp
    foreground = kept.index_fill(1, torch.zeros(1, dtype=torch.long, device=kept.device), False)
    background = torch.where(foreground, -math.inf, logits).logsumexp(1, keepdim=True)
    return torch.cat([background, torch.where(kept[:, 1:], logits[:, 1:], _NO_SOFTMAX)], 1)


def _over(pairs: Tensor, maps: Tensor) -> Tensor:
    """`[B, C]` to broadcast over maps `[B, C, ...]`."""
    return pairs.view(*pairs.shape, *(1,) * (maps.ndim - 2))


def _first_largest(logits: Tensor) -> Tensor:
    """`logits.argmax(1, keepdim=True)`."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return logits.argmax(1, keepdim=True)
    if dispatch.direct(logits, "labels"):
        from medloss.kernels.numba.labels import first_largest

        return first_largest(logit_lines(logits)).view(logits.shape[0], 1, *logits.shape[2:])
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


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Equal logits and a NaN, in either layout; a target that has labels of no class and one to ignore."""
    logits, target, *_ = small_case("softmax", (5, 7, 9), device, dtype)
    logits[0, 1, 2], logits[1, 2, 0, 0] = logits[0, 2, 2], torch.nan
    layouts = (logits, logits.contiguous(memory_format=torch.channels_last_3d))
    target = target - 1 + 3 * (target == 2)
    labels = LossInputs(logits, target, None, Mode.CATEGORICAL, True, None, [(1.0, 1.0, 1.0)] * 2, ignore_index=1)
    results = [*(_first_largest(z) for z in layouts), labels.hard_labels()[1], labels.target_masks()]
    return [result.to(sum_type(logits)) for result in results]


self_check.register("labels", _small_case)
