"""What `--dry-run` prints: remaining runs, their time, memory and disk, and the differences they could detect."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pipelines.comparison.budget import Forecast
from pipelines.comparison.execution import Comparison
from pipelines.comparison.screening import begun_rungs
from pipelines.data.manifest import Manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import RunState, read_plan, run_states
from pipelines.runs.plan import NO_REFERENCE, Plan, RunGrid, RunShape, run_shapes, survivors
from pipelines.runs.summary import plan_lines, rung_title
from pipelines.statistics.mean_difference import least_patients
from pipelines.statistics.results import cases_needed, least_difference
from pipelines.utils.text import Column, counted, duration, item, numbers, table_lines


def dry_run(folder: Path, plan: Plan, grid: RunGrid, forecast: Forecast, jobs: int) -> Iterator[str]:
    """The report of a dry run, line by line.

    Args:
        folder: of the comparison, which need not exist.
        plan: what would be trained.
        grid: its runs; with halving, as if no loss were dropped.
        forecast: of times and sizes.
        jobs: runs at a time.
    """
    stages = remaining_stages(folder, plan, grid, forecast)
    states = [] if read_plan(folder) is None else run_states(folder, plan)
    yield "Dry run: nothing is trained, and nothing is written."
    yield ""
    yield from plan_lines(plan, grid)
    yield from _training(grid, forecast)
    yield from item("there", _existing(folder, plan, states))
    yield ""
    yield from _losses(grid, forecast, states)
    yield ""
    yield from _times(forecast, stages, jobs)
    yield from _memory(forecast, stages, jobs)
    yield from _disk(folder, forecast, stages, jobs)
    yield ""
    yield from detectable_difference(plan, grid, forecast.manifest)


def _training(grid: RunGrid, forecast: Forecast) -> Iterator[str]:
    config, fold = forecast.measured.config, grid.folds[0]
    train, validate = (len(cases) for cases in forecast.manifest.split(fold))
    patch = " x ".join(map(str, config.patch_size or ()))
    yield from item(
        "training",
        f"{config.network}, {counted(config.batch_size or 1, 'patch')} of {patch} voxels per step; of fold {fold} "
        f"{counted(train, 'case')} train in {counted(forecast.steps(fold), 'step')} per epoch, and "
        f"{validate} validate {'each epoch' if config.val_interval == 1 else f'every {config.val_interval} epochs'}",
    )


def _existing(folder: Path, plan: Plan, states: Sequence[RunState]) -> str:
    """The states of the runs that the folder has already."""
    rungs = begun_rungs(Comparison(folder, plan))
    if not states and not rungs:
        return f"nothing yet in {folder}"
    parts = [f"{_state_counts(rung.states)} of {rung_title(rung.plan)}" for rung in rungs]
    return f"{'; '.join([*parts, f'{_state_counts(states)} of the runs'])}, in {folder}"


def _state_counts(states: Sequence[RunState]) -> str:
    count = Counter(state.state for state in states)
    words = [word for word in ("done", "failed", "running", "interrupted", "waiting") if count[word]]
    return ", ".join(f"{count[word]} {word}" for word in words)


def _losses(grid: RunGrid, forecast: Forecast, states: Sequence[RunState]) -> Iterator[str]:
    columns = [Column("loss"), *numbers("runs", "done", "s/step", "s/epoch", "min/run", "min in all", "peak MB")]
    rows = []
    failing = []
    runs = len(grid.folds) * len(grid.seeds)
    for loss in grid.losses:
        step = forecast.measured.steps[loss]
        done = sum(state.state == "done" and state.run.config.loss == loss for state in states)
        cells = [loss, str(runs), str(done)]
        if step.seconds is None:
            failing.append(f"{loss} fails: {step.error}")
            rows.append([*cells, "-", "-", "-", "-", "-"])
            continue
        seconds = [forecast.run_s(run) for run in run_shapes(grid) if run.loss == loss]
        rows.append(
            [
                *cells,
                f"{step.seconds:.3f}",
                f"{forecast.epoch_s(loss, grid.folds[0]):.1f}",
                f"{seconds[0] / 60:.1f}",
                f"{sum(seconds) / 60:.1f}",
                f"{step.peak_mb:.0f}",
            ]
        )
    yield from table_lines(columns, rows)
    for failure in failing:
        yield from item("warning:", failure)


def _times(forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    remaining = [run for stage in stages for run in stage]
    if not remaining:
        yield from item("time", "all runs have ended: only table, report and MLflow remain")
        return
    parts = {
        "to prepare the cases": forecast.measured.prepare_s,
        "for all runs, one after another": sum(forecast.run_s(run) for run in remaining),
        f"in all, {counted(jobs, 'job')} at a time": forecast.total_s(stages, jobs),
    }
    for index, (what, seconds) in enumerate(parts.items()):
        yield from item("" if index else "time", f"about {duration(seconds)} {what}")
    case_s = forecast.measured.common.case_s
    yield from item(
        "",
        f"(including validation, at {case_s:.2f} s per case; all measured just now with {counted(jobs, 'job')} at a "
        "time: a machine that gets busier takes longer)",
    )


def _memory(forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    measured = forecast.measured
    peak = max([measured.common.peak_mb, *(step.peak_mb for step in measured.steps.values())])
    if measured.device != "cpu":
        yield from item("memory", f"{_size(peak)} of the GPU per job at its peak")
        return
    jobs = min(jobs, max((len(stage) for stage in stages), default=0))
    free = psutil.virtual_memory().available / 2**20
    yield from item("memory", f"{_size(jobs * peak)} at its peak ({jobs} x {_size(peak)}); {_size(free)} are free")
    if jobs * peak > free:
        yield from item("warning:", "too little memory for so many jobs: lower --jobs, --batch-size or --patch")


def _disk(folder: Path, forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    parts = forecast.disk_mb(stages, jobs)
    need = sum(parts.values())
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**20
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
    yield from item("disk", f"{_size(need)} more ({sizes}); {_size(free)} are free at {existing}")
    if need > free:
        yield from item("warning:", f"too little disk: {_size(need - free)} are missing; name a folder on another one")


def _size(megabytes: float) -> str:
    if megabytes < 1:
        return "under 1 MB"
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


# The remaining runs of a plan.


def remaining_stages(folder: Path, plan: Plan, grid: RunGrid, forecast: Forecast) -> list[list[RunShape]]:
    """The remaining runs, stage by stage; see `Forecast.stages`.

    Args:
        folder: of the comparison, which need not exist.
        plan: of the comparison.
        grid: its runs; with halving, as if no loss were dropped.
        forecast: of the runs' times.
    """
    if read_plan(folder) is None:
        return forecast.stages(grid, plan.halving, plan.tuning)
    if (plan.halving is None or plan.halving.over) and (plan.tuning is None or plan.tuning.over):
        return [_remaining(run_states(folder, plan))]
    stages = forecast.stages(grid, plan.halving, plan.tuning)
    for place, rung in enumerate(begun_rungs(Comparison(folder, plan))):
        stages[place] = _remaining(rung.states)
    return stages


def _remaining(states: Sequence[RunState]) -> list[RunShape]:
    return [
        RunShape(state.run.config.loss, state.run.config.fold, state.epochs, state.epoch)
        for state in states
        if not state.finished
    ]


# The smallest difference that the patients could show.

#: Standard deviation over patients of the Dice difference of two networks, observed with two nnU-Nets on the
#: hippocampus.
ASSUMED_SD = 0.018


def detectable_difference(plan: Plan, grid: RunGrid, manifest: Manifest) -> Iterator[str]:
    """The least difference that would be detected, and its assumptions, line by line.

    Args:
        plan: with reference, metric and margin.
        grid: its runs; with halving, as if no loss were dropped.
        manifest: of the data set.
    """
    patients = len({case.patient for fold in grid.folds for case in manifest.split(fold)[1]})
    losses = len(grid.losses)
    if plan.halving is not None and not plan.halving.over:
        losses = 1 + survivors(len(plan.halving.losses))
    paired = plan.reference in (None, NO_REFERENCE)
    comparisons = losses * (losses - 1) // 2 if paired else losses - 1
    count = counted(patients, "patient")
    if comparisons < 1:
        yield from item("evidence", f"{count}; one loss: there is nothing to compare")
        return
    what = f"of {losses} losses" if paired else f"with {plan.reference}"
    noun = "pair" if paired else "comparison"
    yield from item("evidence", f"{count}; {counted(comparisons, noun)} {what}")
    least = least_patients()
    if patients < least:
        yield from item(
            "",
            f"Too few cases: none of {counted(comparisons, noun)} can be significant below {least} patients, "
            "whatever the losses do. Take more --folds.",
        )
    yield from _least_difference(plan, grid, patients, comparisons)


def _least_difference(plan: Plan, grid: RunGrid, patients: int, comparisons: int) -> Iterator[str]:
    metric = METRICS[plan.metric]
    known = plan.metric == "dice"
    sd = ASSUMED_SD if known else 1.0

    def shown(value: float | None) -> str:
        if value is None:
            return "none at all"
        return f"{value:.4f} {metric.label}" if known else f"{value:.2f} standard deviations"

    single = f"{shown(least_difference(sd, patients))} where it is the only one tested"
    family = f"{shown(least_difference(sd, patients, comparisons=comparisons))} as one of {comparisons}"
    yield from item(
        "",
        f"Least true mean difference found with 80 % power: {single if comparisons == 1 else f'{single}; {family}'}.",
    )
    if len(grid.folds) * len(grid.seeds) > 1:
        yield from item(
            "", "This does not include the variation of retraining, which the report estimates from several runs."
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
