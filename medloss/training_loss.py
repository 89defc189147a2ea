"""Losses as networks are trained with them: each by its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from medloss.create import accepted_arguments, create_loss, loss_class, preset_of
from medloss.errors import InputError
from medloss.expression import Term, parse_expression
from medloss.loss_entry import Recipe
from medloss.registry import LOSSES
from medloss.wrappers.combined import SCHEDULES, CombinedLoss

#: Schedules that can be requested by name only; `linear` needs final weights.
ASKED_SCHEDULES = tuple(name for name in SCHEDULES if name != "linear")


def create_training_loss(
    spec: str | Mapping[str, Any],
    *,
    num_classes: int,
    arguments: Mapping[str, Any] | None = None,
    sigmoid: bool | None = None,
    common: Mapping[str, Any] | None = None,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
    schedule: str | None = None,
    epochs: int | None = None,
) -> nn.Module:
    """Make the loss that a network is trained with, on logits `[B, C, *spatial]` and index maps.

    Args:
        spec: a registered name (its recipe is applied: `hausdorff_dt` is trained with Dice), with a preset or none, a
            sum such as `0.2*focal+0.8*dice`, a dotted path, or a mapping with `_target_` and all of its arguments.
        num_classes: C; one channel gets a sigmoid, more a softmax.
        arguments: arguments of the named loss, before those of its recipe.
        sigmoid: whether the channels are independent, however many there are; None: with one channel.
        common: arguments of every loss that takes them, such as `batch`.
        terms: arguments of single losses of a sum by their names; they come before `common`.
        schedule: of the weights of a sum, `constant`, `ramp` or `balanced`, as in `CombinedLoss`; None: the recipe's,
            and `constant` for a sum.
        epochs: the length of the run, in epochs; a `ramp` needs it.

    Raises:
        InputError: an unknown loss, argument or schedule; `arguments` for a sum; `schedule` for a loss that is no sum;
            `sigmoid`, `common`, `terms` or `schedule` for a mapping.

    Example:
        >>> import medloss
        >>> medloss.create_training_loss("hausdorff_dt", num_classes=3).schedule
        'balanced'
    """
    arguments = dict(arguments or {})
    if isinstance(spec, Mapping):
        if sigmoid is not None or common or terms or schedule:
            raise InputError(
                "loss: a mapping contains all of its arguments; got sigmoid, common, terms or schedule as well"
            )
        return create_loss(spec, **arguments)
    trained = _trained(spec, schedule)
    if "+" in spec and arguments:
        raise InputError(f"loss: arguments {sorted(arguments)} were given for the sum '{spec}'; name one loss alone")
    activation = "sigmoid" if (num_classes == 1 if sigmoid is None else sigmoid) else "softmax"
    # Of losses from elsewhere we know no more than the names in their signature.
    wanted: dict[str, Any] = {activation: True, f"use_{activation}": True, "to_onehot_y": activation == "softmax"}
    losses = []
    for part in trained.terms:
        chosen = dict(trained.terms_arguments.get(part.loss, {}))
        chosen |= preset_of(part.name, softmax=activation == "softmax")
        if activation == "sigmoid":
            chosen.pop("include_background", None)  # no channel is background
        chosen |= (terms or {}).get(part.name, {})
        if len(trained.terms) == 1 or part.name == trained.name:
            chosen |= arguments
        losses.append(_term_loss(part, wanted, dict(common or {}), dict(trained.arguments) | chosen))
    if len(losses) == 1 and trained.terms[0].weight == 1:
        return losses[0]
    weights = [part.weight for part in trained.terms]
    return CombinedLoss(losses, weights=weights, schedule=trained.schedule, epochs=epochs)


def trained_as(spec: str, schedule: str | None = None, arguments: Mapping[str, Any] | None = None) -> str:
    """What a network is trained with: the sum of a loss's recipe, its schedule, and the arguments that it sets.

    Args:
        spec: a name, a sum or a dotted path.
        schedule: as in `create_training_loss`.
        arguments: as in `create_training_loss`; of those that the recipe sets, these values are shown.

    Raises:
        InputError: it cannot be read, or is no sum and a schedule was requested.

    Example:
        >>> from medloss.training_loss import trained_as
        >>> trained_as("hausdorff_dt"), trained_as("0.2*focal+dice"), trained_as("generalized_dice")
        ('hausdorff_dt+dice, balanced', '0.2*focal+dice', 'generalized_dice, w_type=simple')
    """
    trained = _trained(spec, schedule)
    text = "+".join(part.name if part.weight == 1 else f"{part.weight:g}*{part.name}" for part in trained.terms)
    notes = [] if trained.schedule == "constant" else [trained.schedule]
    chosen = trained.arguments | {name: value for name, value in (arguments or {}).items() if name in trained.arguments}
    notes += [f"{name}={value}" for name, value in chosen.items()]
    return ", ".join([text, *notes])


def recipe_clip(spec: str, schedule: str | None = None) -> float | None:
    """The largest norm of a step's gradient that a loss is trained with, if the training sets no smaller one.

    It is the least of those in the recipes of a balanced sum's terms; other sums and losses have none.

    Args:
        spec: a name, a sum or a dotted path.
        schedule: as in `create_training_loss`.

    Example:
        >>> from medloss.training_loss import recipe_clip
        >>> recipe_clip("hausdorff_er"), recipe_clip("dice")
        (1.0, None)
    """
    trained = _trained(spec, schedule)
    recipes = [LOSSES[part.loss].recipe for part in trained.terms if part.loss in LOSSES]
    norms = [recipe.clip for recipe in recipes if recipe.clip is not None]
    return min(norms, default=None) if trained.schedule == "balanced" else None


def has_boundary_term(spec: str) -> bool:
    """Whether a loss is trained as a sum of which some terms are boundary-based, and some are not.

    Args:
        spec: a name, a sum or a dotted path.
    """
    families = [LOSSES[part.loss].family if part.loss in LOSSES else None for part in _trained(spec, None).terms]
    return "boundary" in families and set(families) != {"boundary"}


@dataclass(frozen=True)
class _Trained:
    """A loss by its recipe; `name` is the term that gets the caller's `arguments`."""

    terms: list[Term]
    schedule: str
    arguments: dict[str, Any]
    name: str
    terms_arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _trained(spec: str, schedule: str | None) -> _Trained:
    parts, name = parse_expression(spec), spec
    chosen, recipe, factor = "constant", Recipe(), 1.0
    if len(parts) == 1 and parts[0].loss in LOSSES:
        named = parts[0]
        name, recipe = named.name, LOSSES[named.loss].recipe
        chosen, factor = recipe.schedule, named.weight
        if recipe.expression:
            # A preset is that of the named loss, not of what it is trained with.
            parts = [
                Term(factor * part.weight, name if part.name == named.loss else part.name)
                for part in parse_expression(recipe.expression)
            ]
    if schedule is not None:
        if schedule not in ASKED_SCHEDULES:
            raise InputError(f"schedule: got '{schedule}'; expected one of {', '.join(ASKED_SCHEDULES)}")
        if len(parts) == 1:
            raise InputError(
                f"schedule: got '{schedule}' for '{spec}', which is no sum; "
                "expected one such as dice+binary_cross_entropy+hausdorff_dt"
            )
        chosen = schedule
    arguments, terms = dict(recipe.arguments), dict(recipe.terms)
    if "@" in name:
        # A loss by a preset has the preset's arguments alone.
        arguments = {}
        terms.pop(name.partition("@")[0], None)
    return _Trained(parts, chosen, arguments, name, terms)


def _term_loss(
    term: Term, wanted: Mapping[str, Any], common: Mapping[str, Any], arguments: Mapping[str, Any]
) -> nn.Module:
    accepted = accepted_arguments(loss_class(term.name)) or set()
    chosen = {name: value for name, value in {**wanted, **common}.items() if name in accepted}
    return create_loss(term.loss, **(chosen | dict(arguments)))  # the preset's are among the arguments
