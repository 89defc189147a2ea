"""A training step with each loss: what the loss adds to it, next to MONAI's and torch's.

python -m benchmarks.training_step --write           # all rows, and docs/benchmarks/losses/step.md
python -m benchmarks.training_step --quick           # tiny volumes, few rounds: shows that it runs
python -m benchmarks.training_step --report-only     # the page from the results' file

A loss's time is that of a step with it minus that of a step whose backward pass begins with a constant gradient of the
network's output; the steps alternate. Next to it stands the loss's time in place: from the network's output to its
value, and from there to the output's gradient.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import medloss
from benchmarks.cases import FRESH, RECYCLED, Case, Contender, Row, row
from benchmarks.contenders import build, monai_loss
from benchmarks.machine import machine, versions
from benchmarks.measure import Stopwatch, summary
from benchmarks.regimes import EXPLAINED, REGIMES
from benchmarks.scenes import scene
from medloss.kernels import dispatch
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last
from pipelines.utils.files import read_json, write_text

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "docs" / "benchmarks" / "losses"
LOSSES = ("dice", "tversky", "focal", "binary_cross_entropy")
CLASSES = (2, 4, 14)
OURS, COMPILED = "medloss", "torch, compiled"
#: What a process may take: compiling is slow.
_SECONDS = 1800


@dataclass(frozen=True)
class Setting:
    """A network as the engines train it, and how often its step is run.

    Attributes:
        network: as in `RunConfig`.
        precision: `float32` or `bfloat16`, under autocast.
        classes: C.
        heads: number of coarser outputs that are trained, too.
        size: voxels per axis.
        batch: items.
        rounds: rounds that count; in each, every side makes a step.
        losses: which.
        kernels: our kernel sets; an empty name is the one used by default.
        compiled: whether plain torch takes part, compiled.
    """

    network: str
    precision: str
    classes: int
    heads: int
    size: tuple[int, ...] = (64, 64, 64)
    batch: int = 2
    rounds: int = 15
    losses: tuple[str, ...] = LOSSES
    kernels: tuple[str, ...] = ("",)
    compiled: bool = True

    @property
    def key(self) -> str:
        """The setting in words."""
        heads = f", {self.heads} heads" if self.heads else ""
        size = " x ".join(map(str, (self.batch, self.classes, *self.size)))
        return f"{self.network}{heads}, {self.precision}, {size}"


@dataclass(frozen=True)
class Found:
    """What was measured of a side in a regime: medians, milliseconds.

    Attributes:
        added: a step with the loss minus one with a constant gradient, of the same round.
        low, high: quartiles of `added`.
        place: the loss in place, forward and backward.
        step: the step with a constant gradient.
    """

    setting: str
    regime: str
    loss: str
    side: str
    added: float = 0.0
    low: float = 0.0
    high: float = 0.0
    place: float = 0.0
    step: float = 0.0
    note: str = ""


def settings(quick: bool) -> list[Setting]:
    """All rows of the page, or one of each kind that is run within seconds."""
    if quick:
        tiny: dict[str, Any] = {"size": (16, 16, 16), "batch": 1, "rounds": 2, "compiled": False}
        return [Setting("unet", "float32", 2, 0, **tiny), Setting("dynunet", "bfloat16", 3, 1, **tiny)]
    networks = (("unet", 0), ("dynunet", 0), ("dynunet", 1))
    return [
        Setting(network, precision, classes, heads)
        for network, heads in networks
        for precision in ("bfloat16", "float32")
        for classes in CLASSES
    ]


Side = tuple[str, str]
Losses = dict[Side, Callable[[list[Tensor]], Tensor]]


def measure(setting: Setting, regime: str) -> list[Found]:
    """Let the sides' steps take turns in this process."""
    torch.manual_seed(0)
    chosen = {"network": setting.network, "precision": setting.precision, "deep_supervision": setting.heads}
    config = RunConfig.model_validate({"manifest": "phantom"} | chosen)
    layout = channels_last(len(setting.size))
    network = create_network(config, len(setting.size), setting.classes).train()
    network.to(memory_format=layout)  # type: ignore[call-overload]
    image, target = scene(setting.size, setting.classes, setting.batch)
    image = image[:, :1].clone().contiguous(memory_format=layout)
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else None
    optimizer = torch.optim.AdamW(network.parameters())

    def outputs() -> list[Tensor]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            out = network(image)
        return [out] if isinstance(out, Tensor) else list(out)

    # As large as a loss's gradient, and in the layout and type of the outputs.
    constant = [torch.randn_like(out) * 1e-6 for out in outputs()]

    def step(loss: Callable[[list[Tensor]], Tensor] | None) -> tuple[float, float]:
        start = time.perf_counter()
        outs, place = outputs(), 0.0
        if loss is None:
            torch.autograd.backward(outs, constant)
        else:
            done: list[float] = []
            for out in outs:
                out.register_hook(lambda _: done.append(time.perf_counter()))
            before = time.perf_counter()
            loss(outs).backward()
            place = done[len(outs) - 1] - before
        optimizer.step()
        return time.perf_counter() - start, place

    losses, notes = _losses(setting, target, outputs)
    order: list[Side | None] = [None, *losses]
    times: dict[Side | None, list[tuple[float, float]]] = {side: [] for side in order}
    for number in range(setting.rounds + 2):
        # Each leaves its memory to the next.
        for side in order if number % 2 else reversed(order):
            measured = step(None if side is None else losses[side])
            if number >= 2:
                times[side].append(measured)
    plain = [t for t, _ in times[None]]
    rows = []
    for (name, loss), ts in ((side, ts) for side, ts in times.items() if side is not None):
        low, middle, high = _quartiles([1e3 * (t - p) for (t, _), p in zip(ts, plain, strict=True)])
        place, bare = (1e3 * statistics.median(values) for values in ([p for _, p in ts], plain))
        rows.append(Found(setting.key, regime, loss, name, middle, low, high, place, bare))
    return rows + [Found(setting.key, regime, loss, COMPILED, note=note) for loss, note in notes.items()]


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _losses(setting: Setting, target: Tensor, outputs: Callable[[], list[Tensor]]) -> tuple[Losses, dict[str, str]]:
    """A function of the network's outputs per side, and why a compiled one is missing."""
    losses: Losses = {}
    notes: dict[str, str] = {}
    for loss in setting.losses:
        for kernels in setting.kernels:
            side = f"{OURS}, {kernels or dispatch.in_use()}"
            losses[side, loss] = _ours(medloss.create_loss(loss, softmax=True), target, kernels or "auto")
        if loss == "binary_cross_entropy":
            losses["torch", loss] = _elsewhere(PLAIN[loss], target)
        else:
            losses["MONAI", loss] = _elsewhere(monai_loss(loss, setting.classes), target)
        if not setting.compiled:
            continue
        function = _elsewhere(torch.compile(PLAIN[loss]), target)
        try:
            function(outputs()).backward()
        except Exception as error:  # whatever the compiler or the C++ compiler raises
            notes[loss] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        else:
            losses[COMPILED, loss] = function
    return losses, notes


def _ours(loss: nn.Module, target: Tensor, kernels: str) -> Callable[[list[Tensor]], Tensor]:
    supervised = medloss.DeepSupervision(loss)

    def function(outputs: list[Tensor]) -> Tensor:
        with dispatch.use(kernels):
            value: Tensor = supervised(outputs, target) if len(outputs) > 1 else loss(outputs[0], target)
            return value

    return function


def _elsewhere(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Float32 logits, and one loss per scale on a target that is resized in each step, as MONAI's wrapper does."""

    def function(outputs: list[Tensor]) -> Tensor:
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for number, out in enumerate(outputs):
            grid = out.shape[2:]
            label = target
            if grid != target.shape[2:]:
                label = F.interpolate(target.float(), size=tuple(grid), mode="nearest-exact").to(target.dtype)
            total = total + 0.5**number * loss(out.float(), label)
        return total

    return function


def _overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.softmax(logits, 1)
    y = F.one_hot(target[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = tuple(range(2, logits.ndim))
    return (p * y).sum(axes), p.sum(axes), y.sum(axes)


def _plain_dice(logits: Tensor, target: Tensor) -> Tensor:
    tp, prediction, label = _overlap(logits, target)
    return (1 - (2 * tp + 1) / (prediction + label + 1)).mean()


def _plain_tversky(logits: Tensor, target: Tensor) -> Tensor:
    tp, prediction, label = _overlap(logits, target)
    return (1 - (tp + 1) / (tp + 0.3 * (prediction - tp) + 0.7 * (label - tp) + 1)).mean()


def _plain_focal(logits: Tensor, target: Tensor) -> Tensor:
    log = torch.log_softmax(logits, 1).gather(1, target.long())
    return (-((1 - log.exp()) ** 2) * log).mean()


def _plain_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target[:, 0].long())


#: The losses in plain torch, for its compiler.
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice": _plain_dice,
    "tversky": _plain_tversky,
    "focal": _plain_focal,
    "binary_cross_entropy": _plain_entropy,
}


def training_rows(case: Case, regime: str) -> list[Row]:
    """Rows whose `forward`, `backward` and `total` are the loss's, and whose `step` is the whole step's."""
    device = torch.device(case.device)
    logits, target = scene(case.size, case.classes, case.batch)
    layout = channels_last(len(case.size))
    torch.manual_seed(0)
    # Any image will do: a network's time does not hang on what it sees.
    image = logits[:, :1].clone().to(device).contiguous(memory_format=layout)
    target = target.to(device)
    config = RunConfig(manifest="phantom")
    network = create_network(config, len(case.size), case.classes).to(device)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    dtype = autocast_dtype(config, device, case.size)
    optimizer = torch.optim.AdamW(network.parameters())
    losses = {contender: _loss(contender, target, case.classes) for contender in case.contenders}

    def step(contender: Contender) -> tuple[float, float, float]:
        watch = Stopwatch(device)
        with dispatch.use(contender.kernels or "auto"):
            watch.mark()
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                output = network(image)
            # The graph is cut at the logits, so that the loss's backward pass ends where the network's begins.
            cut = output.float().detach().requires_grad_()
            watch.mark()
            value = losses[contender](cut)
            watch.mark()
            value.backward()
            watch.mark()
            output.backward(cut.grad.to(output.dtype))
            optimizer.step()
            watch.mark()
        parts = watch.seconds()
        return parts[1], parts[2], sum(parts)

    times: dict[Contender, list[tuple[float, float, float]]] = {contender: [] for contender in case.contenders}
    for number in range(case.warmup + case.rounds):
        for contender in case.contenders:
            measured = step(contender)
            if number >= case.warmup:
                times[contender].append(measured)
    return [
        row(case, contender, regime, **summary([t[:2] for t in ts]), step=statistics.median(t[2] for t in ts))
        for contender, ts in times.items()
    ]


def _loss(contender: Contender, target: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """The loss as a network is trained with it: ours by its recipe."""
    if contender.library != "medloss":
        return build(contender, target, classes).function
    loss = medloss.create_training_loss(contender.loss, num_classes=classes)
    return lambda logits: loss(logits, target)


def run_in_regime(setting: Setting, regime: str) -> list[Found]:
    """Measure in a separate process, whose memory is managed as the regime says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.training_step", "--worker", regime, "--results", str(result)]
        finished = subprocess.run(
            command,
            input=json.dumps(dataclasses.asdict(setting)),
            env=inherited | REGIMES[regime],
            cwd=_ROOT,
            text=True,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
        )
        if not result.is_file():
            raise click.ClickException(f"{setting.key}, {regime}: {finished.stderr.strip()[-500:]}")
        return [Found(**data) for data in json.loads(result.read_text())]


def _setting_from_json(data: dict[str, Any]) -> Setting:
    tuples: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Setting(**data | tuples)


def page(rows: Sequence[Found], made_on: str) -> str:
    """The report, in Markdown."""
    ours = [r for r in rows if r.side.startswith(OURS)]
    lines = [
        "# What a loss adds to a training step on a CPU",
        "",
        "    python -m benchmarks.training_step --write",
        "",
        f"Machine: {made_on}.",
        "",
        "*added*: the median, over rounds in which the sides take turns, of a step with the loss minus the step of",
        "the same round whose backward pass begins with a constant gradient of the network's output; in brackets the",
        "middle half. *in place*: from the network's output to the loss's value, and from there to the output's",
        "gradient, with the conversion of bfloat16 logits where a side needs one. Milliseconds. Networks,",
        "channels-last images and autocast are as in the engines; each setting and regime runs in a separate process:",
        "",
        *(f"- {title}: {meaning}" for title, meaning in (EXPLAINED[FRESH], EXPLAINED[RECYCLED])),
        "",
        "*ratio*: ours relative to the faster of the others, MONAI's (torch's for cross entropy) and plain torch's,",
        "compiled; in place, since a difference of two steps is of the size of their noise.",
        "",
        "## Ratios",
        "",
        "| side | loss | rows | geometric mean | largest | where |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for side, loss in dict.fromkeys((r.side, r.loss) for r in ours):
        found = [(ratio, r) for r in ours if (r.side, r.loss) == (side, loss) if (ratio := _ratio(r, rows)) is not None]
        if found:
            mean = statistics.geometric_mean([ratio for ratio, _ in found])
            worst, where = max(found, key=lambda pair: pair[0])
            lines.append(
                f"| {side} | {loss} | {len(found)} | {mean:.2f} | {worst:.2f} | {where.setting}, {where.regime} |"
            )
    for setting, regime in dict.fromkeys((r.setting, r.regime) for r in rows):
        here = [r for r in rows if (r.setting, r.regime) == (setting, regime)]
        bare = max(r.step for r in here)
        lines += [
            "",
            f"## {setting}, {EXPLAINED[regime][0]}",
            "",
            f"The step with a constant gradient: {bare:.0f} ms.",
            "",
            "| loss | side | added, ms | in place, ms | ratio |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for r in here:
            if r.note:
                lines.append(f"| {r.loss} | {r.side} | not measured: {r.note} | | |")
                continue
            ratio = _ratio(r, rows) if r.side.startswith(OURS) else None
            shown = "" if ratio is None else f"{ratio:.2f}"
            added = f"{r.added:.1f} ({r.low:.1f} to {r.high:.1f})"
            lines.append(f"| {r.loss} | {r.side} | {added} | {r.place:.2f} | {shown} |")
    return "\n".join(lines) + "\n"


def _ratio(mine: Found, rows: Sequence[Found]) -> float | None:
    """In place, relative to the fastest other side of the same loss."""
    key = (mine.setting, mine.regime, mine.loss)
    others = [r for r in rows if (r.setting, r.regime, r.loss) == key and not r.side.startswith(OURS) and not r.note]
    return mine.place / min(r.place for r in others) if others else None


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Tiny volumes, few rounds.")
@click.option("--only", "parts", multiple=True, help="Settings whose title contains this text; may be repeated.")
@click.option("--regime", "regimes", multiple=True, type=click.Choice([FRESH, RECYCLED]), help="Default: both.")
@click.option("--kernels", multiple=True, type=click.Choice(dispatch.NAMES), help="Default: the set used by default.")
@click.option("--rounds", type=click.IntRange(min=2), help="Rounds that count.")
@click.option("--write", is_flag=True, help="Write step.md and step.json in docs/benchmarks/losses.")
@click.option("--out", type=click.Path(path_type=Path), default=_FOLDER, help="Another folder for --write.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write the page from step.json.")
@click.option("--worker", hidden=True)
@click.option("--results", type=click.Path(path_type=Path), hidden=True)
def main(
    quick: bool,
    parts: tuple[str, ...],
    regimes: tuple[str, ...],
    kernels: tuple[str, ...],
    rounds: int | None,
    write: bool,
    out: Path,
    report_only: bool,
    worker: str | None,
    results: Path | None,
) -> None:
    """Measure setting by setting, show the page or write it."""
    if worker is not None and results is not None:
        warnings.simplefilter("ignore")
        found = measure(_setting_from_json(json.load(sys.stdin)), worker)
        results.write_text(json.dumps([dataclasses.asdict(r) for r in found]))
        return
    stored = out / "step.json"
    known: dict[str, Any] = (read_json(stored) or {}) if write or report_only else {}
    kept = {(r["setting"], r["regime"]): [Found(**x) for x in r["rows"]] for r in known.get("groups", [])}
    made_on = known.get("machine", "")
    if report_only and not kept:
        raise click.ClickException(f"{stored}: no results; expected those of an earlier --write")
    if not report_only:
        made_on = f"{machine()}, MONAI {versions()['monai']}, numba {versions()['numba']}"
        chosen = [s for s in settings(quick) if not parts or any(part in s.key for part in parts)]
        if not chosen:
            raise click.ClickException(
                f"--only {' '.join(parts)}: no setting; expected part of {settings(quick)[0].key}"
            )
        for setting in chosen:
            setting = dataclasses.replace(setting, rounds=rounds or setting.rounds, kernels=kernels or setting.kernels)
            for regime in regimes or (FRESH, RECYCLED):
                start = time.perf_counter()
                kept[setting.key, regime] = [Found(**_rounded(r)) for r in run_in_regime(setting, regime)]
                click.echo(f"{setting.key}, {regime}: {time.perf_counter() - start:.0f} s", err=True)
                if write:
                    # After each: a long run that is stopped keeps what it has.
                    _write(stored, kept, made_on)
    text = page([r for rows in kept.values() for r in rows], made_on)
    if write or report_only:
        write_text(out / "step.md", text)
        click.echo(f"written to {out / 'step.md'}")
    else:
        click.echo(text)


def _write(stored: Path, kept: dict[tuple[str, str], list[Found]], made_on: str) -> None:
    groups = [
        {"setting": setting, "regime": regime, "rows": [dataclasses.asdict(r) for r in rows]}
        for (setting, regime), rows in kept.items()
    ]
    write_text(stored, json.dumps({"machine": made_on, "groups": groups}, indent=1) + "\n")


def _rounded(found: Found) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in data.items()}


if __name__ == "__main__":
    main()
