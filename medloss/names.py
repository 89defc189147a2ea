"""The registered losses' names, for those who only check a name: importing the losses imports torch."""

import difflib
import re
from functools import lru_cache
from importlib.resources import files

from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.presets import preset_arguments

#: The families of the survey, in its order, and the losses around others.
FAMILIES = ("distribution", "region", "boundary", "compound", "wrapper")


#: The sets of losses, by which a comparison can name them all; `registry.py` has a section for each.
LOSS_SETS = {"survey": "The losses of the survey (Jadon 2020, arXiv 2006.14822)", "more": "More losses"}


@lru_cache
def loss_sets() -> dict[str, str]:
    """The registered losses and the set of each, in the order of `LOSSES`.

    They are read from the lines of `registry.py`: a loss's file has its name, and its folder its family's (that of
    wrappers has the plural).
    """
    registry = files("medloss").joinpath("registry.py").read_text(encoding="utf-8")
    sections = re.split(rf"^# ({'|'.join(LOSS_SETS)}):.*$", registry, flags=re.MULTILINE)[1:]
    pattern = re.compile(rf"^from medloss\.({'|'.join(FAMILIES)})s?\.(\w+) import", re.MULTILINE)
    found = [
        (folder, name, which)
        for which, lines in zip(sections[::2], sections[1::2], strict=True)
        for folder, name in pattern.findall(lines)
    ]
    return {name: which for family in FAMILIES for folder, name, which in found if folder == family}


def loss_names(which: str = "all") -> tuple[str, ...]:
    """The names of the registered losses, in the order of `LOSSES`; `which`: `all`, or one of `LOSS_SETS`."""
    return tuple(name for name, of in loss_sets().items() if which in ("all", of))


def unknown_loss(name: str) -> str:
    """The message for a name that no registered loss has; it contains the nearest name that one has."""
    near = difflib.get_close_matches(name, loss_names(), n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"the losses are {', '.join(loss_names())}"
    return f"no loss '{name}'; {hint}"


def refuse_unknown_losses(expression: str) -> None:
    """Refuse a sum of losses with a name in it that no registered loss has; dotted paths are not checked.

    Args:
        expression: as `parse_expression` reads it.

    Raises:
        InputError: there is such a name, a preset that does not exist or does not have the loss, or the sum cannot be
            read.

    Example:
        >>> from medloss.names import refuse_unknown_losses
        >>> refuse_unknown_losses("dice+0.5*monai.losses.FocalLoss")
    """
    for term in parse_expression(expression):
        if "." not in term.loss and term.loss not in loss_names():
            raise InputError(f"loss: {unknown_loss(term.loss)}")
        if term.preset and "." not in term.loss:
            preset_arguments(term.preset, term.loss, softmax=True)
