"""How far a comparison is: a live display on a terminal, a line an epoch elsewhere."""

import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipelines.comparison.state import RunState, epochs_over, seconds_left
from pipelines.duration import duration

_COLOURS = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "dim"}


class Display:
    """Shows the states of the runs while they change; used as a context manager around the work."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        self.done_before: int | None = None
        self.under_way = False
        self.shown: dict[str, tuple[str, int]] = {}
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, states: list[RunState]) -> None:
        """Show the runs as they are now."""
        done = epochs_over(states)
        if self.done_before is None or (not self.under_way and done > self.done_before):
            # The clock starts with the first epoch that is over: what comes before is the workers' start.
            self.under_way = self.done_before is not None
            self.done_before, self.started = done, time.monotonic()
        left = seconds_left(states, time.monotonic() - self.started, self.done_before)
        if self.console.is_terminal:
            finished = sum(state.finished for state in states)
            title = f"{finished} of {len(states)} runs{'' if left is None else f', about {duration(left)} left'}"
            # Of many runs, those that are under way or have just ended are the ones to see.
            room = max(5, self.console.height - 6)
            self.live.update(states_table(_most_interesting(states, room), title))
            return
        self._lines(states, left)

    def tell(self, line: str) -> None:
        """Print a line that stays, above the live table if there is one."""
        if self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)

    def _lines(self, states: list[RunState], left: float | None) -> None:
        for number, state in enumerate(states, start=1):
            now = (state.state, state.epoch)
            before = self.shown.get(state.run.id)
            self.shown[state.run.id] = now
            if before == now or state.state == "waiting":
                continue
            if state.state == "interrupted" and (before is None or before[0] != "running"):
                continue  # by an earlier process
            if before is None and state.finished:
                continue  # finished before this process began
            what = f"epoch {state.epoch}/{state.epochs}" if state.state == "running" else state.state
            if now == ("running", 0):
                what = "started"
            dice = "" if state.dice is None else f", dice {state.dice:.3f}"
            why = "" if state.error is None else f": {state.error}"
            rest = "" if left is None else f" ({duration(left)} left in all)"
            click.echo(f"[{number}/{len(states)}] {state.run.title}: {what}{dice}{why}{rest}", err=True)


def states_table(states: list[RunState], title: str) -> Table:
    """The runs as a table for people."""
    table = Table("loss", "fold", "seed", "state", "epoch", "Dice", "left", title=title, box=None, pad_edge=False)
    for state in states:
        config = state.run.config
        word = f"[{_COLOURS[state.state]}]{state.state}[/]"
        left = "" if state.seconds_left is None else duration(state.seconds_left)
        dice = "" if state.dice is None else f"{state.dice:.3f}"
        epoch = f"{state.epoch}/{state.epochs}"
        table.add_row(config.loss, str(config.fold), str(config.seed), word, epoch, dice, escape(state.error or left))
    return table


def _most_interesting(states: list[RunState], room: int) -> list[RunState]:
    if len(states) <= room:
        return states
    rank = {"running": 0, "failed": 1, "done": 2, "interrupted": 3, "waiting": 4}
    kept = sorted(range(len(states)), key=lambda i: (rank[states[i].state], -i if states[i].state == "done" else i))
    return [states[i] for i in sorted(kept[:room])]
