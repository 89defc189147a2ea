"""Trains what is left of a plan, on this machine."""

from collections.abc import Callable
from pathlib import Path

import click

from pipelines.comparison.display import Display
from pipelines.comparison.executors.local import execute
from pipelines.comparison.plan import Plan, cache_folder
from pipelines.comparison.state import RunState, run_states
from pipelines.threads import available_cores
from pipelines.training.parts import prepared_data


def prepare_cases(folder: Path, plan: Plan) -> None:
    """Read and prepare every case once, for all workers; so bad files are found before anything is trained, too.

    Args:
        folder: the comparison's.
        plan: its plan.
    """
    first = plan.runs[0].config
    if first.nnunet is not None:
        from pipelines.nnunet.prepared import prepare

        log = folder / "logs" / "nnunet-prepare.log"
        prepare(first, cache_folder(folder, first), available_cores(), log, lambda line: click.echo(line, err=True))
        return
    for config in {run.config.fold: run.config for run in plan.runs}.values():
        # Nothing is kept in memory: this process does not train.
        prepared_data(config.model_copy(update={"memory_mb": 1e-6}), folder / "cache")


def train_left(folder: Path, plan: Plan, jobs: int, to_mlflow: Callable[[list[RunState]], None]) -> None:
    """Train every run that has not ended, and show how far each is.

    Args:
        folder: the comparison's.
        plan: its plan.
        jobs: runs at a time.
        to_mlflow: takes the states of all runs, as often as they are looked at.

    Raises:
        KeyboardInterrupt: it was interrupted; no worker is left.
    """
    with Display() as display:

        def watch() -> None:
            states = run_states(folder, plan)
            display.update(states)
            to_mlflow(states)

        execute(folder, plan, jobs, watch, display.tell)
