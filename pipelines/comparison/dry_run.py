"""What `--dry-run` prints: remaining runs, their time, memory and disk, and the differences they could detect."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pipelines.comparison.budget import LEAST_STEPS, Forecast
from pipelines.comparison.execution import Comparison
from pipelines.comparison.screening import begun_rungs
from pipelines.data.manifest import Manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import RunState, read_plan, run_states
from pipelines.runs.plan import Plan, RunGrid, RunShape, run_shapes, survivors
from pipelines.runs.summary import plan_lines, rung_title, state_counts, used_of_budget
from pipelines.statistics.mean_difference import ALPHA, least_patients
from pipelines.statistics.results import cases_needed, least_difference
from pipelines.utils.text import Column, counted, duration, item, listed, numbers, table_lines


def dry_run(
    folder: Path, plan: Plan, grid: RunGrid, forecast: Forecast, jobs: int, enough_minutes: int | None = None
) -> Iterator[str]:
    """The report of a dry run, line by line.

    `grid` has the plan's runs as if halving dropped no loss; `enough_minutes` is that of `Planned`.
    """
    stages = remaining_stages(folder, plan, grid, forecast)
    states = [] if read_plan(folder) is None else run_states(folder, plan)
    yield "Dry run: nothing is trained, and nothing is written."
    yield ""
    yield from plan_lines(plan, grid)
    yield from _training(plan, grid, forecast, enough_minutes)
    yield from item("there", _existing(folder, plan, states))
    yield ""
    yield from _losses(grid, forecast, states)
    yield ""
    yield from _times(plan, forecast, stages, jobs)
    yield from _memory(forecast, stages, jobs)
    yield from _disk(folder, forecast, stages, jobs)
    yield ""
    yield from detectable_difference(plan, grid, forecast.manifest)


def _training(plan: Plan, grid: RunGrid, forecast: Forecast, enough_minutes: int | None) -> Iterator[str]:
    config, fold = forecast.measured.config, grid.folds[0]
    train, validate = (len(cases) for cases in forecast.manifest.split(fold))
    patch = " x ".join(map(str, config.patch_size or ()))
    yield from item(
        "training",
        f"{config.network}, {counted(config.batch_size or 1, 'patch')} of {patch} voxels per step; of fold {fold} "
        f"{counted(train, 'case')} train in {counted(forecast.steps(fold), 'step')} per epoch, and "
        f"{validate} validate {'each epoch' if config.val_interval == 1 else f'every {config.val_interval} epochs'}",
    )
    per_epoch = forecast.optimizer_steps(fold)
    steps = grid.epochs * per_epoch
    yield from item(
        "", f"{counted(steps, 'optimizer step')} per network ({counted(grid.epochs, 'epoch')} of {per_epoch})"
    )
    if steps < LEAST_STEPS:
        yield from item(
            "warning:",
            f"{counted(steps, 'optimizer step')} per network, fewer than {LEAST_STEPS}: the verdict would say which "
            f"loss learns fastest at first, not which is best; {_more_steps(plan, grid, forecast, enough_minutes)}",
        )


def _more_steps(plan: Plan, grid: RunGrid, forecast: Forecast, enough_minutes: int | None) -> str:
    """What to ask for to have enough steps; with a budget, more epochs alone would not fit."""
    epochs = forecast.epochs_of_enough_steps(grid.folds[0])
    if enough_minutes is None:
        return f"take --epochs {epochs} or more"
    asked = plan.asked
    few = f"--epochs {epochs} and " if asked is not None and asked.epochs is not None and asked.epochs < epochs else ""
    counts = {"folds": len(grid.folds) > 1, "seeds": len(grid.seeds) > 1, "losses": len(grid.losses) > 2}
    fewer = " or ".join(noun for noun, is_reducible in counts.items() if is_reducible)
    return f"take {few}--budget {enough_minutes}" + (f", or fewer {fewer}" if fewer else "")


def _existing(folder: Path, plan: Plan, states: Sequence[RunState]) -> str:
    """The states of the runs that the folder has already."""
    rungs = begun_rungs(Comparison(folder, plan))
    if not states and not rungs:
        return f"nothing yet in {folder}"
    parts = [f"{state_counts(rung.states)} of {rung_title(rung.plan)}" for rung in rungs]
    return f"{'; '.join([*parts, f'{state_counts(states)} of the runs'])}, in {folder}"


def _losses(grid: RunGrid, forecast: Forecast, states: Sequence[RunState]) -> Iterator[str]:
    columns = [Column("loss"), *numbers("runs", "done", "s/step", "s/epoch", "min/run", "min in all", "peak MB")]
    rows, failing = [], []
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
        minutes = [f"{value / 60:.1f}" for value in (seconds[0], sum(seconds))]
        epoch_s = f"{forecast.epoch_s(loss, grid.folds[0]):.1f}"
        rows.append([*cells, f"{step.seconds:.3f}", epoch_s, *minutes, f"{step.peak_mb:.0f}"])
    yield from table_lines(columns, rows)
    for failure in failing:
        yield from item("warning:", failure)


def _times(plan: Plan, forecast: Forecast, stages: Sequence[Sequence[RunShape]], jobs: int) -> Iterator[str]:
    remaining = [run for stage in stages for run in stage]
    if not remaining:
        yield from item("time", "all runs have ended: only table, report and MLflow remain")
        return
    at_once = f"{counted(jobs, 'job')} at a time"
    yield from item("time", f"about {duration(forecast.measured.prepare_s)} to prepare the cases")
    alone = sum(forecast.run_s(run) for run in remaining)
    yield from item("", f"about {duration(alone)} for all runs, one after another")
    total = forecast.total_s(stages, jobs)
    yield from item("", f"about {duration(total)} in all, {at_once}{used_of_budget(plan, total)}")
    validation = f"(including validation, at {forecast.measured.common.case_s:.2f} s per case"
    yield from item("", f"{validation}; all measured just now with {at_once}: a machine that gets busier takes longer)")


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
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
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
    """The remaining runs, stage by stage; see `Forecast.stages`."""
    begun = read_plan(folder) is not None
    if begun and (plan.halving is None or plan.halving.over) and (plan.tuning is None or plan.tuning.over):
        return [_remaining(run_states(folder, plan))]
    stages = forecast.stages(grid, plan.halving, plan.tuning)
    for place, rung in enumerate(begun_rungs(Comparison(folder, plan)) if begun else ()):
        stages[place] = _remaining(rung.states)
    return stages


def _remaining(states: Sequence[RunState]) -> list[RunShape]:
    runs = [(state.run.config, state) for state in states if not state.finished]
    return [RunShape(config.loss, config.fold, state.epochs, state.epoch) for config, state in runs]


# The smallest difference that the cases could show.

#: Standard deviation over patients of the Dice difference of two networks, observed with two nnU-Nets on the
#: hippocampus.
ASSUMED_SD = 0.018


def detectable_difference(plan: Plan, grid: RunGrid, manifest: Manifest) -> Iterator[str]:
    """The least difference that would be detected, and its assumptions, line by line."""
    validating = [case for fold in grid.folds for case in manifest.split(fold)[1]]
    patients = len({case.patient for case in validating})
    every = [case for fold in manifest.folds() for case in manifest.split(fold)[1]]
    unit = "patient" if any(case.patient != case.id for case in every) else "case"
    losses = len(grid.losses)
    if plan.halving is not None and not plan.halving.over:
        losses = 1 + survivors(len(plan.halving.losses))
    comparisons = losses - 1 if plan.has_reference else losses * (losses - 1) // 2
    of = len({case.patient for case in every})
    shares = f"{patients} of {of}" if patients < of else f"all {of}"
    volumes = f" ({counted(len(validating), 'case')})" if len(validating) > patients else ""
    count = f"{shares} {unit}s{volumes} validate, those of {listed('fold', grid.folds)}, and decide the verdict"
    if comparisons < 1:
        yield from item("evidence", f"{count}; one loss: there is nothing to compare")
        return
    what = f"with {plan.reference}" if plan.has_reference else f"of {losses} losses"
    pairs = counted(comparisons, "comparison" if plan.has_reference else "pair")
    # Several primary metrics are one family of tests, by Holm's correction; one metric's comparisons are correlated.
    tests = comparisons * (1 + len(plan.further_metrics))
    several = f", in each of {1 + len(plan.further_metrics)} primary metrics" if plan.further_metrics else ""
    level = ALPHA / tests if several else ALPHA
    correlated = 1 if several else comparisons
    yield from item("evidence", f"{count}; {pairs} {what}{several}")
    if patients < (least := least_patients(level)):
        few = f"Too few cases: none of {pairs} can be significant below {least} {unit}s, whatever the losses do."
        yield from item("", f"{few} Take more --folds.")
    metric = METRICS[plan.metric]
    known = plan.metric == "dice"
    sd = ASSUMED_SD if known else 1.0

    def shown(comparisons: int = 1, level: float = ALPHA) -> str:
        value = least_difference(sd, patients, comparisons=comparisons, level=level)
        if value is None:
            return "none at all"
        return f"{value:.4f} {metric.label}" if known else f"{value:.2f} standard deviations"

    family = "" if tests == 1 else f"; {shown(correlated, level)} as one of {tests}"
    single = f"{shown()} where it is the only one tested"
    yield from item("", f"Least true mean difference found with 80 % power: {single}{family}.")
    if len(grid.folds) * len(grid.seeds) > 1:
        retraining = "This does not include the variation of retraining, which the report estimates from several runs."
        yield from item("", retraining)
    if not known:
        unknown = f"The standard deviation of the paired differences in {metric.label} is not known before training."
        yield from item("", unknown)
        return
    yield from item(
        "",
        f"Assumed: paired differences have a standard deviation of {ASSUMED_SD} Dice over {unit}s, as those of two "
        "nnU-Nets on the hippocampus had. Yours is not known before training, and may be several times as large; the "
        "least difference grows in proportion to it.",
    )
    if plan.margin > 0:
        needed = cases_needed(plan.margin, sd, comparisons=correlated, level=level)
        yield from item("", f"A difference as large as the margin, {plan.margin:g}, needs {needed} {unit}s.")
