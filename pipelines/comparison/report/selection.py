"""Which runs of a comparison that is not finished can be compared: those of folds and seeds that all losses have."""

from collections.abc import Set
from dataclasses import dataclass

from pipelines.comparison.plan import PlannedRun

Block = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """What is compared.

    Attributes:
        runs: those that have ended, of losses and blocks that are compared.
        blocks: folds and seeds that all of the losses have.
        left_out: losses that are not compared, since too little of them has ended.
        dropped: blocks of which only some losses have ended.
    """

    runs: tuple[PlannedRun, ...]
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...]
    dropped: tuple[Block, ...]


def select(runs: list[PlannedRun], ended: Set[str]) -> Selection:
    """Choose losses and blocks so that every loss has every block.

    A case that a loss has not come to yet is no failure: counted as the worst it would decide the comparison.

    Args:
        runs: of the plan.
        ended: the ids of those of which nothing more will come.
    """
    has: dict[str, set[Block]] = {run.config.loss: set() for run in runs}
    for run in runs:
        if run.id in ended:
            has[run.config.loss].add(_block(run))
    kept = [loss for loss, blocks in has.items() if blocks]
    common: set[Block] = set()
    while kept and not (common := set.intersection(*(has[loss] for loss in kept))):
        # Losses are trained in the order of the plan: of equals the last one is the least far.
        fewest = min(len(has[loss]) for loss in kept)
        kept.remove([loss for loss in kept if len(has[loss]) == fewest][-1])
    began = {block for blocks in has.values() for block in blocks}
    return Selection(
        runs=tuple(run for run in runs if run.config.loss in kept and _block(run) in common),
        blocks=tuple(sorted(common)),
        left_out=tuple(loss for loss in has if loss not in kept),
        dropped=tuple(sorted(began - common)),
    )


def _block(run: PlannedRun) -> Block:
    return run.config.fold, run.config.seed
