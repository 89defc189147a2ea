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
    spec: str | Mapping[str, Any], *, num_classes: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Make the loss that a network is trained with, on logits `[B, C, *spatial]` and index maps.

    Args:
        spec: a registered name (its published recipe is applied: `hausdorff_dt` is trained with Dice), a sum
            such as `0.2*focal+0.8*dice`, a dotted path, or a mapping with `_target_` and arguments.
        num_classes: C; one channel gets a sigmoid, more a softmax.
        arguments: arguments of the named loss, before those of its recipe.

    Raises:
        InputError: an unknown loss or argument, or `arguments` for a sum.

    Example:
        >>> import medloss
        >>> medloss.create_training_loss("hausdorff_dt", num_classes=3).schedule
        'balanced'
    """
    arguments = dict(arguments or {})
    if isinstance(spec, Mapping):
        return create_loss(spec, **arguments)
    terms, schedule, name = parse_expression(spec), "constant", spec
    if len(terms) > 1 and arguments:
        raise InputError(f"loss: arguments {sorted(arguments)} were given for the sum '{spec}'; name one loss alone")
    shared: Mapping[str, Any] = {}
    if len(terms) == 1 and terms[0].name in LOSSES:
        name = terms[0].name
        recipe = LOSSES[name].recipe
        schedule, shared = recipe.schedule, recipe.arguments
        if recipe.expression:
            terms = parse_expression(recipe.expression)
    losses = []
    for term in terms:
        own = arguments if len(terms) == 1 or term.name == name else {}
        losses.append(_term_loss(term, num_classes, dict(shared) | own))
    if len(losses) == 1 and terms[0].weight == 1:
        return losses[0]
    return CombinedLoss(losses, weights=[term.weight for term in terms], schedule=schedule)


def _term_loss(term: Term, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    cls = loss_class(term.name)
    activation = "softmax" if num_classes > 1 else "sigmoid"
    # Of losses from elsewhere we know no more than the names in their signature.
    wanted: dict[str, Any] = {activation: True, f"use_{activation}": True, "to_onehot_y": num_classes > 1}
    accepted = accepted_arguments(cls) or set()
    chosen = {name: value for name, value in wanted.items() if name in accepted}
    return create_loss(term.name, **(chosen | dict(arguments)))
