"""What one loss spends its time and memory on.

python -m benchmarks.profile hausdorff_dt --size 96 --classes 3 --kernels numba
"""

import cProfile
import pstats

import click
import torch
from torch.profiler import ProfilerActivity, profile

import medloss
from benchmarks.cases import CACHING, EXACT, Case, Contender
from benchmarks.contenders import build, kernel_sets
from benchmarks.machine import machine
from benchmarks.measure import alternate, once, summary
from benchmarks.regimes import run_in_regime
from benchmarks.scenes import scene


@click.command(help=__doc__)
@click.argument("loss", type=click.Choice(list(medloss.LOSSES)))
@click.option("--size", default=96, show_default=True, help="Voxels, an axis.")
@click.option("--dimensions", type=click.IntRange(2, 3), default=3, show_default=True)
@click.option("--classes", default=3, show_default=True)
@click.option("--batch", default=2, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--kernels", default="auto", show_default=True, help="A kernel set.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--cached-map", is_flag=True, help="Give the reference's distance map.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--lines", default=15, show_default=True, help="Of each table.")
@click.option("--python", is_flag=True, help="Python's functions, too, by cProfile.")
@click.option("--trace", type=click.Path(), help="Write a trace for chrome://tracing.")
def main(
    loss: str, size: int, dimensions: int, classes: int, batch: int, dtype: str, kernels: str, device: str,
    cached_map: bool, rounds: int, lines: int, python: bool, trace: str | None,
) -> None:  # fmt: skip
    """Time, operators, Python's functions; and memory, in a process of its own."""
    where = torch.device(device)
    logits, target = scene((size,) * dimensions, classes, batch, getattr(torch, dtype))
    logits, target = logits.to(where).requires_grad_(), target.to(where)
    side = build(Contender("medloss", loss, "" if kernels == "auto" else kernels, cached_map), target, classes)
    times = summary(alternate([side], logits, warmup=2, rounds=rounds, least=rounds, seconds=0.0)[0])
    working = kernels if kernels != "auto" else f"auto of {', '.join(kernel_sets(device, dtype))}"
    click.echo(f"{loss} on {' x '.join(map(str, logits.shape))} {dtype}, {device}, kernels: {working}")
    click.echo(machine())
    click.echo(
        f"median of {rounds}: {1000 * times['total']:.1f} ms; forward {times['forward'] / times['total']:.0%}, "
        f"backward {times['backward'] / times['total']:.0%}\n"
    )
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, profile_memory=True) as recorded:
        for _ in range(rounds):
            once(side, logits)
    click.echo(recorded.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=lines))
    if trace:
        recorded.export_chrome_trace(trace)
    if python:
        recorder = cProfile.Profile()
        recorder.runcall(lambda: [once(side, logits) for _ in range(rounds)])
        pstats.Stats(recorder).sort_stats("cumulative").print_stats(lines)
    case = Case("profile", (side.contender,), tuple(target.shape[2:]), classes, batch, dtype, device, 1, 1, 1)
    measured = run_in_regime(case, CACHING if device == "cuda" else EXACT)[0]
    if measured.peak is None:
        click.echo(f"peak memory: not known {measured.note} (it needs Linux's /proc/self/clear_refs)")
    else:
        in_mebibytes = measured.peak * case.logits_bytes / 2**20
        click.echo(f"peak memory beyond the inputs: {in_mebibytes:.1f} MiB, {measured.peak:.2f} x the logits")


if __name__ == "__main__":
    main()
