"""What the engine costs: an epoch of `train_run` against one of a bare PyTorch loop, alternating, in one process.

Both have the same network, loss, optimizer, precision, memory format and batches, from the same loader, and start from
the same weights; that their training losses agree to the last bit shows that they do the same work. The engine's time
is all that `train_run` does between two epochs' ends: handlers, checks for NaN, checkpoint and progress files.

    python -m benchmarks.engine_overhead
    python -m benchmarks.engine_overhead --manifest msd_task04_hippocampus --data-root DIR --write
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

import medloss
from benchmarks.machine import machine
from pipelines.preprocessing.patches import PatchDataset, start_epoch, training_loader
from pipelines.training.components import create_optimizer, create_schedule, prepared_data
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run import Progress, train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last
from pipelines.utils.files import write_text
from pipelines.utils.machine import seed_everything

_RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "engine.md"


def bare_loop(config: RunConfig) -> Callable[[int], tuple[float, float]]:
    """A plain loop over the batches of `config`'s run; returns what trains an epoch.

    Returns:
        A function of the epoch's number, which gives its mean loss and the seconds that it waited for batches.
    """
    data = prepared_data(config)
    config, manifest = data.config, data.manifest
    patches = PatchDataset(data.training, config.patch_size or (), config.seed, augmentation=config.augmentation)
    loader = training_loader(patches, config.batch_size or 1, config.workers)
    dtype = autocast_dtype(config, torch.device("cpu"), config.patch_size or ())
    layout: Any = channels_last(manifest.dimensions)
    seed_everything(config.seed, 0)
    network = create_network(config, manifest.dimensions, manifest.scheme.channels)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    loss_function = medloss.create_training_loss(config.loss, num_classes=manifest.scheme.channels)
    optimizer = create_optimizer(network, config)
    schedule = create_schedule(optimizer, config, len(loader))
    network.train()

    def epoch(number: int) -> tuple[float, float]:
        seed_everything(config.seed, number)
        start_epoch(loader, number)
        losses, waited, before = [], 0.0, time.perf_counter()
        for batch in loader:
            waited += time.perf_counter() - before
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                logits = network(batch["image"].contiguous(memory_format=layout))
            loss = medloss.call_loss(loss_function, logits.float(), batch["label"], spacing=batch["spacing"])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            before = time.perf_counter()
        return statistics.fmean(losses), waited

    return epoch


class _Lap:
    """Seconds since the last call, by the clock and of the processor."""

    def __init__(self) -> None:
        self.last = (time.perf_counter(), time.process_time())

    def __call__(self) -> tuple[float, float]:
        now = (time.perf_counter(), time.process_time())
        clock, cpu = now[0] - self.last[0], now[1] - self.last[1]
        self.last = now
        return clock, cpu


def measure(config: RunConfig, folder: Path) -> tuple[list[dict[str, float]], str]:
    """Alternate the epochs of a run and of the bare loop.

    Returns:
        A row an epoch, the first and the last one apart: seconds of `engine` and `bare`, the processor's seconds of
        each, `engine_cpu` and `bare_cpu`, and what `bare` waited for batches. And the precision.
    """
    train_bare = bare_loop(config)
    rows: list[dict[str, float]] = []
    lap = _Lap()

    def after_epoch(progress: Progress) -> None:
        engine, engine_cpu = lap()
        loss, waited = train_bare(progress.epoch)
        bare, bare_cpu = lap()
        if loss != progress.train_loss:
            raise RuntimeError(f"epoch {progress.epoch}: the losses differ: {progress.train_loss} and {loss}")
        row = {"engine": engine, "engine_cpu": engine_cpu, "bare": bare, "bare_cpu": bare_cpu, "waited": waited}
        rows.append(row)
        click.echo(f"epoch {progress.epoch}: engine {engine:.2f} s, bare {bare:.2f} s, ratio {engine / bare:.3f}")
        lap()

    result = train_run(config, folder, report=after_epoch)
    # The first epoch warms up, and reads the data; the last one validates.
    return rows[1:-1], result["precision"]


def report(config: RunConfig, rows: list[dict[str, float]], precision: str) -> str:
    """The measurement as Markdown."""
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    low, middle, high = statistics.quantiles((row["engine"] / row["bare"] for row in rows), n=4, method="inclusive")
    table = [
        "| medians | engine | bare loop | ratio |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {what}, s per epoch | {median[f'engine{kind}']:.3f} | {median[f'bare{kind}']:.3f} "
            f"| {median[f'engine{kind}'] / median[f'bare{kind}']:.3f} |"
            for what, kind in (("elapsed", ""), ("CPU time", "_cpu"))
        ),
        "",
        f"Ratio of neighbouring epochs, elapsed time: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}. "
        f"The bare loop waits for batches {median['waited'] / median['bare']:.1%} of its time.",
    ]
    what = f"{config.manifest}, {config.network}, batch {config.batch_size}, {precision}, {len(rows)} epochs of each"
    return "\n".join([f"{what}.", f"Machine: {machine()}.", "", *table, ""])


@click.command(help=__doc__)
@click.option("--manifest", default="phantom", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--network", type=click.Choice(["unet", "vnet"]), default="unet", show_default=True)
@click.option("--epochs", type=click.IntRange(4), default=11, show_default=True, help="Of each.")
@click.option("--threads", type=int)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--write", is_flag=True, help=f"Write {_RESULT.name} into docs/benchmarks, too.")
def main(data_root: Path | None, epochs: int, write: bool, **options: Any) -> None:
    """Measure, print, and write."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            data_root=None if data_root is None else str(data_root), epochs=epochs, val_interval=epochs,
            cache_dir=str(Path(folder) / "cache"), device="cpu", **options,
        )  # fmt: skip
        text = report(config, *measure(config, Path(folder) / "run"))
    click.echo("\n" + text)
    if write:
        command = f"python -m benchmarks.engine_overhead --manifest {config.manifest} --epochs {epochs}"
        write_text(_RESULT, f"# The engines compared with a bare loop\n\n    {command}\n\n{text}")
        click.echo(f"written to {_RESULT}")


if __name__ == "__main__":
    main()
