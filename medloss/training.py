"""Losses as networks are trained with them: each by the recipe that it was published with."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from medloss.compound.combined import CombinedLoss
from medloss.create import accepted_arguments, create_loss, loss_class
from medloss.errors import InputError
from medloss.expression import Term, parse_expression
from medloss.registry import LOSSES


def create_training_loss(
    spec: str | Mapping[str, Any],
    *,
    num_classes: int,
    arguments: Mapping[str, Any] | None = None,
    sigmoid: bool | None = None,
    common: Mapping[str, Any] | None = None,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
) -> nn.Module:
    """Make the loss that a network is trained with, on logits `[B, C, *spatial]` and index maps.

    Args:
        spec: a registered name (its published recipe is applied: `hausdorff_dt` is trained with Dice), a sum
            such as `0.2*focal+0.8*dice`, a dotted path, or a mapping with `_target_` and all of its arguments.
        num_classes: C; one channel gets a sigmoid, more a softmax.
        arguments: arguments of the named loss, before those of its recipe.
        sigmoid: whether each channel is its own yes/no, however many there are; None: with one channel.
        common: arguments of every loss that takes them, such as `batch`.
        terms: arguments of single losses of a sum by their names; they come before `common`.

    Raises:
        InputError: an unknown loss or argument; `arguments` for a sum; `sigmoid`, `common` or `terms` for a mapping.

    Example:
        >>> import medloss
        >>> medloss.create_training_loss("hausdorff_dt", num_classes=3).schedule
        'balanced'
    """
    arguments = dict(arguments or {})
    if isinstance(spec, Mapping):
        if sigmoid is not None or common or terms:
            raise InputError("loss: a mapping says all of its arguments itself; got sigmoid, common or terms besides")
        return create_loss(spec, **arguments)
    parts, schedule, name = parse_expression(spec), "constant", spec
    if len(parts) > 1 and arguments:
        raise InputError(f"loss: arguments {sorted(arguments)} were given for the sum '{spec}'; name one loss alone")
    shared: Mapping[str, Any] = {}
    if len(parts) == 1 and parts[0].name in LOSSES:
        name = parts[0].name
        recipe = LOSSES[name].recipe
        schedule, shared = recipe.schedule, recipe.arguments
        if recipe.expression:
            parts = [Term(parts[0].weight * part.weight, part.name) for part in parse_expression(recipe.expression)]
    activation = "sigmoid" if (num_classes == 1 if sigmoid is None else sigmoid) else "softmax"
    # Of losses from elsewhere we know no more than the names in their signature.
    wanted: dict[str, Any] = {activation: True, f"use_{activation}": True, "to_onehot_y": activation == "softmax"}
    losses = []
    for part in parts:
        own = dict((terms or {}).get(part.name, {}))
        if len(parts) == 1 or part.name == name:
            own |= arguments
        losses.append(_term_loss(part, wanted, dict(common or {}), dict(shared) | own))
    if len(losses) == 1 and parts[0].weight == 1:
        return losses[0]
    return CombinedLoss(losses, weights=[part.weight for part in parts], schedule=schedule)


def _term_loss(
    term: Term, wanted: Mapping[str, Any], common: Mapping[str, Any], arguments: Mapping[str, Any]
) -> nn.Module:
    accepted = accepted_arguments(loss_class(term.name)) or set()
    chosen = {name: value for name, value in {**wanted, **common}.items() if name in accepted}
    return create_loss(term.name, **(chosen | dict(arguments)))
