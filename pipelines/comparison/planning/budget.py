"""Plans a comparison into a budget of time.

What gives way, and in which order, is decided by what it costs the answer; nothing of it looks at results:

1. **Seeds** beyond the first. A further fold brings new patients *and* another training; a further seed the training
   alone. The page then says that retraining is not covered.
2. **Folds**, the last first, down to the patients that Holm's test needs at all. Fewer patients widen the intervals,
   which the page shows; the question stays the same.
3. **Epochs**, evenly for all losses, down to half. Shorter trainings change the question: losses that learn slowly
   look worse than they are, and no interval shows that. So this comes after the folds. Each training still has its
   whole schedule. Epochs that were not asked for are the recipe's, and have half of them as their floor from the
   start: then they give way first, and take what time the folds leave.
4. **Losses**, the slowest first, never the reference: a loss left out cannot win. Chosen by time alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipelines.comparison.planning.lines import listed
from pipelines.comparison.planning.matrix import Matrix
from pipelines.comparison.statistics.inference import least_patients
from pipelines.duration import duration
from pipelines.errors import UserError

#: The share of the epochs below which a training is another one.
FLOOR = 0.5
#: The share of the budget that is planned: steps measured in a quiet moment are faster than an hour's mean.
PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class Fitted:
    """A plan that fits.

    Attributes:
        matrix: its runs.
        seconds: that they take; None: not known, where there is no budget.
        told: what gave way, a sentence each.
    """

    matrix: Matrix
    seconds: float | None
    told: tuple[str, ...]


def fit(
    asked: Matrix,
    minutes: float,
    seconds: Callable[[Matrix], float],
    patients: Callable[[tuple[int, ...]], int],
    slowness: Callable[[str], float],
    *,
    reference: str | None,
    epochs_asked: bool,
    least_losses: int = 2,
    least_epochs: int = 1,
) -> Fitted:
    """The largest plan, in the order above, that fits.

    Args:
        asked: everything; its epochs are the recipe's where none were asked for.
        minutes: the budget.
        seconds: that a plan takes.
        patients: how many validate in some folds.
        slowness: of a loss.
        reference: that is never left out; None: there is none.
        epochs_asked: whether the epochs were asked for.
        least_losses: that are needed at all.
        least_epochs: that are needed at all, whatever half of them is.

    Raises:
        UserError: nothing fits.
    """
    planned_s = minutes * 60 * PLANNED_SHARE
    left = asked
    while True:
        needed = least_patients()
        for candidate in _candidates(left, needed, patients, epochs_asked, least_epochs):
            fitting = _with_epochs(candidate, planned_s, seconds)
            if fitting is not None:
                return Fitted(fitting, seconds(fitting), _told(asked, fitting, minutes))
        others = [loss for loss in left.losses if loss != reference]
        if len(left.losses) <= least_losses or len(others) < 2:
            shape, epochs = list(_candidates(left, needed, patients, True, least_epochs))[-1]
            least = replace(shape, epochs=epochs)
            raise UserError(
                f"--budget: got {minutes:g} minutes, of which {PLANNED_SHARE:.0%} are planned; the least comparison "
                f"({', '.join(left.losses)}; {listed('fold', least.folds)}; {least.epochs} epochs) "
                f"takes about {duration(seconds(least))}, measuring included"
            )
        slowest = max(others, key=slowness)
        left = replace(left, losses=tuple(loss for loss in left.losses if loss != slowest))


def _candidates(
    left: Matrix, needed: int, patients: Callable[[tuple[int, ...]], int], epochs_asked: bool, least_epochs: int
) -> Iterator[tuple[Matrix, int]]:
    """Plans with the least epochs that each may have, the best first."""
    shapes = [replace(left, seeds=left.seeds[:count]) for count in range(len(left.seeds), 0, -1)]
    for count in range(len(left.folds) - 1, 0, -1):
        if patients(left.folds[:count]) < needed:
            break
        shapes.append(replace(left, seeds=left.seeds[:1], folds=left.folds[:count]))
    floor = max(math.ceil(left.epochs * FLOOR), least_epochs)
    if epochs_asked:
        yield from ((shape, left.epochs) for shape in shapes)
        yield shapes[-1], floor
    else:
        yield from ((shape, floor) for shape in shapes)


def _with_epochs(candidate: tuple[Matrix, int], planned_s: float, seconds: Callable[[Matrix], float]) -> Matrix | None:
    """The candidate with as many epochs as fit, at least its own; None: not even those."""
    shape, least = candidate
    low, high = least, shape.epochs
    if seconds(replace(shape, epochs=least)) > planned_s:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(replace(shape, epochs=middle)) <= planned_s:
            low = middle
        else:
            high = middle - 1
    return replace(shape, epochs=low)


def _told(asked: Matrix, planned: Matrix, minutes: float) -> tuple[str, ...]:
    told = []
    budget = f"to fit {minutes:g} minutes"
    if planned.seeds != asked.seeds:
        told.append(
            f"Planned {budget}: {listed('seed', planned.seeds)} of the {len(asked.seeds)} asked for; a further fold "
            "tells more than a further seed."
        )
    if planned.folds != asked.folds:
        told.append(
            f"Planned {budget}: {listed('fold', planned.folds)} of the {len(asked.folds)} asked for; fewer patients "
            "widen the intervals."
        )
    if planned.epochs != asked.epochs:
        told.append(
            f"Planned {budget}: {planned.epochs} epochs in place of {asked.epochs}, for all losses alike; losses that "
            "learn slowly may look worse than with all of them."
        )
    told += [
        f"Planned {budget}: {loss} is left out, being among the slowest; nothing is known of it."
        for loss in asked.losses
        if loss not in planned.losses
    ]
    return tuple(told)
