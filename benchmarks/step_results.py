"""What was measured of a training step, and the file that keeps it: one group per setting and regime."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step_settings import Setting
from pipelines.utils.files import read_json, write_text

OURS, COMPILED = "medloss", "torch, compiled"
#: A row that stands for all sides of a setting that was not measured.
_ALL = "all"


@dataclass(frozen=True)
class Found:
    """What was measured of a side in a regime: medians, milliseconds.

    Attributes:
        added: a step with the loss minus one with a constant gradient, of the same round.
        low, high: quartiles of `added`.
        place: the loss in place, forward and backward.
        step: the step with a constant gradient.
        memory: what the loss adds to the step's peak, in sizes of the logits; None where time was measured.
        note: why nothing was measured.
    """

    setting: str
    regime: str
    loss: str
    side: str
    added: float = 0.0
    low: float = 0.0
    high: float = 0.0
    place: float = 0.0
    step: float = 0.0
    memory: float | None = None
    note: str = ""


def found_from_json(data: dict[str, Any]) -> Found:
    """The row of `dataclasses.asdict`, to three places: so the page is the same before and after a file."""
    return Found(**{name: round(value, 3) if isinstance(value, float) else value for name, value in data.items()})


def not_measured(setting: Setting, regime: str, note: str) -> Found:
    """The row of a setting of which nothing was measured."""
    return Found(setting.key, regime, _ALL, _ALL, note=note)


@dataclass(frozen=True)
class Group:
    """What was measured of a setting in a regime, and on what.

    Attributes:
        rows: of every side.
        code: a digest of the sources that were measured.
        machine: processor, threads and versions.
        others: share of the cores that other processes used meanwhile; None where it is unknown.
    """

    rows: tuple[Found, ...]
    code: str
    machine: str
    others: float | None = None

    @property
    def complete(self) -> bool:
        """Whether the setting was measured at all."""
        return all(r.side != _ALL for r in self.rows)


#: By setting and regime.
Groups = dict[tuple[str, str], Group]


def read_groups(path: Path) -> Groups:
    """The groups of a file; none where there is no file."""
    found: dict[str, Any] = read_json(path) or {}
    groups: Groups = {}
    for data in found.get("groups", []):
        rows = tuple(found_from_json(r) for r in data["rows"])
        groups[data["setting"], data["regime"]] = Group(rows, data["code"], data["machine"], data["others"])
    return groups


def write_groups(path: Path, groups: Groups) -> None:
    """Write all groups."""
    data = [{"setting": s, "regime": r, **dataclasses.asdict(group)} for (s, r), group in groups.items()]
    write_text(path, json.dumps({"groups": data}, indent=1) + "\n")
