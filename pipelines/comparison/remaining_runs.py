"""Trains the remaining runs of a plan on this machine, and shows their progress."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.comparison.execution import Comparison
from pipelines.comparison.executors.local import execute
from pipelines.comparison.results import Estimates
from pipelines.runs.comparison_folder import RunState, cache_folder, epochs_over, seconds_left
from pipelines.utils.machine import available_cores
from pipelines.utils.text import Column, counted, duration, fitted_table, numbers

# The progress of a comparison: a live table on a terminal, elsewhere a line per run that ends; a line per event in the
# log file.

#: In a comparison's folder: a line per event.
LOG = "compare.log"

#: Of the table of runs; `left` is the remaining time, or why a run failed.
STATE_COLUMNS = [
    Column("loss"), *numbers("fold", "seed"), Column("state"), *numbers("epoch", "Dice"), Column("left", wraps=True),
]  # fmt: skip
#: The columns that name a run.
STATE_KEYS = 3
_COLOURS = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "dim"}


class Display:
    """Shows the states of the runs while they change; used as a context manager around the work."""

    def __init__(self, console: Console | None = None, log: Path | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.log = log
        self.started = time.monotonic()
        self.done_before: int | None = None
        self.under_way = False
        self.shown: dict[str, tuple[str, int]] = {}
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, states: list[RunState]) -> None:
        """Show the current states of the runs."""
        done = epochs_over(states)
        if self.done_before is None or (not self.under_way and done > self.done_before):
            # The clock starts with the first finished epoch: before it, workers start.
            self.under_way = self.done_before is not None
            self.done_before, self.started = done, time.monotonic()
        left = seconds_left(states, time.monotonic() - self.started, self.done_before)
        for line, is_last in self._events(states, left):
            self._write(line)
            if is_last and not self.console.is_terminal:
                click.echo(line, err=True)
        if not self.console.is_terminal:
            return
        finished = sum(state.finished for state in states)
        share = done / max(1, sum(state.epochs for state in states))
        title = f"{_bar(share)} {finished} of {counted(len(states), 'run')}"
        title += "" if left is None else f", about {duration(left)} left"
        # Of many runs, the most recent ones are shown; a narrow terminal takes several lines per run.
        room = max(5, self.console.height - 6)
        while True:
            rows = state_rows(_most_interesting(states, room))
            table = fitted_table(STATE_COLUMNS, rows, self.console.width, title=title, keys=STATE_KEYS)
            if room == 1 or len(self.console.render_lines(table)) < self.console.height:
                break
            room //= 2
        self.live.update(table)

    def message(self, line: str) -> None:
        """Print a line that stays, above the live table if there is one, and write it to the log file."""
        self._write(line)
        if self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)

    def _write(self, line: str) -> None:
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError as error:  # the runs do not depend on it
            click.echo(f"warning: {self.log} cannot be written ({error.strerror}); events are not logged", err=True)
            self.log = None

    def _events(self, states: list[RunState], left: float | None) -> Iterator[tuple[str, bool]]:
        """A line per run that has begun, finished an epoch or ended since the last call; and whether it has ended."""
        for number, state in enumerate(states, start=1):
            now, before = (state.state, state.epoch), self.shown.get(state.run.id)
            self.shown[state.run.id] = now
            new = before is None or (state.state == "interrupted" and before[0] != "running")
            if before == now or state.state == "waiting" or (new and state.state != "running"):
                continue  # also what ended before this process began
            running = "started" if state.epoch == 0 else f"epoch {state.epoch}/{state.epochs}"
            what = running if state.state == "running" else state.state
            dice = "" if state.dice is None else f", dice {state.dice:.3f}"
            why = "" if state.error is None else f": {state.error}"
            rest = "" if left is None else f" ({duration(left)} left in all)"
            yield f"[{number}/{len(states)}] {state.run.title}: {what}{dice}{why}{rest}", state.state != "running"


def _bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters in brackets, of which a share is filled."""
    filled = round(width * min(1.0, share))
    return f"[{'=' * filled}{'.' * (width - filled)}]"


def state_rows(states: list[RunState]) -> list[list[str | Text]]:
    """The runs as rows of `STATE_COLUMNS`."""
    rows: list[list[str | Text]] = []
    for state in states:
        config = state.run.config
        left = "" if state.seconds_left is None else duration(state.seconds_left)
        dice = "" if state.dice is None else f"{state.dice:.3f}"
        epoch = f"{state.epoch}/{state.epochs}"
        word = Text(state.state, _COLOURS[state.state])
        rows.append([config.loss, str(config.fold), str(config.seed), word, epoch, dice, state.error or left])
    return rows


def _most_interesting(states: list[RunState], room: int) -> list[RunState]:
    rank = ("running", "failed", "done", "interrupted", "waiting").index
    kept = sorted(range(len(states)), key=lambda i: (rank(states[i].state), -i if states[i].state == "done" else i))
    return [states[i] for i in sorted(kept[:room])]


# The remaining runs, trained by workers of this machine.


def prepare_cases(comparison: Comparison) -> None:
    """Read and prepare every case once for all workers; unreadable files are found before anything is trained."""
    folder, plan = comparison.folder, comparison.plan
    first = plan.runs[0].config
    if first.nnunet is not None:
        from pipelines.nnunet.datasets import prepare

        log = folder / "logs" / "nnunet-prepare.log"
        prepare(first, cache_folder(folder, first), available_cores(), log, lambda line: click.echo(line, err=True))
        return
    from pipelines.training.components import prepared_data  # not above: `status` does not wait for it

    for config in {run.config.fold: run.config for run in plan.runs}.values():
        # Nothing is kept in memory: this process does not train.
        prepared_data(config.model_copy(update={"memory_mb": 1e-6}), folder / "cache")


def train_remaining(comparison: Comparison, to_mlflow: Callable[[list[RunState]], None]) -> None:
    """Train every run that has not ended, and show the progress of all, also `to_mlflow`.

    Raises:
        KeyboardInterrupt: it was interrupted; no worker is left.
    """
    estimates = Estimates(comparison)
    with Display(log=comparison.folder / LOG) as display:

        def watch() -> None:
            states = comparison.states
            display.update(states)
            for line in estimates.lines(states):
                display.message(line)
            to_mlflow(states)

        execute(comparison.folder, comparison.plan, comparison.execution.jobs, watch, display.message)
