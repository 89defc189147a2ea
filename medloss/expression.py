"""Sums of losses as text: `dice`, `hausdorff_dt+dice@nnunet`, `0.2*focal+0.8*monai.losses.DiceLoss`."""

import math
import re
from dataclasses import dataclass

from medloss.errors import InputError

#: No loss has a hyphen in its name; one that is read so gets the nearest name suggested.
_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE]-?[0-9]+)?)\s*\*\s*)?(?P<name>[A-Za-z_][\w.-]*(?:@\w+)?)")


@dataclass(frozen=True)
class Term:
    """One loss of a sum, by name or dotted path, with a preset or none, and its weight."""

    weight: float
    name: str

    @property
    def loss(self) -> str:
        """The name without the preset."""
        return self.name.partition("@")[0]

    @property
    def preset(self) -> str:
        """The preset, or nothing."""
        return self.name.partition("@")[2]


def parse_expression(text: str) -> list[Term]:
    """Read a sum of losses.

    Args:
        text: terms joined by `+`, each a name or a dotted path, with a weight and `*` before it or none, and `@` and a
            preset of `medloss.presets` after it or none.

    Raises:
        InputError: it cannot be read, or a weight is not positive.

    Example:
        >>> from medloss.expression import parse_expression
        >>> parse_expression("0.2*focal+dice")
        [Term(weight=0.2, name='focal'), Term(weight=1.0, name='dice')]
        >>> parse_expression("dice@nnunet")[0].loss
        'dice'
    """
    terms = []
    for part in text.split("+"):
        match = _TERM.fullmatch(part.strip())
        try:
            weight = float(match["weight"] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if match is None or not (weight > 0 and math.isfinite(weight)):
            raise InputError(
                f"loss: cannot read '{part.strip()}' in '{text}'; expected a sum such as 0.2*focal+0.8*dice, "
                "with positive weights"
            )
        terms.append(Term(weight, match["name"]))
    return terms
