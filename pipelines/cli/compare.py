"""`medloss compare`, `worker` and `status`."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from pipelines.cli import PATH, PLACE, RUNS, TRACKING, GroupedCommand, option, take
from pipelines.cli.compare_options import (
    chosen_executor,
    compare_options,
    left_out_of_regions,
    loss_list,
    named_before,
    with_primaries,
)
from pipelines.cli.train import chosen_trainer, trainer_options, training_options
from pipelines.utils import UserError


@click.command(cls=GroupedCommand)
@click.argument("manifest")
@option("--losses", RUNS, "LIST", "Names, sums (0.2*focal+0.8*dice) or dotted paths, by commas; survey, more or all.",
        default="survey")  # fmt: skip
@option("--folds", RUNS, "LIST", "Validation folds, such as 0,1,2,3,4.", default="0")
@option("--seeds", RUNS, "LIST", "Seeds, such as 0,1,2.", default="0")
@option("--retry-failed", RUNS, None, "Train failed runs again.", is_flag=True)
@option("--jobs", PLACE, "N", "Runs at a time; default: one per core, or one on a GPU.", type=click.IntRange(min=1))
@option("--tracking-uri", TRACKING, "URI", "MLflow server; default: SQLite in the --out folder.")
@option("--register-model", TRACKING, "NAME", "Register the best network of the best loss in MLflow.")
@option("--out", RUNS, "DIR", "Folder of the comparison.", type=PATH, required=True)
@trainer_options
@compare_options
@training_options
def compare(
    manifest: str, out: Path, losses: str, executor: str, jobs: int | None, is_dry: bool, **options: Any
) -> None:
    """Train every loss on MANIFEST (a path, or the name of a shipped one), and compare them.
    Run the command again to resume an interrupted comparison.
    """
    began = time.monotonic()
    # First the checks that do without the packages that a comparison takes seconds to import.
    from medloss.names import refuse_unknown_losses
    from pipelines.cli.settings import refuse_untrainable, refuse_unused_rates, run_config, whole_numbers, with_settings
    from pipelines.data.manifest import load_manifest
    from pipelines.runs.comparison_folder import refuse_foreign
    from pipelines.runs.plan import refuse_repeated
    from pipelines.tracking.mlflow_store import checked_model_name, checked_tracking_uri
    from pipelines.training.auto_config import refuse_settings
    from pipelines.utils.files import naming_a_full_disk, refuse_unwritable_folder
    from pipelines.utils.machine import available_cores

    subgroups = options.pop("subgroups")
    verdict = take(options, "reference", "metric", "margin", "empty", "non_inferior")
    search = take(options, "budget", "halving", "tune_lr")
    how = take(options, "retry_failed", "check", "tracking_uri", "register_model")
    options = with_settings(options)
    names = loss_list(losses)
    folds, seeds = (list(whole_numbers(options.pop(name), f"--{name}")) for name in ("folds", "seeds"))
    handover = chosen_executor(executor, jobs, options)
    measured = {"--budget": search["budget"] is not None, "--tune-lr": search["tune_lr"] is not None}
    for flag, is_given in ({"--halving": search["halving"]} | measured).items():
        if is_given and handover is not None:
            raise UserError(f"{flag}: goes with --executor local, whose machine it measures and trains on")
    schedule = options.pop("loss_schedule")
    needs_engines = {"--dry-run": is_dry, **measured, "--register-model": how["register_model"] is not None}
    options = chosen_trainer(manifest, options, needs_engines | {"--schedule": schedule is not None})
    names, about = named_before(names, **verdict)
    refuse_unknown_losses(*names)  # all wrong names in one line
    refuse_unused_rates(options.get("learning_rates"), names)
    refuse_repeated(names, folds, seeds)
    scheduled = _scheduled(names, schedule)
    configs = [
        run_config(manifest=manifest, loss=name, loss_schedule=scheduled.get(name), fold=folds[0], **options)
        for name in names
    ]
    loaded = load_manifest(configs[0].manifest)
    if loaded.regions and (left_out := left_out_of_regions(names, losses, about["reference"])):
        click.echo(
            f"--losses {losses}: without {', '.join(left_out)}: regions may overlap, and this needs classes that "
            "exclude each other",
            err=True,
        )
        configs = [config for config in configs if config.loss not in left_out]
    about, configs = with_primaries(about, loaded, configs)
    refuse_settings(configs[0], loaded)  # the others differ in their loss alone
    for fold in folds:
        loaded.split(fold)
    refuse_foreign(out)
    refuse_unwritable_folder(out, "--out")
    if subgroups is not None:
        from pipelines.report.subgroups import groups_to_keep

        how["groups"] = groups_to_keep(subgroups, out, loaded)
    # Before the measurements, which take minutes.
    if handover is not None:
        handover.check()
    checked_tracking_uri(how["tracking_uri"], out)
    checked_model_name(how["register_model"])
    refuse_untrainable(configs, loaded)
    import torch

    from pipelines.comparison.compare import compare_losses
    from pipelines.comparison.dry_run import dry_run
    from pipelines.comparison.execution import Execution
    from pipelines.comparison.planning import Request, plan_comparison
    from pipelines.runs.summary import plan_lines

    if handover is not None or jobs is None:
        # With another executor, --jobs limits the array's width and not the processes on this machine.
        jobs = 1 if torch.cuda.is_available() else available_cores()
    request = Request(
        configs, folds, seeds, loaded, about, epochs=options.get("epochs"),
        jobs=jobs, cores=available_cores(), began=began, **search,
    )  # fmt: skip
    # Schedulers and `docker stop` send SIGTERM: the process then ends in order, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with naming_a_full_disk(out):
        planned = plan_comparison(out, request, measured=is_dry, message=lambda line: click.echo(line, err=True))
        if is_dry:
            assert planned.forecast is not None  # a dry run is always measured
            for line in dry_run(out, planned.plan, planned.grid, planned.forecast, jobs, planned.enough_minutes):
                click.echo(line)
            if handover is not None:
                click.echo(f"\nMeasured on this machine, and not where --executor {executor} would train.")
            return
        if planned.plan.asked is not None:
            for line in plan_lines(planned.plan, planned.grid, planned.seconds):
                click.echo(line, err=True)
        execution = Execution(jobs, handover, **how)
        code = compare_losses(out, planned.plan, execution, planned.configs)
    sys.exit(code)


def _scheduled(names: list[str], schedule: str | None) -> dict[str, str]:
    """The schedule of each sum of a boundary-based term with others; a `UserError` if there is none."""
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


@click.command()
@click.argument("folder", type=PATH)
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
@click.argument("folder", type=PATH)
def status(folder: Path) -> None:
    """Show how far the comparison in FOLDER is."""
    from pipelines.comparison.execution import Comparison
    from pipelines.comparison.executors.slurm import submitted_jobs
    from pipelines.comparison.remaining_runs import STATE_COLUMNS, STATE_KEYS, state_rows
    from pipelines.comparison.screening import begun_rungs
    from pipelines.runs.comparison_folder import require_plan, run_states
    from pipelines.runs.curve_checks import stood_still, stood_still_notes
    from pipelines.runs.summary import rung_title, screening_notes, state_counts
    from pipelines.utils.text import counted, print_table

    plan = require_plan(folder)
    states = run_states(folder, plan)
    counts = state_counts(states, waiting=False) or "all waiting"
    rungs = begun_rungs(Comparison(folder, plan))
    tables = [(f"{rung_title(rung.plan)}, {counted(rung.epochs, 'epoch')}", rung.states) for rung in rungs]
    for title, shown in [*tables, (f"{len(states)} runs: {counts}", states)]:
        print_table(STATE_COLUMNS, state_rows(shown), title=title, keys=STATE_KEYS)
    for line in (*screening_notes(plan), *stood_still_notes(plan, stood_still(folder, plan))):
        click.echo(line)
    jobs = submitted_jobs(folder)
    waiting = [jobs[s.run.id] for s in states if s.state in ("waiting", "interrupted") and s.run.id in jobs]
    if waiting:
        numbers = dict.fromkeys(job.partition("_")[0] for job in waiting)
        click.echo(f"{len(waiting)} of them were handed to SLURM: squeue --jobs {','.join(numbers)}")
