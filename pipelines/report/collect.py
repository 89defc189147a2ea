"""What a report is made of: the table of results, and of a comparison's folder costs, curves and failures."""

import statistics
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.report.provenance import csv_facts, folder_facts
from pipelines.runs.comparison_folder import (
    StoodStill,
    relative_steps,
    require_plan,
    run_folder,
    stood_still,
    stood_still_notes,
)
from pipelines.runs.plan import NO_REFERENCE, Plan, PlannedRun, Tuning
from pipelines.runs.summary import case_table, screening_notes
from pipelines.statistics.table import CaseTable, check_table, read_table, refuse_disjoint, with_failed_runs
from pipelines.utils import UserError

# Which runs of a comparison that is not finished can be compared: those of folds and seeds that all losses have.

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


# The predictions that pictures of single cases are drawn from: where they lie, and what they belong to.

#: A fold or seed of a table that has no such column.
ONLY = "all"


@dataclass(frozen=True)
class PredictedCase:
    """One prediction that can be drawn. Its scores are the rows of the table with this loss, case, fold and seed.

    Attributes:
        loss: as the table has it.
        case: as the table has it.
        prediction: the label map's file; it may be missing, which the report then says.
        reference: the file of the label that it is measured by, on the same grid.
        image: the image's file, on the same grid; None: there is none, and the background is plain.
        fold: as the table has it.
        seed: as the table has it.
        values: the label values that were measured; others are drawn as background. None: all.
        ignore: the label's value of voxels that were not counted; they are drawn as background in both. None: none.
    """

    loss: str
    case: str
    prediction: Path
    reference: Path
    image: Path | None = None
    fold: str = ONLY
    seed: str = ONLY
    values: tuple[int, ...] | None = None
    ignore: int | None = None


def folder_predictions(
    folder: Path, plan: Plan, done: Iterable[PlannedRun]
) -> tuple[tuple[PredictedCase, ...], str | None]:
    """The predictions that a comparison's finished runs kept; else the reason why there are none to draw.

    Args:
        folder: the comparison's.
        plan: its plan.
        done: its finished runs.
    """
    runs = list(done)
    kept = [run for run in runs if (run_folder(folder, run).path / "predictions").is_dir()]
    if not kept:
        return (), "the runs kept no predictions (--no-predictions, or trained by an earlier version)"
    try:
        manifest, root = _data(plan)
    except UserError as error:
        return (), str(error).splitlines()[0]
    cases = {case.id: case for case in manifest.cases}
    return tuple(
        PredictedCase(
            loss=run.config.loss,
            case=name,
            prediction=run_folder(folder, run).prediction(name),
            reference=root / cases[name].label,
            image=root / cases[name].image,
            fold=str(run.config.fold),
            seed=str(run.config.seed),
        )
        for run in runs
        for name in dict.fromkeys(row["case"] for row in run_folder(folder, run).cases)
        if name in cases
    ), None


def _data(plan: Plan) -> tuple[Manifest, Path]:
    """The manifest that the comparison was trained with, and the root of its files, where these are now."""
    config = plan.runs[0].config
    manifest = load_manifest(config.manifest)
    if manifest.sha256 != plan.manifest_sha256:
        raise UserError(f"the manifest '{config.manifest}' has changed since the training")
    try:
        return manifest, resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
    except UserError:
        # The data may have moved, and be named anew.
        return manifest, resolve_data(manifest)


@dataclass(frozen=True)
class Cost:
    """What a loss costs; over its finished runs.

    Attributes:
        epoch_s: median seconds an epoch, validation not counted.
        peak_mb: the largest peak memory, MB.
        seconds: the trainings' time, summed up.
        runs: how many finished.
    """

    epoch_s: float | None
    peak_mb: float | None
    seconds: float | None
    runs: int


@dataclass(frozen=True)
class Curve:
    """The epochs of one run: rows of `epochs.csv`."""

    loss: str
    fold: int
    seed: int
    failed: bool
    epochs: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    loss: str
    fold: int
    seed: int
    error: str


@dataclass(frozen=True)
class Collected:
    """What a report is made of.

    Attributes:
        title: the data set's name, or the table's.
        table: the results.
        facts: what was run, heading and text.
        notes: what was left out, a sentence each.
        costs: loss -> what it costs; empty for a table alone.
        curves: every run's; empty for a table alone.
        failures: runs that failed.
        reference: that the plan named before training, which may not have ended yet; None: there is no plan, or an
            older one.
        metric: the plan's primary measure.
        margin: the plan's.
        empty: the plan's: what counts where the reference has nothing of a class.
        non_inferior: the plan's.
        predictions: label maps of the trainings that ended well, to draw single cases of.
        no_pictures: why there are none, where there could be some.
        names: loss -> what was trained in its name, where that is known.
        still: runs whose optimizer stood still.
        steps: loss -> how large its steps were, over the reference's; empty where that is not known.
        tuning: the learning rates that were tried before.
    """

    title: str
    table: CaseTable
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    costs: dict[str, Cost] | None = None
    curves: tuple[Curve, ...] = ()
    failures: tuple[Failure, ...] = ()
    reference: str | None = None
    metric: str = "dice"
    margin: float = 0.01
    empty: str = "one"
    non_inferior: bool = False
    predictions: tuple[PredictedCase, ...] = ()
    no_pictures: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    still: tuple[StoodStill, ...] = ()
    steps: dict[str, float] = field(default_factory=dict)
    tuning: Tuning | None = None


def from_csv(path: Path) -> Collected:
    """Read a table of results.

    Raises:
        UserError: not such a table, or two of its losses have no case in common.
    """
    table = read_table(path, METRICS)
    try:
        refuse_disjoint(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Collected(path.name, table, csv_facts(path, table))


def from_folder(folder: Path) -> Collected:
    """Read a comparison's folder, finished or not.

    Raises:
        UserError: no comparison, fewer than two losses have ended, or a run's files are damaged.
    """
    plan = require_plan(folder)
    results = {run.id: run_folder(folder, run).result for run in plan.runs}
    ended = {run.id for run in plan.runs if results[run.id] is not None}
    done = {run.id for run in plan.runs if (results[run.id] or {}).get("state") == "done"}
    selection = select(plan.runs, ended)
    compared = list(dict.fromkeys(run.config.loss for run in selection.runs))
    if len(compared) < 2 or not any(run.id in done for run in selection.runs):
        raise UserError(
            f"{folder}: {len(done)} of {len(plan.runs)} runs are finished, of {_losses(plan, done)} loss(es); expected "
            f"at least two losses that have ended on the same fold and seed: see `medloss status {folder}`"
        )
    frame = _cases(folder, plan, [run for run in selection.runs if run.id in done])
    failed = [run for run in plan.runs if run.id in ended - done]
    worst = [(run.config.loss, run.config.fold, run.config.seed) for run in failed if run in selection.runs]
    try:
        table = check_table(with_failed_runs(frame, worst), METRICS)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    still = stood_still(folder, plan)
    predictions, no_pictures = folder_predictions(folder, plan, [run for run in selection.runs if run.id in done])
    return Collected(
        title=plan.manifest_name,
        table=table,
        facts=folder_facts(folder, plan, {key: own for key, own in results.items() if own and key in done}),
        notes=(*_notes(plan, ended, selection), *_missing_metrics(table), *stood_still_notes(plan, still)),
        costs={loss: _cost([results[r.id] or {} for r in plan.runs if r.id in done and r.config.loss == loss])
               for loss in compared},
        curves=tuple(_curve(folder, run, run.id not in done) for run in plan.runs if run.id in ended),
        failures=tuple(
            Failure(run.config.loss, run.config.fold, run.config.seed, str((results[run.id] or {}).get("error")))
            for run in failed
        ),
        reference=plan.reference,
        metric=plan.metric,
        margin=plan.margin,
        empty=plan.empty,
        non_inferior=plan.non_inferior,
        predictions=predictions,
        no_pictures=no_pictures,
        names={run.config.loss: run.config.trained_as for run in plan.runs},
        still=still,
        steps=relative_steps(folder, plan),
        tuning=plan.tuning,
    )  # fmt: skip


def _losses(plan: Plan, ids: set[str]) -> int:
    return len({run.config.loss for run in plan.runs if run.id in ids})


def _cases(folder: Path, plan: Plan, runs: list[PlannedRun]) -> pd.DataFrame:
    """The runs' cases, with the metrics that all of them have: what a run did not measure is not its failure."""
    missing: set[str] = set()
    for run in runs:
        own = run_folder(folder, run)
        path = own.path / "cases.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file, though the run is finished; remove its folder and train it again")
        rows = own.cases
        if not all(row.get("case") for row in rows):
            raise UserError(f"{path} is damaged; remove its folder and train it again")
        missing.update(name for name in METRICS if rows and name not in rows[0])
    try:
        return case_table(folder, plan.model_copy(update={"runs": runs})).drop(columns=list(missing))
    except ValueError as error:
        raise UserError(f"{folder}: a cases.csv is damaged: {str(error).splitlines()[0]}") from None


def _curve(folder: Path, run: PlannedRun, failed: bool) -> Curve:
    own = run_folder(folder, run)
    try:
        epochs = own.epochs
    except (ValueError, TypeError):
        raise UserError(f"{own.path / 'epochs.csv'} is damaged; remove it") from None
    return Curve(run.config.loss, run.config.fold, run.config.seed, failed, tuple(epochs))


def _cost(results: list[dict[str, Any]]) -> Cost:
    def known(key: str) -> list[float]:
        return [float(result[key]) for result in results if result.get(key) is not None]

    epoch_s, peak_mb, seconds = known("epoch_s"), known("peak_mb"), known("seconds")
    return Cost(
        epoch_s=statistics.median(epoch_s) if epoch_s else None,
        peak_mb=max(peak_mb) if peak_mb else None,
        seconds=sum(seconds) if seconds else None,
        runs=len(results),
    )


def _missing_metrics(table: CaseTable) -> list[str]:
    missing = [metric.label for name, metric in METRICS.items() if name not in table.metrics]
    return [f"Left out, since some runs were trained before it was measured: {', '.join(missing)}."] if missing else []


def _notes(plan: Plan, ended: set[str], selection: Selection) -> tuple[str, ...]:
    told = []
    if len(ended) < len(plan.runs):
        told.append(f"The comparison is not finished: {len(ended)} of {len(plan.runs)} runs have ended.")
    if selection.left_out:
        told.append(f"Not compared, since too little of them has ended: {', '.join(selection.left_out)}.")
    if selection.dropped:
        dropped = ", ".join(f"fold {fold} seed {seed}" for fold, seed in selection.dropped)
        told.append(f"Left out, since not every loss has ended there: {dropped}.")
    if plan.reference not in (None, NO_REFERENCE) and plan.reference in selection.left_out:
        told.append(f"The reference that was named before training, {plan.reference}, has not ended: no verdict yet.")
    return (*told, *plan.told, *screening_notes(plan))
