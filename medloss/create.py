"""Losses by name: from the registry, or from elsewhere by dotted path; and how any of them is called."""

import difflib
import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor, nn

from medloss.base import CommonArguments, SegmentationLoss
from medloss.call_arguments import CALL_ARGUMENTS, CallArguments, refuse_other_names
from medloss.errors import InputError
from medloss.expression import Term
from medloss.loss_entry import registered_name
from medloss.names import unknown_loss
from medloss.presets import preset_arguments
from medloss.registry import LOSSES
from medloss.wrappers.unwrap import unwrapped


def create_loss(name: str | Mapping[str, Any], **arguments: Any) -> nn.Module:
    """Make a loss.

    Args:
        name: a registered name, with a preset of `medloss.presets` (`dice@nnunet`) or none, a dotted path such as
            `monai.losses.GeneralizedDiceLoss`, or a mapping with `_target_` (either of them) and arguments.
        **arguments: the loss's arguments; they come before those of a preset.

    Raises:
        InputError: an unknown name (suggests the nearest one), preset or argument.

    Example:
        >>> import medloss
        >>> medloss.create_loss("focal_tversky", softmax=True, include_background=False).gamma
        1.3333333333333333
    """
    if isinstance(name, Mapping):
        if "_target_" not in name:
            raise InputError("loss: got a mapping without '_target_'; expected the loss's name or dotted path there")
        arguments = {key: value for key, value in name.items() if key != "_target_"} | arguments
        name = str(name["_target_"])
    cls = loss_class(name)
    accepted = accepted_arguments(cls)
    if accepted is not None and (unknown := sorted(set(arguments) - accepted)):
        near = difflib.get_close_matches(unknown[0], accepted, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(sorted(accepted))}"
        raise InputError(f"{name}: unknown argument '{unknown[0]}'; {hint}")
    arguments = preset_of(name, softmax=bool(arguments.get("softmax"))) | arguments
    loss: nn.Module = cls(**arguments)
    return loss


def preset_of(name: str, *, softmax: bool) -> dict[str, Any]:
    """The arguments of a name's preset; none without one.

    Raises:
        InputError: there is no such loss or preset, or the preset does not have the loss.
    """
    term = Term(1.0, name)
    if not term.preset:
        return {}
    return preset_arguments(term.preset, registered_name(loss_class(term.loss)) or term.loss, softmax=softmax)


def loss_class(name: str) -> type[nn.Module]:
    """The class behind a registered name or a dotted path, whatever preset it has.

    Raises:
        InputError: there is none; suggests the nearest registered name.
    """
    name = Term(1.0, name).loss
    if name in LOSSES:
        return LOSSES[name].cls
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"loss: cannot import '{name}': {error}") from None
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise InputError(f"loss: '{name}' is no torch.nn.Module class; expected one")
        return found
    raise InputError(unknown_loss(name))


def accepted_arguments(cls: type[nn.Module]) -> set[str] | None:
    """The names that a loss's constructor takes; None where it takes any."""
    parameters = inspect.signature(cls).parameters.values()
    names = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if issubclass(cls, SegmentationLoss):
        return names | set(CommonArguments.__annotations__)
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else names


def call_loss(
    loss: nn.Module,
    logits: Tensor,
    target: Tensor,
    **given: Unpack[CallArguments],
) -> Tensor:
    """Call a loss, ours or not, with those of the arguments that its `forward` takes; see `CallArguments`.

    A `forward(*args, **kwargs)` gets all that are given; `torch.compile` and `DataParallel` get those that the wrapped
    loss takes.

    Raises:
        TypeError: an argument of another name.
        InputError: a mask, labelled classes or voxel weights that the loss does not take: its value would be that of
            all voxels or classes.
    """
    refuse_other_names(given)
    passed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    names = accepted_keywords(loss)
    if names is not None:
        _check_lost(loss, set(passed) - names)
        passed = {name: passed.get(name) for name in CALL_ARGUMENTS if name in names}
    value: Tensor = loss(logits, target, **passed)
    return value


def accepted_keywords(loss: nn.Module) -> set[str] | None:
    """The names that a loss's `forward` takes; None where it takes any."""
    parameters = inspect.signature(unwrapped(loss).forward).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def pass_epoch_on(loss: nn.Module, epoch: int) -> None:
    """Start an epoch, counted from 0, of every loss inside that changes with it (`CombinedLoss`)."""
    start = getattr(loss, "start_epoch", None)
    if callable(start):
        start(epoch)
        return
    for part in loss.children():
        pass_epoch_on(part, epoch)


def _check_lost(loss: nn.Module, lost: set[str]) -> None:
    """Refuse to lose what decides what counts; warn where a loss of medloss would compute distances in voxels."""
    if not lost:
        return
    cls = type(unwrapped(loss))
    name = f"{cls.__module__}.{cls.__qualname__}"
    for argument, handling in CALL_ARGUMENTS.items():
        if argument in lost and handling.lost:
            raise InputError(
                f"{argument}: {name} takes none and would {handling.lost}; expected a loss of medloss, or no {argument}"
            )
    inside = next((part for part in loss.modules() if isinstance(part, SegmentationLoss) and part.uses_spacing), None)
    if inside is not None:
        warnings.warn(
            f"{max(lost)}: {name} takes none, so the {type(inside).__name__} inside computes its own; put "
            "medloss.FixedSpacing or medloss.DeepSupervision around that loss, or take **kwargs and pass them on",
            stacklevel=3,
        )
