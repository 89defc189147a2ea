"""The contents of a report: the table of results and, for a comparison's folder, costs, curves and failures."""

import statistics
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Case, Manifest, load_manifest
from pipelines.evaluation.calibration import Calibration, from_rows
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import at_tolerance, with_default
from pipelines.report.provenance import csv_facts, folder_facts
from pipelines.report.result_tables import TASK, ResultTable, read_results
from pipelines.report.subgroups import Groups, read_groups
from pipelines.runs.comparison_folder import SUBGROUPS, require_plan, run_folder
from pipelines.runs.curve_checks import (
    StoodStill,
    relative_steps,
    still_improving,
    still_improving_note,
    stood_still,
    stood_still_notes,
)
from pipelines.runs.plan import Plan, PlannedRun, Tuning
from pipelines.runs.summary import case_table, screening_notes, tolerance_of
from pipelines.statistics.table import CaseTable, check_table, refuse_disjoint, with_failed_runs
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated, counted

# The runs that can be compared if the comparison is not finished: the folds and seeds that all losses have.

#: What a plan names before training: attributes of `Plan` and `Collected`.
NAMED_BEFORE = ("reference", "metric", "margin", "further_metrics", "empty", "non_inferior")
#: A fold with a seed.
Block = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """The runs that are compared.

    Attributes:
        runs: finished or failed runs of the losses and blocks that are compared.
        blocks: the blocks in which all of these losses have ended.
        left_out: losses that are not compared, since too few of their runs have ended.
        dropped: blocks in which only some of the losses have ended.
    """

    runs: tuple[PlannedRun, ...]
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...]
    dropped: tuple[Block, ...]


def select(runs: list[PlannedRun], ended: Set[str]) -> Selection:
    """Select losses and blocks such that every loss has every block.

    A run that has not ended is not a failure, so its cases must not count as the worst.

    Args:
        runs: all runs of the plan.
        ended: ids of the runs that have finished or failed.
    """
    has: dict[str, set[Block]] = {run.config.loss: set() for run in runs}
    for run in runs:
        if run.id in ended:
            has[run.config.loss].add((run.config.fold, run.config.seed))
    kept = [loss for loss, blocks in has.items() if blocks]
    common: set[Block] = set()
    while kept and not (common := set.intersection(*(has[loss] for loss in kept))):
        # Losses are trained in the order of the plan: among equals, the last one is the least advanced.
        kept.remove(min(reversed(kept), key=lambda loss: len(has[loss])))
    return Selection(
        runs=tuple(r for r in runs if r.config.loss in kept and (r.config.fold, r.config.seed) in common),
        blocks=tuple(sorted(common)),
        left_out=tuple(loss for loss in has if loss not in kept),
        dropped=tuple(sorted(set().union(*has.values()) - common)),
    )


# The predictions for the pictures of individual cases.

#: Fold and seed in a table without such a column.
ONLY = "all"


@dataclass(frozen=True)
class PredictedCase:
    """One prediction that can be drawn. Loss, case, fold and seed are those of its rows in the table.

    Attributes:
        prediction: file of the label map; if it is missing, the report notes that.
        reference: file of the reference label, on the same grid.
        image: file of the image, on the same grid; `None`: the background is plain.
        values: the label values that were evaluated; others are drawn as background. `None`: all.
        ignore: label value of voxels that were not evaluated; they are drawn as background in both. `None`: none.
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
    folder: Path, plan: Plan, done: list[PlannedRun]
) -> tuple[tuple[PredictedCase, ...], str | None]:
    """The predictions that the finished runs of a comparison kept; if there are none, the reason."""
    if not any((run_folder(folder, run).path / "predictions").is_dir() for run in done):
        return (), "the runs kept no predictions (--no-predictions, or trained by an earlier version)"
    try:
        manifest, root = _data(plan)
    except UserError as error:
        return (), str(error).splitlines()[0]
    cases = {case.id: case for case in manifest.cases}
    found = []
    for run in done:
        run_dir, fold, seed = run_folder(folder, run), str(run.config.fold), str(run.config.seed)
        for name in dict.fromkeys(row["case"] for row in run_dir.cases):
            if name in cases:
                files = run_dir.prediction(name), root / cases[name].label, root / cases[name].images[0]
                counted = _evaluated_values(manifest, cases[name]), manifest.ignore
                found.append(PredictedCase(run.config.loss, name, *files, fold, seed, *counted))
    return tuple(found), None


def _evaluated_values(manifest: Manifest, case: Case) -> tuple[int, ...] | None:
    """The label values that count in a case: of regions, and of classes that it annotates; None: all."""
    if not manifest.regions and case.labelled is None:
        return None
    scheme = manifest.scheme
    parts = zip(scheme.parts.values(), scheme.annotated(case.labelled), strict=True)
    return tuple(sorted({value for values, counts in parts if counts for value in values}))


def _data(plan: Plan) -> tuple[Manifest, Path]:
    """The manifest that the comparison was trained with, and the current root of its files."""
    config = plan.runs[0].config
    manifest = load_manifest(config.manifest)
    if manifest.sha256 != plan.manifest_sha256:
        raise UserError(f"the manifest '{config.manifest}' has changed since training")
    try:
        return manifest, resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
    except UserError:
        # The data may have been moved to the current data root.
        return manifest, resolve_data(manifest)


@dataclass(frozen=True)
class Cost:
    """The cost of a loss, over its finished runs.

    Attributes:
        epoch_s: seconds per epoch without validation, median.
        peak_mb: peak memory in MB, maximum.
        seconds: duration of the runs in seconds, sum.
        runs: number of finished runs.
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
    """A failed run and its error."""

    loss: str
    fold: int
    seed: int
    error: str


@dataclass(frozen=True)
class Collected:
    """The contents of a report. `reference` to `non_inferior` are those of the plan; see `write_report`.

    Attributes:
        title: name of the data set or the table.
        table: the results.
        facts: provenance of the results, as headings with texts.
        notes: what a reader has to know first, one sentence each.
        costs: loss -> its cost; empty for a table.
        curves: learning curves of all runs; empty for a table.
        failures: the failed runs.
        reference: the reference loss, which may not have ended yet; `None`: there is no plan, or it is of an earlier
            version.
        predictions: label maps of the finished runs, for the pictures of individual cases.
        no_pictures: the reason if a comparison has no pictures.
        names: loss -> the loss that was trained under this name, if known.
        still: runs whose optimizer stood still.
        improving: losses that were still improving at the end of training, and by how much.
        steps: loss -> its ratio of update to weights, relative to the reference; empty if unknown.
        tuning: the learning rates that were tried before the comparison.
        calibration: loss -> how its probabilities agree with the references, over all cases; empty if unknown.
        groups: groups of the cases that were named before training.
    """

    title: str
    table: CaseTable
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    costs: dict[str, Cost] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()
    failures: tuple[Failure, ...] = ()
    reference: str | None = None
    metric: str = "dice"
    margin: float = 0.01
    further_metrics: dict[str, float | None] = field(default_factory=dict)
    empty: str = "one"
    non_inferior: bool = False
    predictions: tuple[PredictedCase, ...] = ()
    no_pictures: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    still: tuple[StoodStill, ...] = ()
    improving: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    tuning: Tuning | None = None
    calibration: dict[str, Calibration] = field(default_factory=dict)
    groups: Groups | None = None


def from_csv(path: Path, columns: Mapping[str, str] | None = None, metric: str | None = None) -> Collected:
    """Read a table of results of several methods; the first note, if any, is what was made of it.

    Args:
        path: the file.
        columns: names of columns to what they are, where names alone do not show it.
        metric: the metric of a table that does not name any; `None`: Dice.

    Raises:
        UserError: the file is not a table of results, or two of its losses have no case in common.
    """
    found = read_results(path, columns, metric)
    table = check_results(path, found)
    notes = () if found.description is None else (found.description,)
    return Collected(path.name, table, csv_facts(path, table), notes)


def check_results(path: Path, found: ResultTable) -> CaseTable:
    """Check a table that was read.

    Raises:
        UserError: it is not a table of results, or two of its losses have no case in common.
    """
    frame = found.frame
    if TASK in frame.columns:
        tasks = frame[TASK].unique()
        if len(tasks) > 1:
            raise UserError(
                f"{path}: got {counted(len(tasks), 'task')} ({abbreviated(tasks)}); expected one: keep the rows of "
                f"one, or, if they are classes of the same cases, pass --columns class={TASK}"
            )
        frame = frame.drop(columns=TASK)
    try:
        table = check_table(frame, METRICS)
        refuse_disjoint(table)
    except UserError as error:
        hint = ""
        if "repeated row" in str(error) and found.left_out:
            hint = f"; left out were {abbreviated(found.left_out)}: see --columns"
        raise UserError(f"{path}: {error}{hint}") from None
    return table


def from_folder(folder: Path) -> Collected:
    """Read a comparison's folder, finished or not.

    Raises:
        UserError: the folder is not a comparison, fewer than two losses have ended, or the files of a run are damaged.
    """
    plan = require_plan(folder)
    results = {run.id: run_folder(folder, run).result for run in plan.runs}
    ended = {key: result for key, result in results.items() if result is not None}
    done = {key: result for key, result in ended.items() if result.get("state") == "done"}
    selection = select(plan.runs, ended.keys())
    compared = list(dict.fromkeys(run.config.loss for run in selection.runs))
    finished = [run for run in selection.runs if run.id in done]
    if len(compared) < 2 or not finished:
        losses = {run.config.loss for run in plan.runs if run.id in done}
        raise UserError(
            f"{folder}: {len(done)} of {len(plan.runs)} runs are finished, of {len(losses)} loss(es); expected "
            f"at least two losses that have ended on the same fold and seed: see `medloss status {folder}`"
        )
    failed = [run for run in plan.runs if run.id in ended and run.id not in done]
    worst = [(run.config.loss, run.config.fold, run.config.seed) for run in failed if run in selection.runs]
    frame = _cases(folder, plan, finished)
    try:
        table = check_table(with_failed_runs(frame, worst), at_tolerance(tolerance_of(folder, plan)))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    still, improving = stood_still(folder, plan), still_improving(folder, plan)
    wanted = {plan.metric, *plan.further_metrics, *(name for run in plan.runs for name in run.config.metrics)}
    predictions, no_pictures = folder_predictions(folder, plan, finished)
    return Collected(
        title=plan.manifest_name,
        table=table,
        facts=folder_facts(folder, plan, done),
        notes=(
            *_notes(plan, len(ended), selection),
            *_missing_metrics(table, wanted),
            *stood_still_notes(plan, still),
            *still_improving_note(plan, improving),
        ),
        costs={
            loss: _cost([done[run.id] for run in plan.runs if run.id in done and run.config.loss == loss])
            for loss in compared
        },
        curves=tuple(_curve(folder, run, run in failed) for run in plan.runs if run.id in ended),
        failures=tuple(
            Failure(run.config.loss, run.config.fold, run.config.seed, str(ended[run.id].get("error")))
            for run in failed
        ),
        predictions=predictions,
        no_pictures=no_pictures,
        names={run.config.loss: run.config.trained_as for run in plan.runs},
        still=still,
        improving=improving,
        steps=relative_steps(folder, plan),
        tuning=plan.tuning,
        calibration=_calibration(folder, finished),
        groups=read_groups(folder / SUBGROUPS) if (folder / SUBGROUPS).is_file() else None,
        **{name: getattr(plan, name) for name in NAMED_BEFORE},
    )


def _cases(folder: Path, plan: Plan, runs: list[PlannedRun]) -> pd.DataFrame:
    """The cases of the runs, with the metrics that all runs have: a metric that a run did not compute is no failure."""
    missing: set[str] = set()
    for run in runs:
        run_dir = run_folder(folder, run)
        path = run_dir.path / "cases.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file, though the run is finished; remove its folder and train it again")
        rows = run_dir.cases
        if not all(row.get("case") for row in rows):
            raise UserError(f"{path} is damaged; remove its folder and train it again")
        missing.update(name for name in METRICS if rows and name not in rows[0])
    try:
        return case_table(folder, plan.model_copy(update={"runs": runs})).drop(columns=list(missing), errors="ignore")
    except ValueError as error:
        raise UserError(f"{folder}: a cases.csv is damaged: {str(error).splitlines()[0]}") from None


def _calibration(folder: Path, runs: list[PlannedRun]) -> dict[str, Calibration]:
    """The calibration of each loss, if all of its runs have measured it."""
    rows: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        rows.setdefault(run.config.loss, []).extend(of_run := run_folder(folder, run).calibration)
        if not of_run:
            return {}
    try:
        found = {loss: from_rows(of_loss) for loss, of_loss in rows.items()}
    except ValueError:
        raise UserError(f"{folder}: a calibration.csv is damaged; remove it") from None
    return {loss: of_loss for loss, of_loss in found.items() if of_loss is not None}


def _curve(folder: Path, run: PlannedRun, failed: bool) -> Curve:
    run_dir = run_folder(folder, run)
    try:
        epochs = run_dir.epochs
    except (ValueError, TypeError):
        raise UserError(f"{run_dir.path / 'epochs.csv'} is damaged; remove it") from None
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


def _missing_metrics(table: CaseTable, wanted: Iterable[str]) -> list[str]:
    missing = [METRICS[name].label for name in with_default(wanted) if name not in table.frame.columns]
    return [f"Left out, since some runs do not have these metrics: {', '.join(missing)}."] if missing else []


def _notes(plan: Plan, ended: int, selection: Selection) -> tuple[str, ...]:
    notes = []
    if ended < len(plan.runs):
        notes.append(f"The comparison is not finished: {ended} of {len(plan.runs)} runs have ended.")
    if selection.left_out:
        notes.append(f"Not compared, since too few of their runs have ended: {', '.join(selection.left_out)}.")
    if selection.dropped:
        dropped = ", ".join(f"fold {fold} seed {seed}" for fold, seed in selection.dropped)
        notes.append(f"Left out, since not all losses have ended there: {dropped}.")
    if plan.has_reference and plan.reference in selection.left_out:
        notes.append(f"The reference loss, {plan.reference}, has not ended: there is no verdict yet.")
    return (*notes, *plan.told, *screening_notes(plan))
