"""What so many patients could show at all."""

from collections.abc import Iterator

from pipelines.comparison.plan import NO_REFERENCE, Plan
from pipelines.comparison.planning.halving import survivors
from pipelines.comparison.planning.lines import counted, item
from pipelines.comparison.planning.matrix import Matrix
from pipelines.comparison.statistics.inference import least_patients
from pipelines.comparison.statistics.power import cases_needed, least_difference
from pipelines.dataset.manifest import Manifest
from pipelines.evaluation.registry import METRICS

#: Standard deviation over patients of the Dice difference of two networks, seen with two nnU-Nets on the hippocampus.
ASSUMED_SD = 0.018


def reach(plan: Plan, matrix: Matrix, manifest: Manifest) -> Iterator[str]:
    """The least difference that is found, and what is assumed for it, line by line.

    Args:
        plan: with reference, measure and margin.
        matrix: its runs; with halving, as if no loss were dropped.
        manifest: of the data set.
    """
    patients = len({case.patient for fold in matrix.folds for case in manifest.split(fold)[1]})
    losses = len(matrix.losses)
    if plan.halving is not None and not plan.halving.over:
        losses = 1 + survivors(len(plan.halving.losses))
    alone = plan.reference in (None, NO_REFERENCE)
    comparisons = losses * (losses - 1) // 2 if alone else losses - 1
    told = counted(patients, "patient")
    if comparisons < 1:
        yield from item("evidence", f"{told}; one loss: there is nothing to compare")
        return
    what = f"of {losses} losses" if alone else f"with {plan.reference}"
    noun = "pair" if alone else "comparison"
    yield from item("evidence", f"{told}; {counted(comparisons, noun)} {what}")
    least = least_patients()
    if patients < least:
        yield from item(
            "",
            f"Too few cases to tell: none of {counted(comparisons, noun)} can be significant below {least} patients, "
            "whatever the losses do. Take more --folds.",
        )
    yield from _least_difference(plan, matrix, patients, comparisons)


def _least_difference(plan: Plan, matrix: Matrix, patients: int, comparisons: int) -> Iterator[str]:
    metric = METRICS[plan.metric]
    known = plan.metric == "dice"
    sd = ASSUMED_SD if known else 1.0

    def shown(value: float | None) -> str:
        if value is None:
            return "none at all"
        return f"{value:.4f} {metric.label}" if known else f"{value:.2f} standard deviations"

    single = f"{shown(least_difference(sd, patients))} where it is the only one that is tested"
    family = f"{shown(least_difference(sd, patients, comparisons=comparisons))} as one of {comparisons}"
    yield from item(
        "",
        f"Least true mean difference found with 80 % power: {single if comparisons == 1 else f'{single}; {family}'}.",
    )
    if len(matrix.folds) * len(matrix.seeds) > 1:
        yield from item(
            "", "That is without what retraining changes, which several trainings show and words allow for."
        )
    if known:
        yield from item(
            "",
            f"Assumed: paired differences have a standard deviation of {ASSUMED_SD} Dice over patients, as those of "
            "two nnU-Nets on the hippocampus had. Yours is not known before training; the least difference grows in "
            "proportion to it.",
        )
        if plan.margin > 0:
            needed = cases_needed(plan.margin, sd, comparisons=comparisons)
            yield from item("", f"A difference as large as the margin, {plan.margin:g}, needs {needed} patients.")
    else:
        yield from item(
            "", f"The standard deviation of the paired differences in {metric.label} is not known before training."
        )
