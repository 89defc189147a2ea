"""`--metric dice,nsd` and `--margin dice=0.01,nsd=0.02`: the primary metrics, and the margin of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import refuse_unknown_metrics
from pipelines.statistics.table import in_report_order
from pipelines.utils import UserError

#: The margin of the first metric, and of further ones from 0 to 1, if none is named.
DEFAULT_MARGIN = 0.01


@dataclass(frozen=True)
class Primary:
    """The primary metrics, with the margin of each (None: equivalence is not tested); the first one orders losses."""

    margins: Mapping[str, float | None]

    @property
    def metric(self) -> str:
        """The first one."""
        return next(iter(self.margins))

    @property
    def margin(self) -> float:
        """Its margin."""
        return self.margins[self.metric] or 0.0

    @property
    def further(self) -> dict[str, float | None]:
        """The others, with their margins."""
        return {name: margin for name, margin in self.margins.items() if name != self.metric}


def primary_metrics(text: str, where: str = "--metric") -> tuple[str, ...]:
    """The primary metrics in a list such as `dice,nsd,lesion_f1`, in its order; `where` they were named.

    Raises:
        UserError: there is none, one is repeated, or losses cannot be compared by one.
    """
    names = [_full_name(name.strip()) for name in text.split(",")]
    known = in_report_order(METRICS)  # tests register others
    for name in names:
        if name not in known or known[name].target is not None:
            expected = ", ".join(name for name, entry in known.items() if entry.target is None)
            why = f", whose best value is {known[name].target:g}, between worse ones" if name in known else ""
            raise UserError(f"{where}: got '{name}'{why}; expected one of {expected}")
        if names.count(name) > 1:
            raise UserError(f"{where}: got '{name}' twice; expected each metric once")
    refuse_unknown_metrics(names, where)
    return tuple(names)


def read_margins(text: str) -> float | dict[str, float]:
    """One margin for all metrics such as `0.01`, or one per metric such as `dice=0.01,hd95=1`.

    Raises:
        UserError: there is no such metric, one is repeated, or a margin is out of range.
    """
    if "=" not in text:
        return _margin(text)
    margins: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        name = _full_name(name)
        refuse_unknown_metrics([name], "--margin")
        if name in margins:
            raise UserError(f"--margin: got {name} twice; expected each metric once")
        margins[name] = _margin(value, f"{name}=")
    return margins


def chosen_primary(
    names: Sequence[str], margin: float | Mapping[str, float] | None, default: Mapping[str, float | None] | None = None
) -> Primary:
    """The metrics with their margins.

    A margin without a name is that of the first metric, and of further ones from 0 to 1; others need theirs by name.

    Args:
        names: the primary metrics.
        margin: as `read_margins` returns it; None: not given.
        default: the margins that count if none is given, such as a plan's; None: `DEFAULT_MARGIN`.

    Raises:
        UserError: a margin of another metric.
    """
    if isinstance(margin, Mapping):
        for name in margin:
            if name not in names:
                raise UserError(
                    f"--margin: got {name}, which is no primary metric; expected some of {', '.join(names)}"
                )
    found: dict[str, float | None] = {}
    for name in names:
        alike = name == names[0] or METRICS[name].upper == 1
        plain = margin if isinstance(margin, float) else DEFAULT_MARGIN
        found[name] = plain if alike else None
        if not isinstance(margin, float) and default is not None and name in default:
            found[name] = default[name]
        if isinstance(margin, Mapping) and name in margin:
            found[name] = margin[name]
    return Primary(found)


def _full_name(name: str) -> str:
    """`hd95` is `hd95_mm`."""
    return f"{name}_mm" if name not in METRICS and f"{name}_mm" in METRICS else name


def _margin(text: str, of: str = "") -> float:
    try:
        given: float | str = float(text)
    except ValueError:
        given = f"'{text}'"
    if isinstance(given, str) or not (math.isfinite(given) and given >= 0):
        raise UserError(
            f"--margin: got {of}{given}; expected 0 or more, in the unit of the metric, or one per metric, such as "
            "dice=0.01,hd95=1"
        )
    return given
