"""The whole of a comparison: data, workers, MLflow, table, report."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pipelines.comparison.executors.base import Handover
from pipelines.comparison.remaining_runs import prepare_cases, train_left
from pipelines.comparison.rounds import begun_rungs
from pipelines.comparison.screening import screen, train_rung, tune
from pipelines.data.checks import refuse_bad_data
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import (
    RunState,
    adopt_plan,
    read_plan,
    refuse_foreign,
    run_folder,
    run_states,
    stood_still_notes,
)
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.runs.summary import Table, comparison_table, formatted_rows, screening_notes, write_table
from pipelines.tracking.findings import Findings
from pipelines.tracking.mirror import Mirror, mirroring
from pipelines.tracking.store import checked_model_name, checked_tracking_uri, local_uri
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.locks import held_lock
from pipelines.utils.tables import Column, numbers, print_table

# Which of a comparison's networks is the one to use.


def best_mean(plan: Plan, table: Table) -> tuple[str, float] | None:
    """The loss with the best mean of the primary measure, and that mean; None when no run has finished.

    A loss of which a run failed has its mean over easier cases, perhaps: it is the best only where all are such.
    """
    finished = table.rows.dropna(subset=[plan.metric])
    whole = finished[~finished["loss"].isin(table.partial)]
    finished = whole if len(whole) else finished
    if not len(finished):
        return None
    row = finished.iloc[int((METRICS[plan.metric].sign * finished[plan.metric]).argmax())]
    return str(row["loss"]), float(row[plan.metric])


def best_run(folder: Path, plan: Plan, table: Table) -> PlannedRun | None:
    """The best run, by the primary measure, of the loss with the best mean; None when none has finished."""
    best = best_mean(plan, table)
    if best is None:
        return None
    scores: dict[str, float] = {}
    runs = [run for run in plan.runs if run.config.loss == best[0]]
    for run in runs:
        result = run_folder(folder, run).result
        # A measure that no case has (a distance, where all are empty) is null there.
        if result is not None and result["state"] == "done" and result["metrics"].get(plan.metric) is not None:
            scores[run.id] = METRICS[plan.metric].sign * result["metrics"][plan.metric]
    return max((run for run in runs if run.id in scores), key=lambda run: scores[run.id], default=None)


def compare_losses(
    folder: Path,
    plan: Plan,
    jobs: int,
    tracking_uri: str | None,
    *,
    retry_failed: bool = False,
    check: bool = True,
    register_model: str | None = None,
    configs: Sequence[RunConfig] = (),
    handover: Handover | None = None,
) -> int:
    """Carry out a plan in a folder, or what is left of it, and print the table.

    Args:
        folder: the comparison's.
        plan: what to train.
        jobs: runs at a time.
        tracking_uri: an MLflow server's; None: a store in the folder.
        retry_failed: whether failed runs are trained again.
        check: whether the whole data set is read, and refused if it has bad files, before anything is trained.
        register_model: the name under which MLflow registers the best loss's best network; None: it does not.
        configs: of all losses, one each, for a plan that tunes or screens them first.
        handover: has the runs trained by others, and does not wait for them; None: they are trained here.

    Returns:
        The exit code: 0, also when runs were handed over; 1 when a run failed, 130 when it was interrupted.

    Raises:
        UserError: another comparison is in the folder, or at work there; bad files.
    """
    if handover is not None:
        handover.check()
    refuse_foreign(folder)
    tracking_uri = checked_tracking_uri(tracking_uri, folder)
    register_model = checked_model_name(register_model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {folder}: {error.strerror}; name another folder") from None
    with held_lock(folder / "compare.lock", wait=lambda line: click.echo(line, err=True)) as mine:
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
        try:
            forget = _forget_failures if retry_failed else None

            def train(own: Path, rung: Plan) -> None:
                train_rung(own, rung, jobs, _mirror(own, rung, tracking_uri, store=folder))

            plan = tune(folder, plan, configs, train, forget)
            plan = screen(folder, plan, configs, train, forget)
        except KeyboardInterrupt:
            return _interrupted()
        return _carry_out(folder, plan, jobs, tracking_uri, register_model, handover)


def _carry_out(
    folder: Path,
    plan: Plan,
    jobs: int,
    tracking_uri: str | None,
    register_model: str | None,
    handover: Handover | None,
) -> int:
    mirror = _mirror(folder, plan, tracking_uri)
    left = any(not state.finished for state in run_states(folder, plan))
    if left:
        prepare_cases(folder, plan)
        if handover is not None:
            _hand_over(folder, plan, handover)
            mirror.sync(run_states(folder, plan))
            return 0
    try:
        # Table and report come before MLflow is waited for, which may take its time.
        with mirroring(mirror) as to_mlflow:
            if left:
                train_left(folder, plan, jobs, to_mlflow)
            to_mlflow(run_states(folder, plan))
            findings = _conclude(folder, plan, register_model)
    except UserError:
        mirror.finish(run_states(folder, plan), Findings())
        raise
    except KeyboardInterrupt:
        states = run_states(folder, plan)
        if any(state.state == "done" for state in states):
            table = comparison_table(folder, plan)
            write_table(folder, table)
            _print(folder, plan, states, table, [])
        return _interrupted()
    states = run_states(folder, plan)
    try:
        up_to_date = mirror.finish(states, findings) and _finish_rungs(folder, plan, tracking_uri)
        _print_mlflow(folder, mirror, up_to_date)
    except KeyboardInterrupt:
        return _interrupted()
    return 1 if any(state.state == "failed" for state in states) else 0


def _interrupted() -> int:
    """The exit code of a comparison that was interrupted; says what to do."""
    click.echo("interrupted: the same command goes on where it stopped", err=True)
    return 130


def _mirror(folder: Path, plan: Plan, tracking_uri: str | None, store: Path | None = None) -> Mirror:
    return Mirror(folder, plan, tracking_uri, lambda line: click.echo(f"warning: {line}", err=True), store)


def _finish_rungs(folder: Path, plan: Plan, tracking_uri: str | None) -> bool:
    """Bring to MLflow what it could not take while losses were screened; whether it has all of it now."""
    mirrors = ((_mirror(rung.folder, rung.plan, tracking_uri, folder), rung) for rung in begun_rungs(folder, plan))
    return all(mirror.finish(rung.states, Findings()) for mirror, rung in mirrors)


def _conclude(folder: Path, plan: Plan, register_model: str | None) -> Findings:
    """Write table and report, and print what they say."""
    states = run_states(folder, plan)
    table = comparison_table(folder, plan)
    written = write_table(folder, table)
    report = _report(folder, states)
    _print(folder, plan, states, table, report)
    return Findings(
        table=written,
        metrics={} if (best := best_mean(plan, table)) is None else {f"best/{plan.metric}": best[1]},
        verdict=report[0] if report else None,
        report=folder / "report" if report else None,
        best=best_run(folder, plan, table),
        register=register_model,
    )


def _hand_over(folder: Path, plan: Plan, handover: Handover) -> None:
    """Have what is left trained by others; this command, called again, mirrors to MLflow what came of it."""
    states = run_states(folder, plan)

    def tell(line: str) -> None:
        click.echo(line, err=handover.for_programs)

    count = {word: sum(state.state == word for state in states) for word in ("done", "failed", "running")}
    if any(count.values()):
        tell(f"{len(states)} runs: {', '.join(f'{number} {word}' for word, number in count.items() if number)}")
    left = [index for index, state in enumerate(states) if not state.finished and state.state != "running"]
    if left:
        handover.hand_over(folder, plan, left, tell)
    shown = shlex.quote(str(folder))
    tell(f"status    medloss status {shown}")
    tell(f"report    medloss report {shown}")
    tell("MLflow    this command, called again, brings it up to date; once all is done it writes table and report, too")


def _forget_failures(folder: Path, plan: Plan) -> None:
    for run in plan.runs:
        own = run_folder(folder, run)
        if own.result is not None and own.result["state"] == "failed":
            (own.path / "result.json").unlink()


def _report(folder: Path, states: list[RunState]) -> list[str]:
    """Write the report, once two losses have finished; returns its verdict and where it lies, for people."""
    if len({state.run.config.loss for state in states if state.state == "done"}) < 2:
        return []
    from pipelines.report import claimed
    from pipelines.report.collect import from_folder
    from pipelines.report.write import write_report
    from pipelines.statistics.verdict_text import gap_notes

    try:
        with claimed(folder / "report"):
            page, analysis = write_report(from_folder(folder), folder / "report")
    except Exception as error:
        # Hours of training are over, and their table is written: whatever goes wrong here must not end in a traceback.
        why = " ".join(str(error).split()) or type(error).__name__
        click.echo(f"warning: no report was written: {why}; see `medloss report {folder}`", err=True)
        return []
    return [analysis.verdict, *gap_notes(analysis), f"report    {page}"]


def _print(folder: Path, plan: Plan, states: list[RunState], table: Table, report: list[str]) -> None:
    head, *body = formatted_rows(table)
    title = f"{plan.manifest_name}: {len(plan.losses)} losses"
    print_table([Column(head[0]), *numbers(*head[1:])], body, title=title)
    click.echo(table.caveat)
    for line in (*plan.told, *screening_notes(plan), *stood_still_notes(plan, table.still)):
        click.echo(line)
    for state in states:
        if state.state == "failed":
            click.echo(f"failed: {state.run.title}: {state.error}")
    for line in report[:1]:
        click.echo(f"\n{line}")
    click.echo(f"\nruns      {folder / 'runs'}")
    click.echo(f"table     {folder / 'table.csv'}, {folder / 'table.md'}")
    for line in report[1:]:
        click.echo(line)


def _print_mlflow(folder: Path, mirror: Mirror, up_to_date: bool) -> None:
    page = mirror.page()
    if not up_to_date:
        click.echo(f"MLflow    not up to date at {mirror.state['uri']}: run the same command again to catch up")
    elif mirror.uri == local_uri(folder):
        command = Path(sys.executable).with_name("mlflow")
        click.echo(f"MLflow    {shlex.join([str(command), 'ui', '--backend-store-uri', mirror.uri])}")
        page = mirror.page("http://127.0.0.1:5000")
    else:
        click.echo(f"MLflow    {mirror.state['uri']}")
    if up_to_date and page is not None:
        click.echo(f"charts    {page}")
    if mirror.registered is not None:
        click.echo(f"model     {mirror.registered}, in MLflow's registry")
