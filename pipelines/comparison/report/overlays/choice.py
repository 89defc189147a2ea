"""Which cases are shown: a loss's worst, median and best, and the one on which the losses differ most."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from pipelines.comparison.report.predicted import PredictedCase
from pipelines.comparison.statistics import CaseTable
from pipelines.comparison.statistics.scores import scores

#: Of every training that is shown, beside the primary measure.
_TOLD = ("dice", "hd95_mm")
#: Loss, case, fold and seed to measures.
Measures = dict[tuple[str, str, str, str], dict[str, float | None]]


@dataclass(frozen=True)
class Choice:
    """A case that is shown, and the training by which.

    Attributes:
        which: `worst`, `median`, `best`, `only`, or `most different`.
        predicted: the training's prediction of it.
        score: the loss's primary measure there, all its trainings averaged, as the statistics have it.
        own: measure -> this training's, mean over the classes; None: it has no meaning there, or the table lacks it.
        trainings: over how many predictions the score is averaged.
    """

    which: str
    predicted: PredictedCase
    score: float
    own: dict[str, float | None]
    trainings: int


def case_scores(table: CaseTable, metric: str, empty: str = "one") -> dict[str, dict[str, float]]:
    """Loss -> case -> the measure, made of the rows as the statistics make it, of each case by itself.

    A case is not there where the measure has no meaning.
    """
    # Of patients with several cases the statistics take the mean; a picture is of one.
    single = replace(table, frame=table.frame.assign(patient="case " + table.frame["case"]))
    found = scores(single, metric, empty=empty)
    return {
        loss: dict(zip(found.patients, values, strict=True))
        for loss, values in zip(found.losses, found.by_patient.tolist(), strict=True)
    }


def choose(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> dict[str, list[Choice]]:
    """Each loss's worst, median and best case, of those that it has a prediction of; of fewer than three all.

    Of an even number the median is the worse of the two in the middle; of equals the first by name is the worse.

    Args:
        table: the results.
        metric: the primary measure.
        predictions: of the trainings that ended well.
        empty: what counts where the reference has nothing of a class, as the statistics take it.
    """
    by_case = case_scores(table, metric, empty)
    own = _own(table, metric)
    chosen = {}
    for loss, of_loss in _grouped(predictions, by_case).items():
        sign = table.metrics[metric].sign
        order = sorted(of_loss, key=lambda case: (sign * by_case[loss][case], case))
        places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
        if len(order) == 2:
            del places["median"]
        if len(order) == 1:
            places = {"only": 0}
        chosen[loss] = [
            _choice(which, of_loss[order[place]], by_case[loss][order[place]], own, metric)
            for which, place in places.items()
        ]
    return chosen


def most_different(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> list[Choice]:
    """The case on which the losses' scores have the largest standard deviation: a choice a loss; none if all agree.

    Only cases count of which the most losses have a prediction; of equals the first by name is taken.
    """
    by_case = case_scores(table, metric, empty)
    groups = _grouped(predictions, by_case)
    losses: dict[str, list[str]] = {}
    for loss, of_loss in groups.items():
        for case in of_loss:
            losses.setdefault(case, []).append(loss)
    most = max((len(found) for found in losses.values()), default=0)
    spread = {
        case: float(np.std([by_case[loss][case] for loss in found]))
        for case, found in losses.items()
        if len(found) == most
    }
    if most < 2 or max(spread.values()) == 0:
        return []
    case = min(spread, key=lambda name: (-round(spread[name], 9), name))
    own = _own(table, metric)
    return [_choice("most different", groups[loss][case], by_case[loss][case], own, metric) for loss in losses[case]]


def _grouped(
    predictions: Iterable[PredictedCase], by_case: dict[str, dict[str, float]]
) -> dict[str, dict[str, list[PredictedCase]]]:
    """Loss -> case -> its trainings' predictions, of cases and losses that were compared."""
    groups: dict[str, dict[str, list[PredictedCase]]] = {}
    for one in predictions:
        if one.case in by_case.get(one.loss, {}):
            groups.setdefault(one.loss, {}).setdefault(one.case, []).append(one)
    return groups


def _own(table: CaseTable, metric: str) -> Measures:
    """A training's measures of a case, classes averaged."""
    names = [name for name in dict.fromkeys((metric, *_TOLD)) if name in table.metrics]
    means = table.frame.groupby(["loss", "case", "fold", "seed"])[names].mean()
    return {
        (str(loss), str(case), str(fold), str(seed)): {
            name: float(value) if np.isfinite(value) else None for name, value in zip(names, row, strict=True)
        }
        for (loss, case, fold, seed), row in zip(means.index, means.to_numpy(), strict=True)
    }


def _choice(which: str, predictions: list[PredictedCase], score: float, own: Measures, metric: str) -> Choice:
    """Of several trainings the one that is nearest to their mean."""
    told = {one: own.get((one.loss, one.case, one.fold, one.seed), {}) for one in predictions}

    def distance(one: PredictedCase) -> float:
        value = told[one].get(metric)
        return np.inf if value is None else round(abs(value - score), 9)

    nearest = min(predictions, key=lambda one: (distance(one), one.fold, one.seed))
    return Choice(which, nearest, score, told[nearest], len(predictions))
