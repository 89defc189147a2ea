"""The whole of a comparison: data, workers, MLflow, table, report."""

import shlex
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table as RichTable

from pipelines.comparison.display import Display
from pipelines.comparison.execute import execute
from pipelines.comparison.plan import Plan, adopt_plan, read_plan, refuse_foreign, run_folder
from pipelines.comparison.state import RunState, run_states
from pipelines.comparison.table import Table, comparison_table, formatted_rows, write_table
from pipelines.comparison.tracking import Mirror, checked_tracking_uri, local_uri
from pipelines.dataset.precheck import refuse_bad_data
from pipelines.errors import UserError
from pipelines.locks import held_lock
from pipelines.training.parts import prepared_data

#: Seconds between two looks at what MLflow lacks.
_MIRROR_S = 2.0


def compare_losses(
    folder: Path,
    plan: Plan,
    jobs: int,
    tracking_uri: str | None,
    *,
    retry_failed: bool = False,
    check: bool = True,
) -> int:
    """Carry out a plan in a folder, or what is left of it, and print the table.

    Args:
        folder: the comparison's.
        plan: what to train.
        jobs: runs at a time.
        tracking_uri: an MLflow server's; None: a store in the folder.
        retry_failed: whether failed runs are trained again.
        check: whether the whole data set is read, and refused if it has bad files, before anything is trained.

    Returns:
        The exit code: 0, 1 when a run failed, 130 when it was interrupted.

    Raises:
        UserError: another comparison is in the folder, or at work there; bad files.
    """
    refuse_foreign(folder)
    tracking_uri = checked_tracking_uri(tracking_uri, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {folder}: {error.strerror}; name another folder") from None
    with held_lock(folder / "compare.lock") as mine:
        if not mine:
            raise UserError(f"--out: a comparison is at work in {folder}; see `medloss status {folder}`")
        begun = read_plan(folder) is not None
        plan = adopt_plan(folder, plan) if begun else plan
        if check and any(not state.finished for state in run_states(folder, plan)):
            refuse_bad_data(plan.runs[0].config.manifest, plan.runs[0].config.data_root)
        # Not before: data that are refused, and mended, are other data.
        plan = plan if begun else adopt_plan(folder, plan)
        if retry_failed:
            _forget_failures(folder, plan)
        return _carry_out(folder, plan, jobs, tracking_uri)


def _carry_out(folder: Path, plan: Plan, jobs: int, tracking_uri: str | None) -> int:
    mirror = Mirror(folder, plan, tracking_uri, lambda line: click.echo(f"warning: {line}", err=True))
    interrupted = False
    if any(not state.finished for state in run_states(folder, plan)):
        _prepare(folder, plan)
        # A cold SQLite store breaks when several processes open it: this one makes it, before the others start.
        mirror.sync(run_states(folder, plan))
        mirrored = time.monotonic()
        with Display(jobs) as display:

            def watch() -> None:
                nonlocal mirrored
                states = run_states(folder, plan)
                display.update(states)
                if time.monotonic() - mirrored > _MIRROR_S:
                    mirror.sync(states)
                    mirrored = time.monotonic()

            try:
                execute(folder, plan, jobs, watch, display.tell)
            except KeyboardInterrupt:
                interrupted = True
            except UserError:
                mirror.finish(run_states(folder, plan), [], {})
                raise
    states = run_states(folder, plan)
    table = comparison_table(folder, plan)
    written = write_table(folder, table)
    mirrored_all = mirror.finish(states, written, _headline(table))
    _print(folder, plan, states, table, mirror, mirrored_all, [] if interrupted else _report(folder, states))
    if interrupted:
        click.echo("interrupted: the same command goes on where it stopped", err=True)
        return 130
    return 1 if any(state.state == "failed" for state in states) else 0


def _prepare(folder: Path, plan: Plan) -> None:
    """Read and prepare every case once, for all workers; so bad files are found before anything is trained, too."""
    for config in {run.config.fold: run.config for run in plan.runs}.values():
        # Nothing is kept in memory: this process does not train.
        prepared_data(config.model_copy(update={"memory_mb": 1e-6}), folder / "cache")


def _forget_failures(folder: Path, plan: Plan) -> None:
    for run in plan.runs:
        own = run_folder(folder, run)
        if own.result is not None and own.result["state"] == "failed":
            (own.path / "result.json").unlink()


def _headline(table: Table) -> dict[str, float]:
    finished = table.rows.dropna(subset=["dice"])
    return {"best/dice": float(finished["dice"].iloc[0])} if len(finished) else {}


def _report(folder: Path, states: list[RunState]) -> list[str]:
    """Write the report, once two losses have finished; returns its verdict and where it lies, for people."""
    if len({state.run.config.loss for state in states if state.state == "done"}) < 2:
        return []
    from pipelines.comparison.report import from_folder, write_report

    try:
        page, analysis = write_report(from_folder(folder), folder / "report")
    except Exception as error:
        # Hours of training are over, and their table is written: whatever goes wrong here must not end in a traceback.
        why = " ".join(str(error).split()) or type(error).__name__
        click.echo(f"warning: no report was written: {why}; see `medloss report {folder}`", err=True)
        return []
    return [analysis.verdict, f"report    {page}"]


def _print(
    folder: Path,
    plan: Plan,
    states: list[RunState],
    table: Table,
    mirror: Mirror,
    mirrored: bool,
    report: list[str],
) -> None:
    head, *body = formatted_rows(table)
    shown = RichTable(title=f"{plan.manifest_name}: {len(plan.losses)} losses", box=None, pad_edge=False)
    for index, heading in enumerate(head):
        shown.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for row in body:
        shown.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(shown)
    click.echo(table.caveat)
    for state in states:
        if state.state == "failed":
            click.echo(f"failed: {state.run.title}: {state.error}")
    for line in report[:1]:
        click.echo(f"\n{line}")
    click.echo(f"\nruns      {folder / 'runs'}")
    click.echo(f"table     {folder / 'table.csv'}, {folder / 'table.md'}")
    for line in report[1:]:
        click.echo(line)
    if not mirrored:
        click.echo(f"MLflow    not up to date at {mirror.uri}: run the same command again to catch up")
    elif mirror.uri == local_uri(folder):
        command = Path(sys.executable).with_name("mlflow")
        click.echo(f"MLflow    {shlex.join([str(command), 'ui', '--backend-store-uri', mirror.uri])}")
    else:
        click.echo(f"MLflow    {mirror.uri}")
