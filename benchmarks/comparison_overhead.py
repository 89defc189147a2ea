"""What a comparison costs over its runs alone: `medloss compare` against the same runs, in one process.

Two questions, one row each: with one job, how much longer it takes than the sum of the runs (the goal: 1.05); with J
jobs on J cores, how much longer than that sum divided by J (the goal: 1.15). The runs are those of the plan that the
comparison made, with as many threads as its workers have, and from separately prepared cases; that the training
losses agree to the last bit shows that both do the same work. A comparison's time includes everything: reading the
whole data set first, starting processes, MLflow, table, report.

Runs that are trained at the same time slow each other down, whoever starts them: they share the memory and its caches.
So the table also has the sum of the times that the comparison's runs report (epochs and validations).

CPU time is given next to the elapsed time: it is more reliable on a machine that is also busy with other work.

    python -m benchmarks.comparison_overhead
    python -m benchmarks.comparison_overhead --manifest msd_task04_hippocampus --data-root DIR --losses survey --write
"""

import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.machine import machine
from pipelines.runs.comparison_folder import require_plan, run_folder
from pipelines.runs.plan import Plan
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils.files import read_json, write_json, write_text
from pipelines.utils.machine import available_cores, thread_environment

_ROOT = Path(__file__).resolve().parents[1]
_RESULT = _ROOT / "docs" / "benchmarks" / "comparison.md"
_GOALS = {True: 1.05, False: 1.15}


@dataclass(frozen=True)
class Row:
    """A comparison and its trainings alone; seconds.

    Attributes:
        jobs: runs at a time.
        threads: a run's.
        runs: how many.
        bare: the trainings alone, one after another.
        bare_cpu: of the processor.
        compare: the whole comparison.
        compare_cpu: of the processor, of all its processes.
        inside: its runs' own times, summed up.
    """

    jobs: int
    threads: int
    runs: int
    bare: float
    bare_cpu: float
    compare: float
    compare_cpu: float
    inside: float

    @property
    def ratio(self) -> float:
        """The comparison's time in that of the trainings, divided by the jobs."""
        return self.compare / (self.bare / self.jobs)

    @property
    def inside_ratio(self) -> float:
        """The comparison's time in that of its own runs, divided by the jobs."""
        return self.compare / (self.inside / self.jobs)


def measure(arguments: list[str], jobs: int, folder: Path) -> Row:
    """Carry out a comparison and, after it, its trainings alone.

    Args:
        arguments: of `medloss compare`, without `--out` and `--jobs`.
        jobs: runs at a time.
        folder: an empty one.

    Raises:
        RuntimeError: one of them fails, or they did not train the same.
    """
    out = folder / "comparison"
    command = [sys.executable, "-m", "pipelines.cli", "compare", *arguments, "--out", str(out), "--jobs", str(jobs)]
    compare, compare_cpu = _timed(command, os.environ | {"MLFLOW_TRACKING_URI": ""})
    plan = require_plan(out)
    threads = max(1, available_cores() // min(jobs, len(plan.runs)))
    alone = folder / "alone"
    configs = [
        run.config.model_copy(update={"threads": threads, "cache_dir": str(alone / "cache")}) for run in plan.runs
    ]
    write_json(alone / "configs.json", [config.model_dump(mode="json") for config in configs])
    command = [sys.executable, "-m", "benchmarks.comparison_overhead", "--alone", str(alone)]
    _timed(command, os.environ | thread_environment(threads))
    _refuse_other_work(plan, out, alone)
    seconds = read_json(alone / "seconds.json")
    inside = sum((run_folder(out, run).result or {})["seconds"] for run in plan.runs)
    return Row(jobs, threads, len(plan.runs), seconds["clock"], seconds["cpu"], compare, compare_cpu, inside)


def train_alone(folder: Path) -> None:
    """Train the runs of a folder's `configs.json`, one after another; leaves `seconds.json`."""
    from pipelines.training.run import train_run

    configs = [RunConfig.model_validate(content) for content in read_json(folder / "configs.json")]
    clock = cpu = 0.0
    for number, config in enumerate(configs):
        start, start_cpu = time.perf_counter(), time.process_time()
        train_run(config, folder / str(number))
        clock, cpu = clock + time.perf_counter() - start, cpu + time.process_time() - start_cpu
    write_json(folder / "seconds.json", {"clock": clock, "cpu": cpu})


def _timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; seconds by the clock, and of the processor with all processes that it waited for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _refuse_other_work(plan: Plan, out: Path, alone: Path) -> None:
    for number, run in enumerate(plan.runs):
        losses = [
            [row["train_loss"] for row in folder.epochs]
            for folder in (run_folder(out, run), RunFolder(alone / str(number)))
        ]
        if losses[0] != losses[1]:
            raise RuntimeError(f"{run.title}: the training losses differ: {losses[0]} and {losses[1]}")


def report(rows: list[Row]) -> str:
    """The measurements as Markdown; of several rounds the medians."""
    table = [
        "| jobs | threads per run | runs alone, s | divided by the jobs, s | comparison, s | ratio | goal "
        "| sum over its runs, s | ratio to that sum |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    processor = ["| jobs | runs alone, s | comparison, s | ratio |", "| ---: | ---: | ---: | ---: |"]
    for jobs in dict.fromkeys(row.jobs for row in rows):
        same = [row for row in rows if row.jobs == jobs]
        bare, compare, bare_cpu, compare_cpu, ratio, inside, inside_ratio = (
            statistics.median(getattr(row, name) for row in same)
            for name in ("bare", "compare", "bare_cpu", "compare_cpu", "ratio", "inside", "inside_ratio")
        )
        goal = _GOALS[jobs == 1]
        met = "met" if ratio <= goal else "**missed**"
        table.append(
            f"| {jobs} | {same[0].threads} | {bare:.1f} | {bare / jobs:.1f} | {compare:.1f} | {ratio:.3f} "
            f"| {goal}: {met} | {inside:.1f} | {inside_ratio:.3f} |"
        )
        processor.append(f"| {jobs} | {bare_cpu:.1f} | {compare_cpu:.1f} | {compare_cpu / bare_cpu:.3f} |")
    rounds = len(rows) // len({row.jobs for row in rows})
    return "\n".join(
        [
            f"{rows[0].runs} runs, {rounds} {'round' if rounds == 1 else 'rounds'}. Machine: {machine()}.",
            "",
            *table,
            "",
            "CPU time:",
            "",
            *processor,
            "",
        ]
    )


@click.command(help=__doc__)
@click.option("--manifest", default="phantom", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--losses", default="survey", show_default=True)
@click.option("--folds", default="0", show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--batch-size", type=int, default=2, show_default=True)
@click.option("--val-interval", type=int, default=5, show_default=True)
@click.option("--jobs", help="By commas; default: 1, and as many as there are cores.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Of each; medians count.")
@click.option("--write", is_flag=True, help=f"Write {_RESULT.name} into docs/benchmarks, too.")
@click.option("--alone", type=click.Path(path_type=Path), hidden=True, help="Train what this folder says; no more.")
def main(
    manifest: str,
    data_root: Path | None,
    losses: str,
    folds: str,
    epochs: int,
    batch_size: int,
    val_interval: int,
    jobs: str | None,
    rounds: int,
    write: bool,
    alone: Path | None,
) -> None:
    """Measure, print, and write."""
    if alone is not None:
        train_alone(alone)
        return
    settings = {
        "losses": losses, "folds": folds, "epochs": epochs, "batch-size": batch_size, "val-interval": val_interval,
    }  # fmt: skip
    asked = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    arguments = [manifest, *asked, *([] if data_root is None else ["--data-root", str(data_root.resolve())])]
    numbers = dict.fromkeys([1, available_cores()] if jobs is None else [int(number) for number in jobs.split(",")])
    rows = []
    for _ in range(rounds):
        for number in numbers:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(arguments, number, Path(folder))
            rows.append(row)
            click.echo(f"{number} jobs: alone {row.bare:.1f} s, comparison {row.compare:.1f} s, ratio {row.ratio:.3f}")
    text = report(rows)
    click.echo("\n" + text)
    if write:
        command = shlex.join(["python", "-m", "benchmarks.comparison_overhead", "--manifest", manifest, *asked])
        write_text(_RESULT, f"# What a comparison costs over its runs alone\n\n    {command}\n\n{text}")
        click.echo(f"written to {_RESULT}")


if __name__ == "__main__":
    main()
