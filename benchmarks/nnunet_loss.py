"""What our losses cost inside nnU-Net, compared with its default loss: time and peak memory of the loss and of a step.

nnU-Net's own network, trainer, optimizer and `train_step`; only the loss changes. All losses take turns in each
round, and a ratio is the median over the rounds of a loss's time divided by that of nnU-Net's default in the same
round. `loss` is forward and backward on all scales of deep supervision; `step` is all of `train_step`. Peaks are
relative to the memory in use before: the loss's peak includes its gradients, the step's also the network's
activations.

    make test-nnunet, then: .venv-nnunet/bin/python -m benchmarks.nnunet_loss [--regions] [--ignore] [--write]
"""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.cases import EXACT, FRESH, RECYCLED
from benchmarks.machine import machine
from benchmarks.memory import peak_memory
from benchmarks.nnunet_plan import Setting, made_batch, make_trainer
from benchmarks.regimes import REGIMES
from medloss import LOSSES
from pipelines.utils.files import write_text

_ROOT = Path(__file__).resolve().parents[1]
_RESULT = _ROOT / "docs" / "benchmarks" / "nnunet.md"
#: nnU-Net's default as nnU-Net has it, and as we have it.
STOCK, SAME = "nnU-Net's own", "dice+binary_cross_entropy"
NAMES = (STOCK, SAME, *LOSSES)
_MIB = 2**20


class Bench:
    """nnU-Net's trainer, and a batch; the loss is exchanged."""

    def __init__(self, setting: Setting, names: Sequence[str]) -> None:
        self.trainer = make_trainer(setting, None)
        image, outputs, targets = made_batch(setting)
        device = self.trainer.device
        # What nnU-Net's autocast hands to the loss.
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.outputs = [z.to(device, dtype).requires_grad_() for z in outputs]
        self.targets = [target.to(device) for target in targets]
        self.batch = {"data": image, "target": targets}
        self.losses: dict[str, nn.Module] = {
            name: make_trainer(setting, None if name == STOCK else name)._build_loss() for name in names
        }

    def loss(self, name: str) -> None:
        """Forward and backward of the loss alone."""
        value: Tensor = self.losses[name](self.outputs, self.targets)
        value.backward()
        for output in self.outputs:
            output.grad = None
        self._wait()

    def step(self, name: str) -> None:
        """A training step."""
        self.trainer.loss = self.losses[name]
        self.trainer.train_step(self.batch)
        self._wait()

    def _wait(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()


def times(setting: Setting, rounds: int, names: Sequence[str] = NAMES) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by `loss` and `step`, and by the loss's name."""
    bench = Bench(setting, names)
    works: dict[str, Callable[[str], None]] = {"loss": bench.loss, "step": bench.step}
    seconds: dict[str, dict[str, list[float]]] = {work: {name: [] for name in bench.losses} for work in works}
    for work, call in works.items():
        for number in range(rounds + 1):
            names = list(bench.losses)
            for name in names if number % 2 else reversed(names):
                start = time.perf_counter()
                call(name)
                if number:  # the first round warms up: kernels are compiled
                    seconds[work][name].append(time.perf_counter() - start)
    return seconds


def peaks(setting: Setting, names: Sequence[str] = NAMES) -> dict[str, dict[str, float | None]]:
    """Bytes at the peak, by `loss` and `step`, and by the loss's name."""
    bench = Bench(setting, names)
    found: dict[str, dict[str, float | None]] = {}
    for work, call in (("loss", bench.loss), ("step", bench.step)):
        found[work] = {}
        for name in bench.losses:
            call(name)
            found[work][name] = peak_memory(lambda call=call, name=name: call(name), bench.trainer.device)  # type: ignore[misc]
    return found


def in_regime(regime: str, what: str, options: list[str]) -> Any:
    """Measure in a separate process, which allocates memory in a given way."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "benchmarks.nnunet_loss", *options, "--only", what]
    done = subprocess.run(
        command, env=inherited | REGIMES[regime], cwd=_ROOT, text=True, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(seconds: dict[str, Any], recycled: dict[str, Any], peak: dict[str, Any]) -> list[str]:
    """A row a loss, its ratios to nnU-Net's default."""
    lines = [
        "| loss | loss, ms | ratio | ratio, memory recycled | peak, MiB | ratio | step, ms | ratio | peak, ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in seconds["loss"]:
        cells = [f"{statistics.median(seconds['loss'][name]) * 1e3:.1f}", _ratio(seconds["loss"], name)]
        cells += [_ratio(recycled["loss"], name), *_peak(peak["loss"], name)]
        cells += [f"{statistics.median(seconds['step'][name]) * 1e3:.0f}", _ratio(seconds["step"], name)]
        lines.append(f"| {name} | {' | '.join(cells)} | {_peak(peak['step'], name)[1]} |")
    return lines


def _ratio(seconds: dict[str, list[float]], name: str) -> str:
    return f"{statistics.median(a / b for a, b in zip(seconds[name], seconds[STOCK], strict=True)):.2f}"


def _peak(peak: dict[str, float | None], name: str) -> tuple[str, str]:
    own, stock = peak[name], peak[STOCK]
    if own is None or not stock:
        return "", ""
    return f"{own / _MIB:.1f}", f"{own / stock:.2f}"


@click.command(help=__doc__)
@click.option("--patch", default="40,56,40", show_default=True, help="Voxels an axis, 2 or 3 of them.")
@click.option("--classes", type=click.IntRange(2), default=3, show_default=True, help="Or regions, and background.")
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True)
@click.option("--features", type=click.IntRange(1), default=32, show_default=True, help="Of the first stage.")
@click.option("--regions", is_flag=True, help="Overlapping regions in the place of labels.")
@click.option("--ignore", is_flag=True, help="With an ignore label.")
@click.option("--batch-dice", is_flag=True, help="The plan's batch_dice.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of torch, on the CPU; default: as many as cores.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", type=click.Choice(["times", "peaks"]), hidden=True)
@click.option("--write", is_flag=True, help=f"Write {_RESULT.name} into docs/benchmarks, too.")
def main(patch: str, rounds: int, threads: int | None, only: str | None, write: bool, **settings: Any) -> None:
    """Measure, print, and write."""
    warnings.simplefilter("ignore")
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(patch=tuple(int(n) for n in patch.split(",")), **settings)
    if only:
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            os.environ |= {"nnUNet_results": folder}
            found = peaks(setting) if only == "peaks" else times(setting, rounds)
        click.echo(json.dumps(found))
        return
    options = sys.argv[1:]
    options = [option for option in options if option != "--write"]
    fresh, recycled = in_regime(FRESH, "times", options), in_regime(RECYCLED, "times", options)
    text = "\n".join(
        [
            f"{setting}, {rounds} rounds.",
            f"Machine: {machine()}.",
            "",
            *table(fresh, recycled, in_regime(EXACT, "peaks", options)),
            "",
        ]
    )
    click.echo(text)
    if write:
        command = " ".join(["python -m benchmarks.nnunet_loss", *options])
        title = "# Losses inside nnU-Net, compared with nnU-Net's own"
        write_text(_RESULT, f"{title}\n\n    {command}\n\n{_about()}\n\n{text}")
        click.echo(f"written to {_RESULT}")


def _about() -> str:
    assert __doc__ is not None
    return __doc__.split("\n\n")[1].replace("\n", " ")


if __name__ == "__main__":
    main()
