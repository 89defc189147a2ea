"""What a benchmark runs, and what it finds: cases, their contenders, and the rows of the results."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

#: The allocator's regimes on the CPU, and the one there is on a GPU.
FRESH, RECYCLED, CACHING = "fresh", "recycled", "caching"
#: No regime that is timed: the one in which memory is measured.
EXACT = "exact"


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        library: `medloss`, `MONAI`, `torch`, `kornia` or `smp` (segmentation_models_pytorch).
        loss: our name of the loss.
        kernels: the kernel set, of ours.
        cached_map: whether the reference's distance map is given, as a data set that stores it does.
    """

    library: str
    loss: str
    kernels: str = ""
    cached_map: bool = False


@dataclass(frozen=True)
class Case:
    """Contenders that take turns on the same tensors, in one process a regime.

    Attributes:
        group: which part of the report it belongs to.
        contenders: who takes turns.
        size: voxels, an axis.
        classes: C; with one class the activation is a sigmoid, with more a softmax.
        batch: items.
        dtype: of the logits. The target is an index map of uint8.
        device: `cpu` or `cuda`.
        warmup: rounds before those that count: after so many, glibc's thresholds have settled.
        rounds: rounds that count, at most.
        least: rounds that count, at least, even when `seconds` are over.
        seconds: how long the counted rounds may take.
    """

    group: str
    contenders: tuple[Contender, ...]
    size: tuple[int, ...]
    classes: int
    batch: int = 2
    dtype: str = "float32"
    device: str = "cpu"
    warmup: int = 8
    rounds: int = 15
    least: int = 5
    seconds: float = 20.0

    @property
    def numbers(self) -> int:
        """How many numbers the logits are."""
        return self.batch * self.classes * math.prod(self.size)

    @property
    def logits_bytes(self) -> int:
        """The size of the logits."""
        return self.numbers * (2 if self.dtype == "bfloat16" else 4)

    @property
    def title(self) -> str:
        """The case in a line, for the progress."""
        losses = list(dict.fromkeys(contender.loss for contender in self.contenders))
        named = losses[0] if len(losses) == 1 else f"{len(losses)} losses"
        size = " x ".join(map(str, (self.batch, self.classes, *self.size)))
        return f"{self.group}: {named}, {size} {self.dtype} on {self.device}"


@dataclass(frozen=True)
class Row:
    """What was measured of one contender in one regime; seconds, medians.

    Attributes:
        low, high: quartiles of `total`.
        peak: memory beyond the inputs in sizes of the logits, the gradient included; None where it was not measured.
        note: why nothing was measured.
    """

    group: str
    library: str
    loss: str
    kernels: str
    cached_map: bool
    size: tuple[int, ...]
    classes: int
    batch: int
    dtype: str
    device: str
    regime: str
    forward: float | None = None
    backward: float | None = None
    total: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    peak: float | None = None
    note: str = ""

    @property
    def side(self) -> str:
        """Who it is, in a table."""
        return f"medloss, {self.kernels}" if self.kernels else self.library

    @property
    def voxels(self) -> int:
        """Of the batch."""
        return self.batch * math.prod(self.size)


def row(case: Case, contender: Contender, regime: str, **measured: Any) -> Row:
    """A row of a case's contender."""
    shared = {name: getattr(case, name) for name in ("group", "size", "classes", "batch", "dtype", "device")}
    return Row(**shared, **dataclasses.asdict(contender), regime=regime, **measured)


def case_to_json(case: Case) -> dict[str, Any]:
    """A case as JSON has it."""
    return dataclasses.asdict(case)


def case_from_json(data: dict[str, Any]) -> Case:
    """The case of `case_to_json`."""
    contenders = tuple(Contender(**contender) for contender in data["contenders"])
    return Case(**data | {"contenders": contenders, "size": tuple(data["size"])})


def row_from_json(data: dict[str, Any]) -> Row:
    """The row of `dataclasses.asdict`, after a file."""
    return Row(**data | {"size": tuple(data["size"])})
