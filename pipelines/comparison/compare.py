"""A comparison from its plan to its report: check, tune, screen, train what remains, table, report, MLflow."""

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.comparison.execution import Comparison, Execution
from pipelines.comparison.executors.base import Handover
from pipelines.comparison.remaining_runs import prepare_cases, train_remaining
from pipelines.comparison.results import Report, print_results
from pipelines.comparison.screening import begun_rungs, screen, tune
from pipelines.data.checks import refuse_bad_data
from pipelines.runs.comparison_folder import adopt_plan, keep_groups, read_plan
from pipelines.runs.plan import Plan
from pipelines.runs.summary import best_mean, best_run, comparison_table, state_counts, write_table
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_mirror import Mirror, mirroring
from pipelines.tracking.mlflow_store import local_uri
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.locks import held_lock

if TYPE_CHECKING:  # before a report is written, nothing waits for scipy
    from pipelines.statistics.results import Analysis


def compare_losses(folder: Path, plan: Plan, execution: Execution, configs: Sequence[RunConfig] = ()) -> int:
    """Carry out a plan in a folder, or what remains of it, and print the table.

    A plan that tunes or screens the losses first takes the `configs` of all losses. The command has checked the
    execution: executor, tracking URI, model name.

    Returns:
        The exit code: 0, also when runs were handed over; 1 when a run failed, 130 when it was interrupted.

    Raises:
        UserError: the folder holds another comparison, or another process carries this one out; bad files.
    """
    is_new = read_plan(folder) is None
    if is_new:  # before the folder is made: where files are bad, none is left behind
        _refuse_bad_files(plan, execution)
    folder.mkdir(parents=True, exist_ok=True)
    with held_lock(folder / "compare.lock", wait=lambda line: click.echo(line, err=True)) as held:
        if not held:
            raise UserError(
                f"--out: another process is running the comparison in {folder}; see `medloss status {folder}`"
            )
        comparison = _begin(folder, plan, execution, is_new=is_new)
        try:
            comparison = screen(tune(comparison, configs), configs)
            mirror = comparison.mirror()
            if comparison.unfinished:
                prepare_cases(comparison)
                if execution.handover is not None:
                    _hand_over(comparison, execution.handover)
                    mirror.sync(comparison.states)
                    return 0
            findings = _train_and_report(comparison, mirror)
            _track(comparison, mirror, findings)
        except KeyboardInterrupt:
            click.echo("interrupted: run the same command again to resume", err=True)
            return 130
        states = comparison.states
    return 1 if any(state.state == "failed" for state in states) else 0


def _refuse_bad_files(plan: Plan, execution: Execution) -> None:
    if execution.check:
        config = plan.runs[0].config
        refuse_bad_data(config.manifest, config.data_root, resample_channels=config.resample_channels)


def _begin(folder: Path, plan: Plan, execution: Execution, *, is_new: bool) -> Comparison:
    """Resume the folder's comparison, or begin a new one, whose data have been checked."""
    # A new plan was not kept before the check: bad files are replaced, and the manifest then is another one.
    comparison = Comparison(folder, adopt_plan(folder, plan), execution)
    if execution.groups is not None:
        keep_groups(folder, execution.groups)
    if not is_new and comparison.unfinished:
        _refuse_bad_files(comparison.plan, execution)
    if execution.retry_failed:
        comparison.forget_failures()
    return comparison


def _hand_over(comparison: Comparison, handover: Handover) -> None:
    """Have the remaining runs trained elsewhere; the same command, run again, brings MLflow up to date."""

    message = partial(click.echo, err=handover.for_programs)
    states = comparison.states
    if begun := state_counts(states, waiting=False):
        message(f"{len(states)} runs: {begun}")
    remaining = [index for index, state in enumerate(states) if not state.finished and state.state != "running"]
    if remaining:
        handover.hand_over(comparison.folder, comparison.plan, remaining, message)
    shown = shlex.quote(str(comparison.folder))
    message(f"status    medloss status {shown}")
    message(f"report    medloss report {shown}")
    message("MLflow    run this command again to bring it up to date; once all are done it writes table and report")


def _train_and_report(comparison: Comparison, mirror: Mirror) -> Findings:
    """Train the remaining runs, and write and print table and report; MLflow is kept up to date meanwhile."""
    try:
        # Table and report do not wait for MLflow, which may be slow.
        with mirroring(mirror) as to_mlflow:
            if comparison.unfinished:
                train_remaining(comparison, to_mlflow)
            to_mlflow(comparison.states)
            return _conclude(comparison)
    except UserError:
        mirror.finish(comparison.states, Findings())
        raise
    except KeyboardInterrupt:
        if any(state.state == "done" for state in comparison.states):
            table = comparison_table(comparison.folder, comparison.plan)
            write_table(comparison.folder, table)
            print_results(comparison, table, None)
        raise


def _conclude(comparison: Comparison) -> Findings:
    """Write and print table and report."""
    folder, plan = comparison.folder, comparison.plan
    table = comparison_table(folder, plan)
    written = write_table(folder, table)
    report = _report(comparison)
    print_results(comparison, table, report)
    return Findings(
        table=written,
        metrics={} if (best := best_mean(plan, table)) is None else {f"best/{plan.metric}": best[1]},
        verdict=report.analysis.verdict if report else None,
        verdicts=_verdicts(report.analysis) if report else {},
        report=report.page.parent if report else None,
        best=best_run(folder, plan, table),
        register=comparison.execution.register_model,
    )


def _verdicts(analysis: "Analysis") -> dict[str, str]:
    """What a report says of each loss: `reference`, `worse, -0.0145`; without a reference the rank by mean."""
    texts = {ranked.loss: f"rank {ranked.rank:g}" for ranked in analysis.primary.ranking}
    if analysis.reference is not None:
        texts[analysis.reference] = "reference"
    for compared in analysis.primary.comparisons:
        texts[compared.loss] = f"{compared.words}, {compared.difference:+.{analysis.metric.decimals}f}"
    return texts


def _report(comparison: Comparison) -> Report | None:
    """Write the report, once two losses have finished."""
    if len({state.run.config.loss for state in comparison.states if state.state == "done"}) < 2:
        return None
    from pipelines.report import claimed
    from pipelines.report.collect import from_folder
    from pipelines.report.write import write_report

    folder = comparison.folder
    try:
        with claimed(folder / "report"):
            return Report(*write_report(from_folder(folder), folder / "report"))
    except Exception as error:
        # Hours of training are over, and their table is written: whatever goes wrong here must not end in a traceback.
        why = " ".join(str(error).split()) or type(error).__name__
        click.echo(f"warning: no report was written: {why}; see `medloss report {folder}`", err=True)
        return None


def _track(comparison: Comparison, mirror: Mirror, findings: Findings) -> None:
    """Bring MLflow up to date, rungs included, which it may have missed during the screening; print where it is."""
    up_to_date = mirror.finish(comparison.states, findings) and all(
        rung.mirror().finish(rung.states, Findings()) for rung in begun_rungs(comparison)
    )
    server = None
    if not up_to_date:
        click.echo(f"MLflow    not up to date at {mirror.state['uri']}: run the same command again to catch up")
    elif mirror.uri == local_uri(comparison.folder):
        command = Path(sys.executable).with_name("mlflow")
        click.echo(f"MLflow    {shlex.join([str(command), 'ui', '--backend-store-uri', mirror.uri])}")
        server = "http://127.0.0.1:5000"
    else:
        click.echo(f"MLflow    {mirror.state['uri']}")
    if mirror.registered is not None:
        click.echo(f"model     {mirror.registered}, in MLflow's registry")
    # Long addresses: last.
    for what, page in (("charts", mirror.page(server)), ("list", mirror.runs_page(server))):
        if up_to_date and page is not None:
            click.echo(f"{what:<10}{page}")
