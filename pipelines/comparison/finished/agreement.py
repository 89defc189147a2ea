"""Whether nnU-Net's own summaries say what was measured here: if not, files have changed since."""

import math
from collections.abc import Mapping, Sequence

from pipelines.comparison.finished.classes import Classes
from pipelines.comparison.finished.methods import Method
from pipelines.comparison.finished.nnunet_results import summary_dice

#: Both are ratios of the same whole numbers.
_ROUNDING = 1e-6


def summary_notes(
    methods: Sequence[Method], classes: Classes, dice: Mapping[tuple[str, str, str], float]
) -> tuple[list[str], list[str]]:
    """The methods whose summaries all say the same, and what differs, a sentence a summary.

    Args:
        methods: of which those of nnU-Net have summaries.
        classes: that were measured.
        dice: (method, prediction's path, class) -> Dice; NaN where it has no meaning.
    """
    agreed, differing = [], []
    for method in methods:
        same = []
        for validation in () if method.nnunet is None else method.nnunet.validations.values():
            told = summary_dice(validation, classes)
            compared = [(file, name, own, dice[key]) for (file, name), own in told.items()
                        if (key := (method.name, str(validation / file), name)) in dice]  # fmt: skip
            off = [row for row in compared if not _same(row[2], row[3])]
            if off:
                file, name, own, here = off[0]
                differing.append(
                    f"{method.name}: {validation.parent.name}/validation/summary.json has another Dice for {len(off)} "
                    f"of {len(compared)} cases and classes ({file}, {name}: {own:.4f} there, {here:.4f} here): "
                    "predictions, references or classes have changed since nnU-Net wrote it."
                )
            same.append(bool(compared) and not off)
        if same and all(same):
            agreed.append(method.name)
    return agreed, differing


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=_ROUNDING) or (math.isnan(one) and math.isnan(other))
