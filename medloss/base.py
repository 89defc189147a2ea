"""`SegmentationLoss`: checks, targets, mask, spacing and type, once for every loss."""

import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from medloss.buffers import UncastBuffers
from medloss.call_arguments import TARGET_MAPS, CallArguments, tensors_of
from medloss.checks import (
    as_signed,
    check_labelled_classes,
    check_maps,
    check_probabilities,
    check_shapes,
    check_unlabelled,
    check_values,
    check_voxel_weight,
    check_weights,
    checked_tensors,
)
from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode, without_unlabelled
from medloss.kernels.sum_spec import sum_type
from medloss.presets import preset_arguments
from medloss.spacing import UnknownSpacingError, is_meta_tensor, resolve_spacing


class CommonArguments(TypedDict, total=False):
    """The keyword arguments that every loss takes; `SegmentationLoss` documents them."""

    include_background: bool
    to_onehot_y: bool
    sigmoid: bool
    softmax: bool
    other_act: Callable[[Tensor], Tensor] | None
    reduction: str
    batch: bool
    weight: Sequence[float] | float | Tensor | None
    ignore_index: int | None
    validate: bool


class SegmentationLoss(UncastBuffers, _Loss):
    """What all losses share; a loss is a subclass with a formula in `compute`.

    Args:
        include_background: whether class 0 belongs to the sums. With one channel it always does.
        to_onehot_y: accepted for MONAI's sake: an index target `[B, 1, *spatial]` is known by its shape.
        sigmoid: logits of independent channels.
        softmax: logits, one class out of C >= 2.
        other_act: a callable that makes probabilities of the network's output, of independent channels.
            None of the three: probabilities are passed.
        reduction: `mean`, `sum` or `none`. Voxelwise losses average over all counted voxels, the others over
            items and classes; `none` gives `[B, 1 or C', *spatial]` (voxelwise) or `[B, C', 1, 1(, 1)]`.
        batch: sum regions over the batch first; losses without regions ignore it. In data-parallel training
            (torch.distributed initialised, logits that require a gradient) the batch is that of all ranks, whose
            calls must match, and DDP's mean of the gradients is the gradient of the global batch. Without a
            gradient (validation) it is that of the rank alone, since ranks may then make different numbers of calls.
        weight: one number, or one per class that is left (C'); multiplies the class's term.
        ignore_index: a label whose voxels are masked; for index targets.
        validate: check the target's values (a GPU has to wait for that). Shapes are always checked.

    Raises:
        InputError: arguments that exclude each other, an unknown reduction, negative weights.
    """

    #: Whether targets between 0 and 1 have a meaning.
    soft_targets: ClassVar[bool] = True
    #: Whether the value depends on the voxels' spacing.
    uses_spacing: ClassVar[bool] = False
    #: The maps of the target that it reads if they are given, by the names of the call's arguments.
    reads_maps: tuple[str, ...] = ()
    #: Whether a voxel's neighbours matter at any spacing.
    looks_around: ClassVar[bool] = False
    #: Whether it has a meaning for classes that exclude each other only.
    categorical_only: ClassVar[bool] = False

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        batch: bool = False,
        weight: Sequence[float] | float | Tensor | None = None,
        ignore_index: int | None = None,
        validate: bool = True,
    ) -> None:
        # MONAI's LossReduction is an enumeration whose values are these words.
        reduction = str(getattr(reduction, "value", reduction))
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"reduction: got '{reduction}'; expected 'mean', 'sum' or 'none'")
        if other_act is not None and not callable(other_act):
            raise InputError(f"other_act: got {type(other_act).__name__}; expected a callable or None")
        if sigmoid + softmax + (other_act is not None) > 1:
            raise InputError("sigmoid, softmax, other_act: more than one was given; expected one of them")
        if self.categorical_only and not softmax:
            raise InputError("softmax: this loss is of classes that exclude each other; expected softmax=True")
        super().__init__(reduction=reduction)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.batch = batch
        self.ignore_index = ignore_index
        self.validate = validate
        self.register_buffer("class_weight", None if weight is None else _class_weight(weight))

    @classmethod
    def preset(cls, name: str, **arguments: Any) -> Self:
        """The loss with the arguments that it has elsewhere; `medloss losses NAME` lists them.

        Args:
            name: `monai`, `nnunet`, `nnunet_nosmooth` or `survey`, as `medloss.presets.PRESETS` has them.
            **arguments: those of the loss; they come before the preset's.

        Raises:
            InputError: there is no such preset, or it does not have the loss.

        Example:
            >>> import medloss
            >>> medloss.DiceLoss.preset("monai", softmax=True).smooth_nr
            1e-05
        """
        from medloss.loss_entry import registered_name  # not above: the registry's entries are of this class

        chosen = preset_arguments(name, registered_name(cls) or cls.__name__, softmax=bool(arguments.get("softmax")))
        return cls(**(chosen | arguments))

    @abstractmethod
    def compute(self, inputs: LossInputs) -> Tensor:
        """The loss's formula, reduced by `self.reduction`."""

    def forward(
        self,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        *,
        input: Tensor | None = None,
        **given: Unpack[CallArguments],
    ) -> Tensor:
        """Compute the loss.

        All arguments but the first three are `CallArguments`.

        Args:
            logits: the network's output, `[B, C, *spatial]`, 2D or 3D.
            target: an index map `[B, 1, *spatial]` of any integer type (or whole numbers in a float tensor),
                or one map per class `[B, C, *spatial]`.
            input: MONAI's name for `logits`, for calls by keyword.
            mask: `[B, 1, *spatial]`, nonzero where a voxel counts.
            spacing: mm, in the order of the array's axes; one for all or one per item, also as `default_collate`
                makes it of tuples: a list of one tensor per axis. None: the target's when it is a `MetaTensor`,
                else 1. Losses without distances ignore it.
            distance_map: `[B, C, *spatial]`, the target's signed distance map in mm, from the whole volume.
                Losses that have no use for it ignore it.
            skeleton_map: `[B, C, *spatial]`, the target's tubes around its centre lines (`medloss.maps.SkeletonMapd`);
                likewise.
            instance_map: `[B, C, *spatial]`, the number of the target's nearest component
                (`medloss.maps.InstanceMapd`); likewise.
            labelled_classes: `[B, C]` bool, for items in which not every class was annotated (marginal loss, Shi et al.
                2020, arXiv 2007.03868); False where the item's target would be background whatever is there. Softmax:
                class 0 always counts; the probabilities of an item's unlabelled classes are added to the background's,
                and these classes leave the item's sums and means. Independent channels: the channel leaves them. The
                mean is over the item-class pairs that are left; voxelwise losses with softmax average over all counted
                voxels as ever. With `batch=True` a class is summed over the items that label it.
            voxel_weight: `[B, 1, *spatial]`, numbers w >= 0, without gradient. In sums over an item and class (region
                losses, and the region part of compound ones) a voxel counts w times: 0 and 1 are a mask, and 2 is the
                voxel twice. Elsewhere w multiplies the voxel's term, and the number of voxels in a mean, distance maps,
                windows, erosions, balls and class weights are those without it. NaN in the logits comes out as NaN
                where w = 0, too: use `mask` to hide it.

        Returns:
            float32 (float64 for float64 logits): a scalar, or the shape of `reduction="none"`.

        Raises:
            InputError: shapes or values that do not fit; the message names the argument.
        """
        tensors = tensors_of(given)
        logits, target = checked_tensors(logits, target, input=input, **tensors)
        with without_autocast(logits):
            return self.compute(self.prepare(logits, target, **given))

    def prepare(
        self,
        logits: Tensor,
        target: Tensor,
        **given: Unpack[CallArguments],
    ) -> LossInputs:
        """Check what `forward` was given, and bring it to the form that `compute` reads."""
        mask, voxel_weight = given.get("mask"), given.get("voxel_weight")
        check_shapes(logits, target, mask)
        item_spacing: list[tuple[float, ...]] | UnknownSpacingError
        try:
            item_spacing = resolve_spacing(given.get("spacing"), target, logits.shape[0], logits.ndim - 2)
        except UnknownSpacingError as error:
            # Raised where a loss reads it. Its traceback holds this frame, and so every tensor of the step.
            item_spacing = error.with_traceback(None)
        logits, target = _plain(logits), _plain(target)
        if target.requires_grad:
            target = target.detach()
        channels = logits.shape[1]
        self.check_channels(channels, target.shape[1])
        mask = None if mask is None else _plain(mask) != 0
        signed, ignored = as_signed(target), None
        if self.ignore_index is not None:
            ignored = _wrapped(self.ignore_index, target.dtype)
        if ignored is not None:
            kept = signed != ignored
            mask = kept if mask is None else mask & kept
        mode = Mode.CATEGORICAL if self.softmax else Mode.BERNOULLI if self.sigmoid else Mode.PROBABILITIES
        labelled = given.get("labelled_classes")
        labelled = None if labelled is None else self._labelled(_plain(labelled), logits)
        if voxel_weight is not None:
            check_voxel_weight(voxel_weight, logits)
            voxel_weight = _plain(voxel_weight).detach().to(logits.device, sum_type(logits))
            voxel_weight = voxel_weight if mask is None else torch.where(mask, voxel_weight, 0.0)
        if self.validate and not torch.compiler.is_compiling():
            check_values(target, mask, channels, self.soft_targets)
            if labelled is not None:
                check_unlabelled(signed, mask, labelled)
            if voxel_weight is not None:
                check_weights(voxel_weight)
            if mode is Mode.PROBABILITIES and self.other_act is None:
                check_probabilities(logits, mask)
        if self.other_act is not None:
            # NaN under a mask would come back through the activation's gradient.
            logits = self.other_act(logits if mask is None else torch.where(mask, logits, 0.0))
            # Whose type may be another one.
            voxel_weight = None if voxel_weight is None else voxel_weight.to(sum_type(logits))
        tensors = tensors_of(given)
        maps = {name: self._target_map(name, tensors.get(name), logits, labelled) for name in TARGET_MAPS}
        if labelled is not None:
            logits = without_unlabelled(logits, labelled, mask, mode)
        return LossInputs(
            logits=logits,
            target=signed,
            mask=mask,
            mode=mode,
            include_background=self.include_background or channels == 1,
            class_weight=self.class_weight,
            item_spacing=item_spacing,
            ignore_index=ignored,
            labelled=labelled,
            voxel_weight=voxel_weight,
            **maps,
        )

    def _labelled(self, labelled: Tensor, logits: Tensor) -> Tensor | None:
        """Which item-class pairs count, `[B, C]` bool; None when all do, where that is known without waiting."""
        check_labelled_classes(labelled, logits)
        known = labelled.device.type == "cpu" or self.validate
        if self.softmax:
            labelled = torch.cat([torch.ones_like(labelled[:, :1]), labelled[:, 1:]], 1)
        if known and not torch.compiler.is_compiling() and bool(labelled.all()):
            return None
        return labelled.to(logits.device)

    def _target_map(self, name: str, given: Tensor | None, logits: Tensor, labelled: Tensor | None) -> Tensor | None:
        """A map of the target, checked; 0 in the item-class pairs that do not count."""
        if given is None:
            return None
        maps = _plain(given).detach().to(logits.device, sum_type(logits) if name == "distance_map" else given.dtype)
        check_maps(name, maps, logits, self.include_background)
        if labelled is None:
            return maps
        pairs = labelled[:, -maps.shape[1] :]
        return torch.where(pairs.view(*pairs.shape, *(1,) * (logits.ndim - 2)), maps, 0)

    def check_channels(self, channels: int, target_channels: int) -> None:
        """Refuse logits and targets whose channels do not go with the loss's arguments.

        Raises:
            InputError: a softmax of one channel, `ignore_index` with a map per class, weights of another number.
        """
        if channels == 1:
            if self.softmax:
                raise InputError("softmax: logits have one channel; expected two or more, or sigmoid=True")
            if not self.include_background:
                warnings.warn("single channel prediction, `include_background=False` ignored.", stacklevel=4)
        if self.ignore_index is not None and target_channels != 1:
            raise InputError(
                f"ignore_index: the target has {target_channels} channels, one map per class; expected an index map "
                "[B, 1, *spatial], or a mask instead"
            )
        left = channels if self.include_background or channels == 1 else channels - 1
        if self.class_weight is not None and self.class_weight.numel() not in (1, left):
            raise InputError(
                f"weight: got {self.class_weight.numel()} numbers; expected 1 or {left}, one per class that is left"
            )

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, for `print(loss)`."""
        usual = {
            name: parameter.default
            for cls in reversed(type(self).__mro__)
            if issubclass(cls, SegmentationLoss)
            for name, parameter in inspect.signature(cls).parameters.items()
        }
        values = {"weight": None if self.class_weight is None else _shown(self.class_weight.tolist())} | vars(self)
        shown = {name: values[name] for name in usual if name in values and name not in ("validate", "to_onehot_y")}
        return ", ".join(f"{name}={value}" for name, value in shown.items() if value != usual[name])


def without_autocast(logits: Tensor) -> AbstractContextManager[Any]:
    """A context in which losses compute in the type of their sums."""
    device = logits.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if is_meta_tensor(tensor) else tensor


def _wrapped(label: int, dtype: torch.dtype) -> int | None:
    """The label as `as_signed` shows it; None where the type cannot hold it: torch would compare it modulo 256."""
    if dtype.is_floating_point or dtype == torch.bool:
        return label
    limits = torch.iinfo(dtype)
    if not limits.min <= label <= limits.max:
        return None
    if dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return label
    bits = limits.bits
    return label - 2**bits if label >= 2 ** (bits - 1) else label


def _class_weight(weight: Sequence[float] | float | Tensor) -> Tensor:
    """`[1]` or `[C']`, in float32: not every device has float64."""
    values = torch.as_tensor(weight, dtype=torch.float32).detach().reshape(-1).clone()
    if not torch.compiler.is_compiling():
        numbers = values.tolist()
    else:  # where a tensor's numbers are not known
        numbers = [n for n in (weight if isinstance(weight, list | tuple) else [weight]) if isinstance(n, int | float)]
    if not all(n >= 0 and math.isfinite(n) for n in numbers):
        raise InputError(f"weight: got {_shown(numbers)}; expected finite numbers >= 0")
    return values


def _shown(numbers: Sequence[float]) -> list[float]:
    """Numbers of float32 by the digits that they have."""
    return [float(f"{n:.7g}") for n in numbers]
