"""What the registry holds of each loss; the loss's file sets it by `@register`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from medloss.base import SegmentationLoss
from medloss.names import FAMILIES, loss_sets
from medloss.wrappers.unwrap import unwrapped


@dataclass(frozen=True)
class Recipe:
    """How a loss is trained.

    Attributes:
        expression: the loss alone, or a sum such as `hausdorff_dt+dice`; empty for the loss alone.
        schedule: how the weights of a sum change, as in `CombinedLoss`.
        arguments: keyword arguments of every term.
        terms: keyword arguments of single terms, by their names.
        clip: largest norm of a step's gradient, for trainings that set none themselves; None: any.
        note: where it comes from, and what we have changed.
        published: whether it was read where the loss was published, and is that one; else it is our recipe.
    """

    expression: str = ""
    schedule: str = "constant"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    clip: float | None = None
    note: str = "alone, over all classes"
    published: bool = False

    @property
    def origin(self) -> str:
        """`published recipe` or `our recipe`."""
        return "published recipe" if self.published else "our recipe"


@dataclass(frozen=True)
class LossEntry:
    """A registered loss.

    Attributes:
        name: as commands and configs call it.
        cls: its class.
        family: one of `FAMILIES`.
        paper: authors, year, arXiv or DOI.
        summary: one line.
        recipe: how it is trained.
        which: its set, one of `LOSS_SETS`.
    """

    name: str
    cls: type[SegmentationLoss]
    family: str
    paper: str
    summary: str
    recipe: Recipe
    which: str = "more"


#: All registered losses, by name, in the order of registration.
REGISTERED: dict[str, LossEntry] = {}

_Loss = TypeVar("_Loss", bound=type[SegmentationLoss])


def register(
    name: str, *, family: str, paper: str, summary: str, recipe: Recipe | None = None
) -> Callable[[_Loss], _Loss]:
    """Class decorator that registers a loss; the arguments are the attributes of `LossEntry`."""
    if family not in FAMILIES:
        raise ValueError(f"family: got '{family}'; expected one of {', '.join(FAMILIES)}")

    def add(cls: _Loss) -> _Loss:
        if name in REGISTERED:
            raise ValueError(f"a loss '{name}' is registered already: {REGISTERED[name].cls.__name__}")
        which = loss_sets().get(name, "more")
        REGISTERED[name] = LossEntry(name, cls, family, paper, summary, recipe or Recipe(), which)
        return cls

    return add


def registered_name(cls: type[nn.Module]) -> str | None:
    """The name by which a class is registered; None if it is not."""
    return next((entry.name for entry in REGISTERED.values() if entry.cls is cls), None)


def family_of(loss: nn.Module) -> str | None:
    """The family of a loss, also inside a wrapper (`FixedSpacing`, `torch.compile`); None for one not registered."""
    loss = unwrapped(loss)
    while isinstance(inner := getattr(loss, "loss", None), nn.Module):
        loss = unwrapped(inner)
    return next((entry.family for entry in REGISTERED.values() if isinstance(loss, entry.cls)), None)
