"""What the benchmark of a training step runs: networks, precisions, classes and sizes, and about how long it takes."""

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import EXACT, FRESH, RECYCLED

LOSSES = ("dice", "tversky", "focal", "binary_cross_entropy")
#: Those of distances and neighbourhoods, measured relative to Dice.
DISTANCE_LOSSES = (
    "distance_penalty",
    "structural_similarity",
    "shape_aware",
    "hausdorff_dt",
    "hausdorff_er",
    "hausdorff_cv",
)
CLASSES = (2, 4, 14)
#: nnU-Net's networks: its default, and the one of its residual encoder presets.
NNUNET, NNUNET_RESENC = "nnunet", "nnunet_resenc"
NNUNETS = (NNUNET, NNUNET_RESENC)

#: Seconds on two cores, for the estimate: a step per million voxels, a loss per million logits, starting a process,
#: compiling plain torch's loss.
_STEP = {
    ("unet", "bfloat16"): 0.12, ("unet", "float32"): 0.17,
    ("dynunet", "bfloat16"): 0.7, ("dynunet", "float32"): 1.2,
    (NNUNET, "bfloat16"): 3.4, (NNUNET, "float32"): 5.8,
    (NNUNET_RESENC, "bfloat16"): 5.1, (NNUNET_RESENC, "float32"): 8.7,
}  # fmt: skip
_LOSS, _MONAI_HAUSDORFF, _HAUSDORFF_CV = 0.006, 0.37, 0.07
_START, _COMPILE = 15.0, 15.0
#: Runs of a step per side in the regime `exact`: one before, and three that are measured.
_EXACT_ROUNDS = 4
#: Rounds that do not count.
WARMUP = 2


@dataclass(frozen=True)
class Setting:
    """A network as the engines train it, and how often its step is run.

    Attributes:
        network: as in `RunConfig`, or one of `NNUNETS`.
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
        """The setting's name."""
        heads = f", {self.heads} coarser head{'s' if self.heads > 1 else ''}" if self.heads else ""
        size = " x ".join(map(str, (self.batch, self.classes, *self.size)))
        prepared = ", prepared maps" if self.prepared else ""
        return f"{self.network}{heads}, {self.precision}, {size}{prepared}"

    def seconds(self, regime: str) -> float:
        """Roughly how long it takes in a regime on two quiet cores."""
        voxels = self.batch * math.prod(self.size) / 1e6
        plain = len(LOSSES) if self.compiled and regime != EXACT else 0
        sides = len(self.losses) * (len(self.kernels) + 1) + plain
        slow = {"hausdorff_dt": _MONAI_HAUSDORFF, "hausdorff_cv": _HAUSDORFF_CV}
        losses = sides * _LOSS + sum(slow.get(loss, 0.0) for loss in self.losses)
        rounds = _EXACT_ROUNDS if regime == EXACT else self.rounds + WARMUP
        step = _STEP[self.network, self.precision]
        return _START + plain * _COMPILE + rounds * voxels * ((1 + sides) * step + self.classes * losses)


def setting_from_json(data: dict[str, Any]) -> Setting:
    """The setting of `dataclasses.asdict`, after JSON."""
    tuples: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Setting(**data | tuples)


def settings(which: str = "") -> list[Setting]:
    """All settings; those of `quick`; or with `tiny` one of each kind that is run within seconds."""
    if which == "tiny":
        tiny: dict[str, Any] = {"size": (16, 16, 16), "batch": 1, "rounds": 2, "compiled": False}
        return [
            Setting("unet", "float32", 2, 0, **tiny),
            Setting("dynunet", "bfloat16", 3, 1, **tiny),
            Setting(NNUNET, "float32", 2, 1, losses=("dice",), **tiny | {"size": (32, 32, 32)}),
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
    precisions = ("bfloat16", "float32")
    return [
        *(
            Setting(network, precision, classes, heads, kernels=both, rounds=5 if network == NNUNET else 15)
            for network, heads in (("unet", 0), ("dynunet", 0), ("dynunet", 1), (NNUNET, 0), (NNUNET, 2))
            for precision in precisions
            for classes in CLASSES
        ),
        *(Setting(NNUNET_RESENC, precision, 4, 2, kernels=both, rounds=5) for precision in precisions),
        *(Setting("unet", "bfloat16", classes, 0, rounds=9, **wide) for classes in CLASSES),
        *(Setting("unet", "bfloat16", classes, 0, **distances) for classes in (2, 3, 14)),
        *(Setting("unet", "bfloat16", classes, 0, **memory) for classes in CLASSES),
    ]
