"""What `--dry-run` prints: remaining runs, their time, memory and disk, and the differences they could detect."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pipelines.comparison.budget import Forecast
from pipelines.comparison.execution import Comparison
from pipelines.comparison.rounds import begun_rungs
from pipelines.data.manifest import Manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import RunState, read_plan, run_states
from pipelines.runs.plan import NO_REFERENCE, Plan, RunGrid, RunShape, run_shapes, survivors
from pipelines.runs.summary import plan_lines, rung_title
from pipelines.statistics.mean_difference import least_patients
from pipelines.statistics.results import cases_needed, least_difference
from pipelines.utils.tables import Column, numbers, table_lines
from pipelines.utils.text import counted, duration, item

# What `--dry-run` prints: the runs, their time, memory and disk, and what they could show.


def dry_run(folder: Path, plan: Plan, grid: RunGrid, forecast: Forecast, jobs: int) -> Iterator[str]:
    """Everything, line by line.

    Args:
        folder: where the comparison would lie.
        plan: what would be trained.
        grid: its runs; with halving, as if no loss were dropped.
        forecast: of times and sizes.
        jobs: runs at a time.
    """
    stages = stages_left(folder, plan, grid, forecast)
    states = [] if read_plan(folder) is None else run_states(folder, plan)
    yield "Dry run: nothing is trained, and nothing is written."
    yield ""
    yield from plan_lines(plan, grid)
    yield from _training(grid, forecast)
    yield from item("there", _there(folder, plan, states))
    yield ""
    yield from _losses(grid, forecast, states)
    yield ""
    yield from _times(forecast, stages, jobs)
    yield from _memory(forecast, stages, jobs)
    yield from _disk(folder, forecast, stages, jobs)
    yield ""
    yield from reach(plan, grid, forecast.manifest)


def _training(grid: RunGrid, forecast: Forecast) -> Iterator[str]:
    config, fold = forecast.measured.config, grid.folds[0]
    train, validate = (len(cases) for cases in forecast.manifest.split(fold))
    patch = " x ".join(map(str, config.patch_size or ()))
    yield from item(
        "training",
        f"{config.network}, {counted(config.batch_size or 1, 'patch')} of {patch} voxels a step; of fold {fold} "
        f"{counted(train, 'case')} train in {counted(forecast.steps(fold), 'step')} an epoch, and "
        f"{validate} validate {'each epoch' if config.val_interval == 1 else f'every {config.val_interval} epochs'}",
    )


def _there(folder: Path, plan: Plan, states: Sequence[RunState]) -> str:
    """What of the runs is in the folder already."""
    rungs = begun_rungs(Comparison(folder, plan))
    if not states and not rungs:
        return f"nothing yet in {folder}"
    told = [f"{_words(rung.states)} of {rung_title(rung.plan)}" for rung in rungs]
    return f"{'; '.join([*told, f'{_words(states)} of the runs'])}, in {folder}"


def _words(states: Sequence[RunState]) -> str:
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
        own = [loss, str(runs), str(done)]
        if step.seconds is None:
            failing.append(f"{loss} fails: {step.error}")
            rows.append([*own, "-", "-", "-", "-", "-"])
            continue
        seconds = [forecast.run_s(run) for run in run_shapes(grid) if run.loss == loss]
        rows.append(
            [
                *own,
                f"{step.seconds:.3f}",
                f"{forecast.epoch_s(loss, grid.folds[0]):.1f}",
                f"{seconds[0] / 60:.1f}",
                f"{sum(seconds) / 60:.1f}",
                f"{step.peak_mb:.0f}",
            ]
        )
    yield from table_lines(columns, rows)
    for told in failing:
        yield from item("warning:", told)


def _times(forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    left = [run for stage in stages for run in stage]
    if not left:
        yield from item("time", "all runs have ended: what is left are table, report and MLflow")
        return
    parts = {
        "to prepare the cases": forecast.measured.prepare_s,
        "for all trainings, were they one after another": sum(forecast.run_s(run) for run in left),
        f"in all, {counted(jobs, 'job')} at a time": forecast.total_s(stages, jobs),
    }
    for index, (what, seconds) in enumerate(parts.items()):
        yield from item("" if index else "time", f"about {duration(seconds)} {what}")
    case_s = forecast.measured.common.case_s
    yield from item(
        "",
        f"(validation included, at {case_s:.2f} s a case; all measured just now with {counted(jobs, 'job')} at a time: "
        "a machine that gets busier takes longer)",
    )


def _memory(forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    own = forecast.measured
    peak = max([own.common.peak_mb, *(step.peak_mb for step in own.steps.values())])
    if own.device != "cpu":
        yield from item("memory", f"{_size(peak)} of the GPU at its peak, a job")
        return
    jobs = min(jobs, max((len(stage) for stage in stages), default=0))
    free = psutil.virtual_memory().available / 2**20
    yield from item("memory", f"{_size(jobs * peak)} at its peak ({jobs} x {_size(peak)}); {_size(free)} are free")
    if jobs * peak > free:
        yield from item("warning:", "memory does not suffice for so many jobs: lower --jobs, --batch-size or --patch")


def _disk(folder: Path, forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    parts = forecast.disk_mb(stages, jobs)
    need = sum(parts.values())
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 2**20
    told = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
    yield from item("disk", f"{_size(need)} more ({told}); {_size(free)} are free at {there}")
    if need > free:
        lacking = f"the disk does not suffice: {_size(need - free)} are lacking; name a folder on another one"
        yield from item("warning:", lacking)


def _size(megabytes: float) -> str:
    if megabytes < 1:
        return "under 1 MB"
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


# What of a plan is left to train, read from the folders alone.


def stages_left(folder: Path, plan: Plan, grid: RunGrid, forecast: Forecast) -> list[list[RunShape]]:
    """What is left to train, one stage after another; see `Forecast.stages`.

    Args:
        folder: the comparison's, which may not be there.
        plan: of the comparison.
        grid: its runs; with halving, as if no loss were dropped.
        forecast: knows which losses are slow.
    """
    if read_plan(folder) is None:
        return forecast.stages(grid, plan.halving, plan.tuning)
    if (plan.halving is None or plan.halving.over) and (plan.tuning is None or plan.tuning.over):
        return [_left(run_states(folder, plan))]
    stages = forecast.stages(grid, plan.halving, plan.tuning)
    for place, rung in enumerate(begun_rungs(Comparison(folder, plan))):
        stages[place] = _left(rung.states)
    return stages


def _left(states: Sequence[RunState]) -> list[RunShape]:
    return [
        RunShape(state.run.config.loss, state.run.config.fold, state.epochs, state.epoch)
        for state in states
        if not state.finished
    ]


# What so many patients could show at all.

#: Standard deviation over patients of the Dice difference of two networks, seen with two nnU-Nets on the hippocampus.
ASSUMED_SD = 0.018


def reach(plan: Plan, grid: RunGrid, manifest: Manifest) -> Iterator[str]:
    """The least difference that is found, and what is assumed for it, line by line.

    Args:
        plan: with reference, measure and margin.
        grid: its runs; with halving, as if no loss were dropped.
        manifest: of the data set.
    """
    patients = len({case.patient for fold in grid.folds for case in manifest.split(fold)[1]})
    losses = len(grid.losses)
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
    yield from _least_difference(plan, grid, patients, comparisons)


def _least_difference(plan: Plan, grid: RunGrid, patients: int, comparisons: int) -> Iterator[str]:
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
    if len(grid.folds) * len(grid.seeds) > 1:
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
