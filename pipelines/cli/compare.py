"""`medloss compare`, `worker` and `status`."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from pipelines.cli import PLACE, RUNS, TRACKING, GroupedCommand, option, take_options
from pipelines.cli.compare_options import (
    RunOptions,
    SearchOptions,
    VerdictOptions,
    chosen_executor,
    executor_options,
    named_before,
    planning_options,
)
from pipelines.cli.training_options import (
    chosen_trainer,
    refuse_untrainable,
    refuse_unused_rates,
    run_config,
    trainer_options,
    training_options,
    whole_numbers,
)
from pipelines.utils import UserError


@click.command(cls=GroupedCommand)
@click.argument("manifest")
@option(
    "--losses",
    group=RUNS,
    default="all",
    show_default=True,
    metavar="LIST",
    help="Names, sums (0.2*focal+0.8*dice) or dotted paths, separated by commas; or all.",
)
@option(
    "--folds", group=RUNS, default="0", show_default=True, metavar="LIST", help="Validation folds, such as 0,1,2,3,4."
)
@option("--seeds", group=RUNS, default="0", show_default=True, metavar="LIST", help="Seeds, such as 0,1,2.")
@option("--retry-failed", group=RUNS, is_flag=True, help="Train failed runs again.")
@option(
    "--jobs",
    group=PLACE,
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs at a time; default: one per core, or one on a GPU.",
)
@option("--tracking-uri", group=TRACKING, metavar="URI", help="MLflow server; default: SQLite in the folder of --out.")
@option(
    "--register-model", group=TRACKING, metavar="NAME", help="Register the best network of the best loss in MLflow."
)
@option(
    "--out", group=RUNS, type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the comparison."
)
@trainer_options
@executor_options
@planning_options
@training_options
def compare(
    manifest: str,
    out: Path,
    jobs: int | None,
    tracking_uri: str | None,
    register_model: str | None,
    retry_failed: bool,
    check: bool,
    **options: Any,
) -> None:
    """Train every loss on MANIFEST (a path, or the name of a shipped one), and compare them.
    Run the command again to resume an interrupted comparison.
    """
    began = time.monotonic()
    # First the checks that do without the packages that a comparison takes seconds to import.
    from pipelines.data.manifest import load_manifest
    from pipelines.runs.comparison_folder import refuse_foreign
    from pipelines.runs.plan import refuse_repeated
    from pipelines.tracking.mlflow_store import checked_model_name, checked_tracking_uri
    from pipelines.training.auto_config import refuse_settings
    from pipelines.utils.files import naming_a_full_disk, refuse_unwritable_folder
    from pipelines.utils.machine import available_cores

    runs = take_options(RunOptions, options)
    verdict = take_options(VerdictOptions, options)
    search = take_options(SearchOptions, options)
    is_dry, executor = options.pop("is_dry"), options.pop("executor")
    if options["settings"]:
        from pipelines.cli.settings import with_settings

        options = with_settings(options)
    names = runs.names()
    handover = chosen_executor(executor, jobs, options)
    if handover is not None:
        search.refuse_handover()
    schedule = options.pop("loss_schedule")
    needs_engines = (
        {"--dry-run": is_dry}
        | search.given()
        | {"--register-model": register_model is not None, "--schedule": schedule is not None}
    )
    options = chosen_trainer(manifest, options, needs_engines)
    names, about = named_before(names, verdict.reference, verdict.metric, verdict.margin)
    about |= {"empty": verdict.empty, "non_inferior": verdict.non_inferior}
    refuse_unused_rates(options.get("learning_rates"), names)
    folds, seeds = list(whole_numbers(runs.folds, "--folds")), list(whole_numbers(runs.seeds, "--seeds"))
    refuse_repeated(names, folds, seeds)
    scheduled = _scheduled(names, schedule)
    configs = [
        run_config(manifest=manifest, loss=name, loss_schedule=scheduled.get(name), fold=folds[0], **options)
        for name in names
    ]
    loaded = load_manifest(configs[0].manifest)
    refuse_settings(configs[0], loaded)  # the others differ in their loss alone
    for fold in folds:
        loaded.split(fold)
    refuse_foreign(out)
    refuse_unwritable_folder(out, "--out")
    # Before the measurements, which take minutes.
    if handover is not None:
        handover.check()
    checked_tracking_uri(tracking_uri, out)
    checked_model_name(register_model)
    refuse_untrainable(configs, loaded)
    from pipelines.comparison.compare import compare_losses
    from pipelines.comparison.dry_run import dry_run
    from pipelines.comparison.execution import Execution
    from pipelines.comparison.planning import Request, plan_comparison
    from pipelines.runs.summary import plan_lines

    # With another executor, --jobs limits the array's width and not the processes on this machine.
    jobs = _default_jobs() if handover is not None else jobs or _default_jobs()
    request = Request(
        configs, folds, seeds, loaded, about, epochs=options.get("epochs"),
        budget=search.budget, halving=search.halving, tune_lr=search.tune_lr,
        jobs=jobs, cores=available_cores(), began=began,
    )  # fmt: skip
    # Schedulers and `docker stop` send SIGTERM: the process then ends in order, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with naming_a_full_disk(out):
        planned = plan_comparison(out, request, measured=is_dry, message=lambda line: click.echo(line, err=True))
        if is_dry:
            assert planned.forecast is not None  # a dry run is always measured
            for line in dry_run(out, planned.plan, planned.grid, planned.forecast, jobs):
                click.echo(line)
            if handover is not None:
                click.echo(f"\nMeasured on this machine, and not where --executor {executor} would train.")
            return
        if planned.plan.asked is not None:
            for line in plan_lines(planned.plan, planned.grid, planned.seconds):
                click.echo(line, err=True)
        execution = Execution(jobs, handover, retry_failed, check, tracking_uri, register_model)
        code = compare_losses(out, planned.plan, execution, configs)
    sys.exit(code)


def _scheduled(names: list[str], schedule: str | None) -> dict[str, str]:
    """The schedule of each loss that has one: sums of a boundary-based term with others.

    Raises:
        UserError: a schedule, and no such loss.
    """
    if schedule is None:
        return {}
    from medloss.training_loss import has_boundary_term  # not above, for the second that torch takes

    scheduled = {name: schedule for name in names if has_boundary_term(name)}
    if not scheduled:
        raise UserError(
            f"--schedule: got {schedule}, and no loss is a sum with a boundary-based term; "
            "expected one such as dice+binary_cross_entropy+hausdorff_dt"
        )
    return scheduled


def _default_jobs() -> int:
    import torch

    from pipelines.utils.machine import available_cores

    return 1 if torch.cuda.is_available() else available_cores()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--index", type=int, help="Only the run of this number in the plan.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--trust", is_flag=True, help="Import any losses that the folder names; let nnU-Net unpickle its cases.")
@click.option("--parent", type=int, hidden=True, help="End with the process of this number.")
def worker(folder: Path, index: int | None, threads: int | None, trust: bool, parent: int | None) -> None:
    """Train the waiting runs of the comparison in FOLDER, one after another, next to any other worker."""
    from pipelines.comparison.worker import end_at_once, ending_in_order, exit_with, work
    from pipelines.utils.files import naming_a_full_disk

    if parent is not None:
        exit_with(parent)
    try:
        with ending_in_order(), naming_a_full_disk(folder):
            work(folder, index, threads, trust=trust)
            if parent is not None:
                end_at_once()
    except SystemExit as end:
        if parent is not None:  # which waits
            end_at_once(int(end.code or 0))
        raise
    except OSError as error:
        raise UserError(f"{folder}: a worker cannot write there: {error.strerror or error}") from None


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Show how far the comparison in FOLDER is."""
    from pipelines.comparison.execution import Comparison
    from pipelines.comparison.executors.slurm import submitted_jobs
    from pipelines.comparison.remaining_runs import STATE_COLUMNS, STATE_KEYS, state_rows
    from pipelines.comparison.screening import begun_rungs
    from pipelines.runs.comparison_folder import require_plan, run_states, stood_still, stood_still_notes
    from pipelines.runs.summary import rung_title, screening_notes
    from pipelines.utils.text import counted, print_table

    plan = require_plan(folder)
    states = run_states(folder, plan)
    counts = {word: sum(s.state == word for s in states) for word in ("done", "failed", "running", "interrupted")}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    rungs = begun_rungs(Comparison(folder, plan))
    tables = [(f"{rung_title(rung.plan)}, {counted(rung.epochs, 'epoch')}", rung.states) for rung in rungs]
    for title, shown in [*tables, (f"{len(states)} runs: {told or 'all waiting'}", states)]:
        print_table(STATE_COLUMNS, state_rows(shown), title=title, keys=STATE_KEYS)
    for line in (*screening_notes(plan), *stood_still_notes(plan, stood_still(folder, plan))):
        click.echo(line)
    jobs = submitted_jobs(folder)
    waiting = [jobs[s.run.id] for s in states if s.state in ("waiting", "interrupted") and s.run.id in jobs]
    if waiting:
        numbers = dict.fromkeys(job.partition("_")[0] for job in waiting)
        click.echo(f"{len(waiting)} of them were handed to SLURM: squeue --jobs {','.join(numbers)}")
