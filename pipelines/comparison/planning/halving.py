"""Successive halving: short trainings of all losses, of which the worse half is dropped, twice; then the comparison.

After Karnin et al. (2013) and Jamieson and Talwalkar (2016, arXiv 1502.07943), with two changes:

- **Every rung trains anew**, with its own whole schedule, in place of going on from the checkpoint. The learning rate
  follows the run's length: a run stopped at a quarter has never had a low rate, and stands elsewhere than one that was
  planned so short; going on would compare networks in the middle of their schedules. Two rungs of a quarter and of
  half the epochs cost at most half of what training all losses on one fold does.
- **The cases that drop are not those that judge.** The rungs are run on a fold that the comparison does not have: one
  that was not asked for, or, where all were, the first, which the comparison then goes without. Chosen and measured
  on the same cases, survivors would look better than they are, and their p-values would be too small.

The reference is never dropped, so it needs no screening. A loss whose run failed is dropped first.
"""

import math

from pipelines.comparison.planning.records import Halving
from pipelines.errors import UserError

_SHARES = (0.25, 0.5)
#: Below so many losses beside the reference, or so many epochs, there is nothing to halve.
LEAST_LOSSES = LEAST_EPOCHS = 4


def plan_halving(
    losses: list[str], reference: str, folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Halving, list[int]]:
    """How losses are screened, and the folds that are left to compare the survivors on.

    Args:
        losses: all of them.
        reference: that is never dropped.
        folds: asked for.
        seeds: asked for; the first one screens.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: there are too few losses, epochs or folds.
    """
    racing = [loss for loss in losses if loss != reference]
    if len(racing) < LEAST_LOSSES:
        raise UserError(
            f"--halving: got {len(racing)} losses beside the reference; expected {LEAST_LOSSES} or more: "
            "compare so few without it"
        )
    if epochs < LEAST_EPOCHS:
        raise UserError(
            f"--halving: got {epochs} epochs; expected {LEAST_EPOCHS} or more, of which a quarter and half screen"
        )
    fold, left = screening_fold("--halving", folds, known)
    rungs = [round(epochs * share) for share in _SHARES]
    return Halving(fold=fold, seed=seeds[0], losses=racing, rungs=rungs), left


def screening_fold(flag: str, folds: list[int], known: list[int]) -> tuple[int, list[int]]:
    """The fold whose cases decide before the comparison, and those that are left to compare on.

    Args:
        flag: the option that needs one.
        folds: asked for.
        known: the data set's folds.

    Raises:
        UserError: there is one fold alone.
    """
    unused = [fold for fold in known if fold not in folds]
    fold = unused[0] if unused else folds[0]
    left = [other for other in folds if other != fold]
    if not left:
        raise UserError(
            f"{flag}: got a data set of one fold; expected two or more: the cases that decide before the comparison "
            "are not those that compare the losses"
        )
    return fold, left


def survivors(count: int) -> int:
    """How many of so many losses the two rungs leave."""
    for _ in _SHARES:
        count = better_half(count)
    return count


def better_half(count: int) -> int:
    """How many of so many losses a rung leaves: the better half, an odd one with it."""
    return math.ceil(count / 2)
