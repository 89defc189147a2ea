"""A training step with each loss: what the loss adds to it, next to MONAI's and torch's.

python -m benchmarks.training_step --write           # all rows, and docs/benchmarks/losses/step.md
python -m benchmarks.training_step --quick --write   # the settings that matter: ten minutes on two quiet cores
python -m benchmarks.training_step --tiny            # tiny volumes, few rounds: shows that it runs
python -m benchmarks.training_step --report-only     # the page from the results' file

A loss's time is that of a step with it minus that of a step whose backward pass begins with a constant gradient of the
network's output; the steps alternate. Next to it stands the loss's time in place: from the network's output to its
value, and from there to the output's gradient. In the regime `exact`, memory is measured in the place of time.

With `--write` each setting's results are kept as soon as they are there: a run that was interrupted resumes, and
measures again only what another version of the code or another machine has measured, or what failed.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import resource
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
from benchmarks.cases import EXACT, FRESH, RECYCLED, Case, Contender, Row, row
from benchmarks.contenders import build, monai_loss
from benchmarks.machine import machine, versions
from benchmarks.measure import Stopwatch, summary
from benchmarks.memory import peak_memory
from benchmarks.regimes import EXPLAINED, REGIMES
from benchmarks.scenes import scene
from medloss.distance.maps import signed_distance_map
from medloss.kernels import dispatch
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last
from pipelines.utils.files import read_json, write_text

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "docs" / "benchmarks" / "losses"
LOSSES = ("dice", "tversky", "focal", "binary_cross_entropy")
CLASSES = (2, 4, 14)
#: Those of distances and neighbourhoods, measured relative to Dice.
DISTANCE_LOSSES = (
    "distance_penalty",
    "structural_similarity",
    "shape_aware",
    "hausdorff_dt",
    "hausdorff_er",
    "hausdorff_cv",
)
OURS, COMPILED = "medloss", "torch, compiled"
#: The network that nnU-Net plans, from the package of nnU-Net's environment.
NNUNET, _NNUNET_PACKAGE = "nnunet", "dynamic_network_architectures"
_NNUNET_STAGES, _NNUNET_CHANNELS = 4, 32
#: What a process may take: compiling is slow.
_SECONDS = 1800


@dataclass(frozen=True)
class Setting:
    """A network as the engines train it, and how often its step is run.

    Attributes:
        network: as in `RunConfig`, or `nnunet`: nnU-Net's `PlainConvUNet`, whose heads are all or none.
        precision: `float32` or `bfloat16`, under autocast.
        classes: C.
        heads: number of coarser outputs that are trained, too.
        size: voxels per axis.
        batch: items.
        rounds: rounds that count; in each, every side makes a step.
        losses: which.
        kernels: our kernel sets; an empty name is the one used by default.
        compiled: whether plain torch takes part, compiled.
        prepared: whether our losses are given the reference's distance map, as a data set that stores it does.
        regimes: of the memory.
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
    prepared: bool = False
    regimes: tuple[str, ...] = (FRESH, RECYCLED)

    @property
    def key(self) -> str:
        """The setting in words."""
        heads = f", {self.heads} heads" if self.heads else ""
        size = " x ".join(map(str, (self.batch, self.classes, *self.size)))
        prepared = ", prepared maps" if self.prepared else ""
        return f"{self.network}{heads}, {self.precision}, {size}{prepared}"


@dataclass(frozen=True)
class Found:
    """What was measured of a side in a regime: medians, milliseconds.

    Attributes:
        added: a step with the loss minus one with a constant gradient, of the same round.
        low, high: quartiles of `added`.
        place: the loss in place, forward and backward.
        step: the step with a constant gradient.
        memory: what the loss adds to the step's peak, in sizes of the logits; None where time was measured.
        note: why nothing was measured.
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
    memory: float | None = None
    note: str = ""


def settings(which: str = "") -> list[Setting]:
    """All rows of the page; those of `quick`; or with `tiny` one of each kind that is run within seconds."""
    if which == "tiny":
        tiny: dict[str, Any] = {"size": (16, 16, 16), "batch": 1, "rounds": 2, "compiled": False}
        return [
            Setting("unet", "float32", 2, 0, **tiny),
            Setting("dynunet", "bfloat16", 3, 1, **tiny),
            Setting("unet", "float32", 3, 0, losses=("dice", *DISTANCE_LOSSES), prepared=True, **tiny),
            Setting("unet", "bfloat16", 2, 0, losses=("dice",), regimes=(EXACT,), **tiny),
        ]
    both = ("", "eager")
    wide: dict[str, Any] = {"size": (128, 128, 64), "batch": 1}
    distances: dict[str, Any] = {
        "losses": ("dice", *DISTANCE_LOSSES), "compiled": False, "prepared": True, "rounds": 7,
    }  # fmt: skip
    memory: dict[str, Any] = {"losses": (*LOSSES, *DISTANCE_LOSSES), "regimes": (EXACT,), "prepared": True}
    if which == "quick":
        return [
            Setting("unet", "bfloat16", 2, 0, kernels=both, rounds=9),
            Setting("unet", "float32", 4, 0, kernels=both, rounds=9),
            Setting("dynunet", "bfloat16", 14, 1, kernels=both, rounds=7),
            Setting("unet", "bfloat16", 4, 0, rounds=5, regimes=(FRESH,), **wide),
            Setting("unet", "bfloat16", 3, 0, **distances),
            Setting("unet", "bfloat16", 4, 0, **memory),
        ]
    networks = (("unet", 0), ("dynunet", 0), ("dynunet", 1), (NNUNET, 0), (NNUNET, 2))
    return [
        *(
            Setting(network, precision, classes, heads, kernels=both)
            for network, heads in networks
            for precision in ("bfloat16", "float32")
            for classes in CLASSES
        ),
        *(Setting("unet", "bfloat16", classes, 0, rounds=9, **wide) for classes in CLASSES),
        *(Setting("unet", "bfloat16", classes, 0, **distances) for classes in (2, 3, 14)),
        *(Setting("unet", "bfloat16", classes, 0, **memory) for classes in CLASSES),
    ]


Side = tuple[str, str]
Losses = dict[Side, Callable[[list[Tensor]], Tensor]]


def _network(setting: Setting) -> nn.Module:
    if setting.network == NNUNET:
        architectures = importlib.import_module(f"{_NNUNET_PACKAGE}.architectures.unet")
        stages = _NNUNET_STAGES
        made: nn.Module = architectures.PlainConvUNet(
            1,
            stages,
            [min(_NNUNET_CHANNELS * 2**level, 320) for level in range(stages)],
            nn.Conv3d,
            3,
            [1] + [2] * (stages - 1),
            2,
            setting.classes,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=setting.heads > 0,
        )
        return made.train()
    chosen = {"network": setting.network, "precision": setting.precision, "deep_supervision": setting.heads}
    config = RunConfig.model_validate({"manifest": "phantom"} | chosen)
    return create_network(config, len(setting.size), setting.classes).train()


def measure(setting: Setting, regime: str) -> list[Found]:
    """Let the sides' steps take turns in this process."""
    if setting.network == NNUNET and importlib.util.find_spec(_NNUNET_PACKAGE) is None:
        return [_not_measured(setting, regime, f"{_NNUNET_PACKAGE} is not installed")]
    torch.manual_seed(0)
    layout = channels_last(len(setting.size))
    network = _network(setting)
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

    losses, notes = _losses(
        setting if regime != EXACT else dataclasses.replace(setting, compiled=False), target, outputs
    )
    if regime == EXACT:
        return _memory(setting, regime, losses, step, sum(c.nbytes for c in constant))
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


def _memory(
    setting: Setting,
    regime: str,
    losses: Losses,
    step: Callable[[Callable[[list[Tensor]], Tensor] | None], object],
    logits: int,
) -> list[Found]:
    """What each side adds to the step's peak; the gradient that it hands to the network is part of it."""
    cpu = torch.device("cpu")

    def peak(loss: Callable[[list[Tensor]], Tensor] | None) -> int | None:
        step(loss)
        return peak_memory(lambda: step(loss), cpu)

    bare = peak(None)
    rows = []
    for (side, loss), function in losses.items():
        with_loss = peak(function)
        known = bare is not None and with_loss is not None
        row = Found(setting.key, regime, loss, side, note="" if known else "this system cannot tell the peak")
        rows.append(dataclasses.replace(row, memory=(with_loss - bare) / logits) if known else row)  # type: ignore[operator]
    return rows


def _not_measured(setting: Setting, regime: str, note: str) -> Found:
    return Found(setting.key, regime, "all", "all", note=note)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _losses(setting: Setting, target: Tensor, outputs: Callable[[], list[Tensor]]) -> tuple[Losses, dict[str, str]]:
    """A function of the network's outputs per side, and why a compiled one is missing."""
    losses: Losses = {}
    notes: dict[str, str] = {}
    maps: dict[str, Tensor] = {}
    if setting.prepared:
        maps["distance_map"] = signed_distance_map(torch.cat([target == c for c in range(setting.classes)], 1))
    for loss in setting.losses:
        for kernels in setting.kernels:
            side = f"{OURS}, {kernels or dispatch.in_use()}"
            losses[side, loss] = _ours(medloss.create_loss(loss, softmax=True), target, kernels, maps)
        if loss in DISTANCE_LOSSES and loss != "hausdorff_dt":
            continue
        if loss == "binary_cross_entropy":
            losses["torch", loss] = _elsewhere(PLAIN[loss], target)
        else:
            losses["MONAI", loss] = _elsewhere(monai_loss(loss, setting.classes), target)
        if not setting.compiled or loss not in PLAIN:
            continue
        function = _elsewhere(torch.compile(PLAIN[loss]), target)
        try:
            function(outputs()).backward()
        except Exception as error:  # whatever the compiler or the C++ compiler raises
            notes[loss] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        else:
            losses[COMPILED, loss] = function
    return losses, notes


def _ours(loss: nn.Module, target: Tensor, kernels: str, maps: dict[str, Tensor]) -> Callable[[list[Tensor]], Tensor]:
    supervised = medloss.DeepSupervision(loss)

    def function(outputs: list[Tensor]) -> Tensor:
        with dispatch.use(kernels or "auto"):
            single = len(outputs) == 1
            value: Tensor = loss(outputs[0], target, **maps) if single else supervised(outputs, target, **maps)
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
    """Measure in a separate process, whose memory is managed as the regime says; a failure is a row that says so."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.training_step", "--worker", regime, "--results", str(result)]
        try:
            finished = subprocess.run(
                command,
                input=json.dumps(dataclasses.asdict(setting)),
                env=inherited | REGIMES[regime],
                cwd=_ROOT,
                text=True,
                stderr=subprocess.PIPE,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [_not_measured(setting, regime, f"took more than {_SECONDS} s")]
        if result.is_file():
            return [Found(**data) for data in json.loads(result.read_text())]
    last = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
    return [_not_measured(setting, regime, f"failed: {last[:200]}")]


def _setting_from_json(data: dict[str, Any]) -> Setting:
    tuples: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Setting(**data | tuples)


@dataclass(frozen=True)
class Group:
    """What was measured of a setting in a regime, and on what.

    Attributes:
        rows: of every side.
        code: a digest of the sources that were measured.
        machine: processor, threads and versions.
        others: share of the cores that other processes used meanwhile; None where the system cannot tell.
    """

    rows: tuple[Found, ...]
    code: str
    machine: str
    others: float | None = None

    @property
    def complete(self) -> bool:
        """Whether the setting was measured at all."""
        return all(r.side != "all" for r in self.rows)


Groups = dict[tuple[str, str], Group]


def page(groups: Groups) -> str:
    """The report, in Markdown."""
    rows = [r for group in groups.values() for r in group.rows]
    timed = [r for r in rows if r.regime != EXACT]
    lines = [
        "# What a loss adds to a training step on a CPU",
        "",
        "    python -m benchmarks.training_step --write            # all settings",
        "    python -m benchmarks.training_step --quick --write    # those that matter most",
        "",
        "| machine | settings | cores used by other processes |",
        "| --- | ---: | ---: |",
        *(_machine_row(name, groups) for name in dict.fromkeys(group.machine for group in groups.values())),
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
        "compiled; in place, since a difference of two steps is of the size of their noise. *x dice*: relative to our",
        "Dice's time in place. *prepared maps*: the reference's distance map is given, as from `DistanceMapd`.",
        "",
        "## Goals",
        "",
        "| what | at most | measured | where | |",
        "| --- | ---: | ---: | --- | --- |",
        *_goals(rows),
        "",
        "## Ratios",
        "",
        "| side | loss | rows | geometric mean | largest | where |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    ours = [r for r in timed if r.side.startswith(OURS)]
    for side, loss in dict.fromkeys((r.side, r.loss) for r in ours):
        found = [(ratio, r) for r in ours if (r.side, r.loss) == (side, loss) if (ratio := _ratio(r, rows)) is not None]
        if found:
            mean = statistics.geometric_mean([ratio for ratio, _ in found])
            worst, where = max(found, key=lambda pair: pair[0])
            lines.append(f"| {side} | {loss} | {len(found)} | {mean:.2f} | {worst:.2f} | {_place(where)} |")
    for setting, regime in dict.fromkeys((r.setting, r.regime) for r in timed):
        lines += ["", *_section([r for r in timed if (r.setting, r.regime) == (setting, regime)], rows)]
    memory = [r for r in rows if r.regime == EXACT]
    if memory:
        lines += [
            "",
            "## Memory",
            "",
            "What the loss adds to the step's peak of resident memory, in sizes of the logits; 1 of them is the",
            "gradient that it hands to the network.",
            "",
            "| setting | loss | side | added |",
            "| --- | --- | --- | ---: |",
            *(
                f"| {r.setting} | {r.loss} | {r.side} | "
                f"{f'not measured: {r.note}' if r.memory is None else f'{r.memory:.2f}'} |"
                for r in memory
            ),
        ]
    return "\n".join(lines) + "\n"


def _machine_row(name: str, groups: Groups) -> str:
    here = [group for group in groups.values() if group.machine == name]
    shares = [group.others for group in here if group.others is not None]
    share = f"{min(shares):.0%} to {max(shares):.0%}" if shares else "unknown"
    return f"| {name} | {len(here)} | {share} |"


def _section(here: list[Found], rows: Sequence[Found]) -> list[str]:
    lines = [f"## {_place(here[0])}", ""]
    missing = [r for r in here if r.side == "all"]
    if missing:
        return [*lines, f"Not measured: {missing[0].note}."]
    lines += [
        f"The step with a constant gradient: {max(r.step for r in here):.0f} ms.",
        "",
        "| loss | side | added, ms | in place, ms | ratio | x dice |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in here:
        if r.note:
            lines.append(f"| {r.loss} | {r.side} | not measured: {r.note} | | | |")
            continue
        ratio = _ratio(r, rows) if r.side.startswith(OURS) else None
        by_dice = _relative(r, "dice", rows) if r.loss in DISTANCE_LOSSES else None
        shown = ["" if number is None else f"{number:.2f}" for number in (ratio, by_dice)]
        added = f"{r.added:.1f} ({r.low:.1f} to {r.high:.1f})"
        lines.append(f"| {r.loss} | {r.side} | {added} | {r.place:.2f} | {' | '.join(shown)} |")
    return lines


def _place(r: Found) -> str:
    return f"{r.setting}, {EXPLAINED[r.regime][0]}"


def _ratio(mine: Found, rows: Sequence[Found], sides: Sequence[str] = ("MONAI", "torch", COMPILED)) -> float | None:
    """In place, relative to the fastest other side of the same loss."""
    key = (mine.setting, mine.regime, mine.loss)
    others = [r.place for r in rows if (r.setting, r.regime, r.loss) == key and r.side in sides and not r.note]
    return mine.place / min(others) if others and not mine.note else None


def _relative(mine: Found, loss: str, rows: Sequence[Found]) -> float | None:
    """In place, relative to another loss on the same side; for other libraries, to ours by default."""
    key = (mine.setting, mine.regime, loss)
    same = [r for r in rows if (r.setting, r.regime, r.loss) == key and not r.note and r.side.startswith(OURS)]
    same = [r for r in same if r.side == mine.side] or same[:1]
    return mine.place / same[0].place if same and not mine.note else None


def _goals(rows: Sequence[Found]) -> list[str]:
    """The goals, and how far each is reached."""
    timed = [r for r in rows if r.regime != EXACT and r.side.startswith(OURS) and not r.note]
    fast = [r for r in timed if not r.side.endswith("eager")]
    plain = [r for r in timed if r.side.endswith("eager")]
    eager = ("MONAI", "torch")

    def by(sides: Sequence[Found], losses: Sequence[str], other: str) -> list[tuple[float | None, Found]]:
        return [(_relative(r, other, rows), r) for r in sides if r.loss in losses]

    region = [(_ratio(r, rows), r) for r in fast if r.loss in LOSSES]
    monai = [(_ratio(r, rows, ("MONAI",)), r) for r in fast if r.loss == "hausdorff_dt"]
    second = [(_ratio(r, rows, eager), r) for r in plain if r.loss in LOSSES]
    memory = [(r.memory, r) for r in rows if r.regime == EXACT and r.side.startswith(OURS) and r.loss in LOSSES]
    names = "dice, tversky, focal, cross entropy"
    mean = [ratio for ratio, _ in region if ratio is not None]
    lines = [_goal(f"{names}: largest ratio", 0.9, region)]
    if mean:
        found = statistics.geometric_mean(mean)
        lines.append(f"| {names}: geometric mean | 0.50 | {found:.2f} | | {'reached' if found <= 0.5 else 'missed'} |")
    lines += [
        _goal("the same without numba, relative to MONAI's and torch's: largest ratio", 1.25, second),
        _goal("distance_penalty, structural_similarity, shape_aware: x dice", 3, by(fast, DISTANCE_LOSSES[:3], "dice")),
        _goal("hausdorff_dt, hausdorff_er: x dice", 6, by(fast, DISTANCE_LOSSES[3:5], "dice")),
        _goal("hausdorff_dt, relative to MONAI's HausdorffDTLoss", 0.1, monai),
        _goal("hausdorff_cv, relative to hausdorff_dt", 3, by(fast, ("hausdorff_cv",), "hausdorff_dt")),
        _goal(f"{names}: sizes of the logits added to the step's peak", 1.1, memory),
    ]
    return [line for line in lines if line]


def _goal(what: str, most: float, found: Sequence[tuple[float | None, Found]]) -> str:
    known = [(value, r) for value, r in found if value is not None]
    if not known:
        return ""
    worst, where = max(known, key=lambda pair: pair[0])
    place = where.setting if where.regime == EXACT else _place(where)
    return f"| {what} | {most:.2f} | {worst:.2f} | {where.loss}: {place} | {'reached' if worst <= most else 'missed'} |"


@click.command(help=__doc__)
@click.option("--quick", "which", flag_value="quick", help="The settings that matter most.")
@click.option("--tiny", "which", flag_value="tiny", help="Tiny volumes, few rounds.")
@click.option("--only", "parts", multiple=True, help="Settings whose title contains this text; may be repeated.")
@click.option("--regime", "regimes", multiple=True, type=click.Choice([FRESH, RECYCLED, EXACT]), help="Default: all.")
@click.option("--kernels", multiple=True, type=click.Choice(dispatch.NAMES), help="Default: the setting's.")
@click.option("--rounds", type=click.IntRange(min=2), help="Rounds that count.")
@click.option("--write", is_flag=True, help="Write step.md and step.json in docs/benchmarks/losses.")
@click.option("--out", type=click.Path(path_type=Path), default=_FOLDER, help="Another folder for --write.")
@click.option("--again", is_flag=True, help="Measure what has been measured, too.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write the page from step.json.")
@click.option("--worker", hidden=True)
@click.option("--results", type=click.Path(path_type=Path), hidden=True)
def main(
    which: str | None,
    parts: tuple[str, ...],
    regimes: tuple[str, ...],
    kernels: tuple[str, ...],
    rounds: int | None,
    write: bool,
    out: Path,
    again: bool,
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
    groups = _read(stored) if write or report_only else {}
    if report_only and not groups:
        raise click.ClickException(f"{stored}: no results; expected those of an earlier --write")
    if not report_only:
        available = settings(which or "")
        chosen = [s for s in available if not parts or any(part in s.key for part in parts)]
        if not chosen:
            raise click.ClickException(f"--only {' '.join(parts)}: no setting; expected part of {available[0].key}")
        chosen = [dataclasses.replace(s, rounds=rounds or s.rounds, kernels=kernels or s.kernels) for s in chosen]
        made_on = f"{machine()}, MONAI {versions()['monai']}, numba {versions()['numba']}"
        for setting, regime in ((s, r) for s in chosen for r in s.regimes if not regimes or r in regimes):
            key, code = (setting.key, regime), _digest(setting)
            known = groups.get(key)
            if known and known.complete and (known.code, known.machine) == (code, made_on) and not again:
                click.echo(f"{setting.key}, {regime}: measured before", err=True)
                continue
            start, idle = time.perf_counter(), _used()
            rows = tuple(Found(**_rounded(r)) for r in run_in_regime(setting, regime))
            wall = time.perf_counter() - start
            groups[key] = Group(rows, code, made_on, _share_of_others(idle, wall))
            click.echo(
                f"{setting.key}, {regime}: {wall:.0f} s{''.join(f', {r.note}' for r in rows[:1] if r.note)}", err=True
            )
            if write:
                _write(stored, groups)
    text = page(groups)
    if write or report_only:
        write_text(out / "step.md", text)
        click.echo(f"written to {out / 'step.md'}")
    else:
        click.echo(text)


def _digest(setting: Setting) -> str:
    """Of the setting and of the sources that are measured."""
    digest = hashlib.sha256(repr(setting).encode())
    for path in sorted([*(_ROOT / "medloss").rglob("*.py"), Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _used() -> tuple[float, float] | None:
    """Seconds of processor time: of all processes, and of this one with its children; None where it is unknown."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    numbers = [int(number) for number in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(numbers) - numbers[3] - numbers[4]  # less idle, and waiting for a disk
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK"), sum(usage.ru_utime + usage.ru_stime for usage in mine)


def _share_of_others(before: tuple[float, float] | None, wall: float) -> float | None:
    after = _used()
    if before is None or after is None:
        return None
    others = (after[0] - before[0]) - (after[1] - before[1])
    return round(max(0.0, others / (wall * (os.cpu_count() or 1))), 3)


def _read(stored: Path) -> Groups:
    found: dict[str, Any] = read_json(stored) or {}
    groups: Groups = {}
    for data in found.get("groups", []):
        rows = tuple(Found(**r) for r in data["rows"])
        groups[data["setting"], data["regime"]] = Group(rows, data["code"], data["machine"], data["others"])
    return groups


def _write(stored: Path, groups: Groups) -> None:
    data = [{"setting": s, "regime": r, **dataclasses.asdict(group)} for (s, r), group in groups.items()]
    write_text(stored, json.dumps({"groups": data}, indent=1) + "\n")


def _rounded(found: Found) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in data.items()}


if __name__ == "__main__":
    main()
