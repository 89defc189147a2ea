"""Losses with nnU-Net's interface, and the trainers' names `nnUNetTrainerMedloss_<loss>`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medloss import CombinedLoss, call_loss, create_training_loss
from medloss.create import accepted_keywords, pass_epoch_on
from medloss.errors import InputError
from medloss.expression import Term, parse_expression
from medloss.names import loss_names, unknown_loss
from medloss.presets import preset_arguments, presets_of
from medloss.spacing import scaled_spacing

# Names of trainers: `nnUNetTrainerMedloss_<loss>`, optionally with `_<N>epochs`

PREFIX = "nnUNetTrainerMedloss_"
_EPOCHS = re.compile(r"(?P<losses>.+)_(?P<epochs>[1-9][0-9]*)epochs?")
#: Names of classes allow only letters, digits and `_`: these words stand for `+`, `*`, `@` and `.`.
_PLUS, _TIMES, _AT, _POINT = "_plus_", "_times_", "_at_", "p"
_TERM = re.compile(rf"(?:(?P<weight>[0-9]+(?:{_POINT}[0-9]+)?){_TIMES})?(?P<name>\w+)")


@dataclass(frozen=True)
class TrainerName:
    """The parts of a trainer's name."""

    #: A registered loss, or a sum such as `0.2*focal+0.8*dice`.
    loss: str
    #: Their number; None for nnU-Net's 1000.
    epochs: int | None = None

    def __str__(self) -> str:
        parts = []
        for term in parse_expression(self.loss):
            if term.loss not in loss_names():
                raise InputError(
                    f"loss: '{term.loss}' is no registered loss; trainers are named after registered ones only"
                )
            weight = f"{term.weight:.10f}".rstrip("0").rstrip(".")
            if float(weight) != term.weight:
                raise InputError(f"loss: the weight {term.weight!r} has too many digits for a trainer's name")
            name = term.name.replace("@", _AT)
            parts.append(name if term.weight == 1 else f"{weight.replace('.', _POINT)}{_TIMES}{name}")
        ending = "" if self.epochs is None else f"_{self.epochs}epochs"
        return f"{PREFIX}{_PLUS.join(parts)}{ending}"


def trainer_name(name: str) -> TrainerName | None:
    """Parse a trainer's name; None if it is not one of ours.

    Example:
        >>> from pipelines.nnunet.losses import trainer_name
        >>> trainer_name("nnUNetTrainerMedloss_dice_plus_0p5_times_focal_20epochs")
        TrainerName(loss='dice+0.5*focal', epochs=20)
    """
    if not name.startswith(PREFIX):
        return None
    parts, epochs = _split(name)
    terms = []
    for part in parts:
        term = _TERM.fullmatch(part)
        if term is None:
            return None
        loss, _, preset = term["name"].partition(_AT)
        if loss not in loss_names() or (preset and preset not in presets_of(loss)):
            return None
        called = f"{loss}@{preset}" if preset else loss
        weight = term["weight"]
        if weight is not None and float(weight.replace(_POINT, ".")) == 0:
            return None
        terms.append(called if weight is None else f"{weight.replace(_POINT, '.')}*{called}")
    return TrainerName("+".join(terms), epochs)


def _split(name: str) -> tuple[list[str], int | None]:
    """The terms of a name with our prefix, as they are written, and the epochs."""
    losses, epochs = name.removeprefix(PREFIX), None
    if found := _EPOCHS.fullmatch(losses):
        losses, epochs = found["losses"], int(found["epochs"])
    return losses.split(_PLUS), epochs


def hint(name: str) -> str:
    """A message about a name with our prefix that is not valid; names the loss nearest to the unknown one."""
    names = [part.rsplit(_TIMES, 1)[-1] for part in _split(name)[0]]
    expected = f"expected weights above 0, such as 0{_POINT}5{_TIMES}{names[0]}"
    for loss, _, preset in (one.partition(_AT) for one in names):
        if loss not in loss_names():
            expected = unknown_loss(loss).replace("+", _PLUS)
            break
        if preset and preset not in presets_of(loss):
            expected = f"no preset '{preset}' of {loss}; expected one of {', '.join(presets_of(loss))}"
            break
    return f"medloss: no trainer '{name}': {expected}"


# The loss: nnU-Net's targets, ignore label and deep supervision, and the plan's spacing

#: The item of nnU-Net's log, and so of its checkpoints, with the state that a loss keeps between epochs.
LOSS_STATE = "medloss_loss_state"
#: nnU-Net's default loss: Dice, in which an empty class counts as correct, plus cross entropy.
_DEFAULT = [Term(1.0, name) for name in ("binary_cross_entropy", "dice")]


class NnunetLoss(nn.Module):
    """Any loss, on nnU-Net's outputs and targets.

    Args:
        loss: the loss.
        weights: one per scale, finest first; scales with weight 0 are left out.
        spacing: of the finest scale, mm, in the order of the patches' axes.
        regions: whether targets are one map per region, `[B, R, *spatial]`, with the ignore label as the last; else
            they are label maps `[B, 1, *spatial]`.
        ignore_label: the label whose voxels do not count; None if there is none.
        offset: added to the loss's value.

    Raises:
        InputError: there is an ignore label, and a loss that takes no mask.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        weights: Sequence[float],
        spacing: Sequence[float],
        regions: bool,
        ignore_label: int | None,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        for term in loss.losses if isinstance(loss, CombinedLoss) else [loss]:
            names = accepted_keywords(term)
            if ignore_label is not None and names is not None and "mask" not in names:
                raise InputError(
                    f"loss: {type(term).__name__} takes no mask, so it cannot leave out the voxels of the ignore "
                    "label; expected a loss of medloss"
                )
        self.loss = loss
        self.weights = tuple(float(weight) for weight in weights)
        self.spacing = tuple(float(s) for s in spacing)
        self.regions = regions
        self.ignore_label = ignore_label
        self.offset = offset

    def forward(self, outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """The weighted sum over the scales.

        Args:
            outputs: logits `[B, C, *spatial]` per scale, finest first; a tensor without deep supervision.
            targets: one per output, on its grid.
        """
        if isinstance(outputs, Tensor) or isinstance(targets, Tensor):
            assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
            outputs, targets = [outputs], [targets]
        finest = outputs[0].shape[2:]
        total: Tensor | float = 0.0
        for weight, logits, target in zip(self.weights, outputs, targets, strict=True):
            if not weight:
                continue
            mask = None
            if self.ignore_label is not None and self.regions:
                target, mask = target[:, :-1], target[:, -1:] != 1
            elif self.ignore_label is not None:
                mask = target != self.ignore_label
            spacing = scaled_spacing(self.spacing, finest, logits.shape[2:])
            total = total + weight * (call_loss(self.loss, logits, target, mask=mask, spacing=spacing) + self.offset)
        assert isinstance(total, Tensor)
        return total

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of a sum with a schedule; to be called before the epoch's first batch."""
        pass_epoch_on(self.loss, epoch)

    def extra_repr(self) -> str:
        """The attributes that `print` shows next to the loss."""
        ignored = "" if self.ignore_label is None else f", ignore_label={self.ignore_label}"
        shift = f", offset={self.offset}" if self.offset else ""
        return f"spacing={self.spacing}, weights={self.weights}, regions={self.regions}{ignored}{shift}"


def create_nnunet_loss(
    spec: str, *, heads: int, regions: bool, ignore_label: int | None, batch_dice: bool, **scales: Any
) -> NnunetLoss:
    """Create a loss by its recipe, with the plan's settings.

    In every sum `dice` is `dice@nnunet`: smoothing 1e-5, and no background with label maps. The sum
    `dice+binary_cross_entropy` equals nnU-Net's default loss up to rounding: its Dice counts as -D, and with regions
    and an ignore label its cross entropy is summed over the regions, not averaged.

    Args:
        spec: in the form of `medloss.create_training_loss`.
        heads: number of the network's outputs.
        regions: see `NnunetLoss`.
        ignore_label: the label whose voxels do not count.
        batch_dice: whether regions are first summed over the batch (of all ranks).
        scales: `weights` and `spacing` of `NnunetLoss`.

    Raises:
        InputError: an unknown loss, or one that takes no mask where there is an ignore label.
    """
    terms = parse_expression(spec)
    # Without a preset `dice` has nnU-Net's.
    plain = [Term(term.weight, term.loss if term.preset == "nnunet" else term.name) for term in terms]
    default = sorted(plain, key=lambda term: term.name) == _DEFAULT
    if default and regions and ignore_label is not None:
        spec = f"dice+{heads}*binary_cross_entropy"
    dice = {"include_background": True} | preset_arguments("nnunet", "dice", softmax=not regions)
    # nnU-Net has checked the labels; a check per batch would synchronise with the GPU.
    common: dict[str, Any] = {"batch": batch_dice, "validate": False}
    loss = create_training_loss(spec, num_classes=heads, sigmoid=regions, common=common, terms={"dice": dice})
    return NnunetLoss(loss, regions=regions, ignore_label=ignore_label, offset=-1.0 if default else 0.0, **scales)


def scale_weights(scales: int, *, keep_last: bool) -> list[float]:
    """nnU-Net's weights of its outputs, finest first: 1, 1/2, 1/4 and so on, the last one 0, divided by their sum.

    With `keep_last` the last one is 1e-6: data-parallel training without compilation refuses parameters without a
    gradient.
    """
    halves = [0.5**i for i in range(scales)]
    if scales > 1:
        halves[-1] = 1e-6 if keep_last else 0.0
    return [half / sum(halves) for half in halves]


def loss_state(loss: NnunetLoss) -> dict[str, list[float]]:
    """The state that a balanced sum keeps between epochs, as plain numbers; empty for other losses."""
    if getattr(loss.loss, "schedule", "constant") == "constant":
        return {}
    return {name: value.double().flatten().tolist() for name, value in loss.state_dict().items()}


def restore_loss(loss: nn.Module, state: dict[str, list[float]]) -> None:
    """Set a state from `loss_state`; that of another loss is ignored."""
    buffers = loss.state_dict()
    if buffers.keys() == state.keys() and all(buffers[name].numel() == len(state[name]) for name in buffers):
        for name, value in buffers.items():
            value.copy_(torch.tensor(state[name], dtype=torch.float64).view(value.shape))
