"""`medloss compare`, `worker` and `status`."""

import signal
import sys
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import run_config, training_options, whole_numbers
from pipelines.errors import UserError


@click.command()
@click.argument("manifest")
@click.option("--losses", default="all", show_default=True, help="Names, sums or dotted paths, by commas; or all.")
@click.option("--folds", default="0", show_default=True, help="Folds that validate, by commas.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, by commas.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time; default: one a core; one on a GPU.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The comparison's folder.")
@click.option("--tracking-uri", help="An MLflow server; default: SQLite in the folder.")
@click.option("--retry-failed", is_flag=True, help="Train failed runs again.")
@click.option("--check/--no-check", default=True, show_default=True, help="Read the whole data set first.")
@training_options
def compare(
    manifest: str,
    losses: str,
    folds: str,
    seeds: str,
    jobs: int | None,
    out: Path,
    tracking_uri: str | None,
    retry_failed: bool,
    check: bool,
    **options: Any,
) -> None:
    """Train every loss on MANIFEST, and compare them. Called again, it goes on where it stopped."""
    from medloss import LOSSES
    from pipelines.comparison.compare import compare_losses
    from pipelines.comparison.plan import make_plan
    from pipelines.dataset.manifest import load_manifest

    items = [item for item in "".join(losses.split()).split(",") if item]
    names = [name for item in items for name in (LOSSES if item == "all" else [item])]
    if not names:
        raise UserError("--losses: got none; expected names by commas, or all")
    if options.pop("threads", None) is not None:
        raise UserError("--threads: a comparison divides the cores among its jobs; pass --jobs instead")
    chosen = list(whole_numbers(folds, "--folds"))
    configs = [run_config(manifest=manifest, loss=name, fold=chosen[0], **options) for name in names]
    loaded = load_manifest(configs[0].manifest)
    for fold in chosen:
        loaded.split(fold)
    plan = make_plan(configs, chosen, list(whole_numbers(seeds, "--seeds")), loaded.name, loaded.sha256)
    # Schedulers, and `docker stop`, end a process by this signal: it then ends in order, as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(compare_losses(out, plan, jobs or _default_jobs(), tracking_uri, retry_failed=retry_failed, check=check))


def _default_jobs() -> int:
    import torch

    from pipelines.comparison.execute import available_cores

    return 1 if torch.cuda.is_available() else available_cores()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--index", type=int, help="Only the run of this number in the plan.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--trust", is_flag=True, help="Import losses of any package that the folder names.")
@click.option("--parent", type=int, hidden=True, help="End with the process of this number.")
def worker(folder: Path, index: int | None, threads: int | None, trust: bool, parent: int | None) -> None:
    """Train the waiting runs of the comparison in FOLDER, one after another, beside any other worker."""
    from pipelines.comparison.worker import exit_with, work

    if parent is not None:
        exit_with(parent)
    work(folder, index, threads, trust=trust)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Show how far the comparison in FOLDER is."""
    from rich.console import Console

    from pipelines.comparison.display import states_table
    from pipelines.comparison.plan import require_plan
    from pipelines.comparison.state import run_states

    plan = require_plan(folder)
    states = run_states(folder, plan)
    counts = {word: sum(s.state == word for s in states) for word in ("done", "failed", "running", "interrupted")}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    console = Console()
    width = None if console.is_terminal else 160
    Console(width=width).print(states_table(states, f"{len(states)} runs: {told or 'all waiting'}"))
