"""The plan of a comparison: its runs, per loss, fold and seed, and how it came about."""

import hashlib
import math
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pipelines.training.run_config import RunConfig, stored_config
from pipelines.utils import UserError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


# How a plan came about: what was asked for, how rates are tuned, and how losses are screened.


class Asked(_Frozen):
    """What was asked for, where the plan is fitted into a budget of time, tunes learning rates, or screens losses."""

    losses: list[str]  #: all losses, the reference included
    folds: list[int]
    seeds: list[int]
    epochs: int | None = None  #: asked for; None: the recipe's
    budget_minutes: float | None = None  #: for the whole comparison; None: no limit
    halving: bool = False  #: whether the worse losses are dropped before the comparison
    tune_lr: int | None = None  #: how many learning rates are tried per loss; None: only the recipe's


class Tried(_Frozen):
    """A learning rate that was tried."""

    loss: str
    rate: float  #: the highest of the schedule
    score: float | None = None  #: mean of the primary metric over the cases that decide; None: the run failed
    error: str | None = None


class Tuning(_Frozen):
    """How each loss's learning rate is chosen before the comparison; see `comparison/screening.py`."""

    fold: int  #: whose cases decide; not one of the comparison's folds
    seed: int
    epochs: int  #: of each run
    factors: list[float]  #: of the recipe's rate, in the order in which they are tried
    over: bool = False  #: whether all were tried; until then the plan's runs have the recipe's rates
    tried: list[Tried] = []  #: every loss at every rate; empty until then
    chosen: dict[str, float] = {}  #: loss -> rate; empty until then


class Dropped(_Frozen):
    """A loss that halving has dropped, and the evidence."""

    loss: str
    rung: int  #: of the screening, from 1
    epochs: int  #: of its screening run
    score: float | None = None  #: mean of the primary metric over the screening cases; None: it failed
    bound: float | None = None  #: the lowest-ranked survivor's, of the same rung
    error: str | None = None


class Halving(_Frozen):
    """How losses are screened before the comparison; see `comparison/screening.py`."""

    fold: int  #: whose cases decide; not one of the comparison's folds
    seed: int
    losses: list[str]  #: the screened ones: all but the reference
    rungs: list[int]  #: epochs of each rung's runs
    over: bool = False  #: whether it has ended; until then the plan has only the reference's runs
    dropped: list[Dropped] = []  #: which losses, in the order in which they were dropped
    cases: int = 0  #: how many decided; 0 until then


#: Epochs of the screening's rungs, as shares of the comparison's.
SCREENING_SHARES = (0.25, 0.5)


def survivors(count: int) -> int:
    """How many of `count` losses are left after both rungs."""
    for _ in SCREENING_SHARES:
        count = better_half(count)
    return count


def better_half(count: int) -> int:
    """How many of `count` losses are left after a rung: half, rounded up."""
    return math.ceil(count / 2)


# Which runs a comparison has.


@dataclass(frozen=True)
class RunGrid:
    """The runs of a comparison: every loss on every fold with every seed, all with the same number of epochs."""

    losses: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class RunShape:
    """A run of `epochs`, of which `done` are finished, as far as it matters to a forecast."""

    loss: str
    fold: int  #: validation fold
    epochs: int
    done: int = 0


def run_shapes(grid: RunGrid) -> list[RunShape]:
    """All runs of a grid, in the order in which they are trained."""
    return [RunShape(loss, fold, grid.epochs) for fold in grid.folds for _ in grid.seeds for loss in grid.losses]


#: The loss that the others are compared with if none is named: nnU-Net's.
DEFAULT_REFERENCE = "dice+binary_cross_entropy"
#: In place of a reference's name: every pair of losses is compared.
NO_REFERENCE = "none"


class PlannedRun(_Frozen):
    """One run of a comparison; its folder is `runs/<id>`."""

    id: str
    config: RunConfig

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        return stored_config(config) if isinstance(config, dict) else config

    @property
    def title(self) -> str:
        """`dice fold 0 seed 0`."""
        return f"{self.config.loss} fold {self.config.fold} seed {self.config.seed}"


class Plan(_Frozen):
    """A comparison: every loss on every fold with every seed."""

    id: str  #: of the comparison, also MLflow's tag `medloss.comparison`
    created: float  #: unix time, seconds
    manifest_name: str
    manifest_sha256: str  #: the manifest's content
    runs: list[PlannedRun]  #: in the order in which they are trained
    #: the loss that the others are compared with, or `NO_REFERENCE`; None: not named before training, in plans of an
    #: earlier version
    reference: str | None = None
    metric: str = "dice"  #: the primary metric
    margin: float = 0.01  #: of equivalence, in the metric's unit
    #: further primary metrics with their margins, None where equivalence is not tested; the first one orders losses
    further_metrics: dict[str, float | None] = {}
    empty: str = "one"  #: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`
    non_inferior: bool = False  #: whether *non-inferior* takes the place of *equivalent*
    asked: Asked | None = None  #: what was asked for, where that is not simply what is planned
    told: list[str] = []  #: what a budget changed in what was asked for, and why, one sentence each
    tuning: Tuning | None = None  #: the choice of learning rates, which comes first; None without one
    halving: Halving | None = None  #: the screening before the comparison; None without one
    #: number of this rung of a comparison's screening, or of this trial of its tuning; None: a whole comparison
    rung: int | None = None
    factor: float | None = None  #: in a trial of a tuning, of the recipe's learning rates; None elsewhere

    @property
    def losses(self) -> list[str]:
        """The losses, in the order of the plan."""
        return list(dict.fromkeys(run.config.loss for run in self.runs))

    @property
    def has_reference(self) -> bool:
        """Whether the losses are compared with one of them, and not each pair."""
        return self.reference not in (None, NO_REFERENCE)


def make_plan(
    configs: list[RunConfig], folds: list[int], seeds: list[int], manifest_name: str, manifest_sha256: str, **about: Any
) -> Plan:
    """Plan each config (one per loss) on each fold with each seed; `about` has further attributes of the plan.

    Raises:
        UserError: a loss, fold or seed is repeated.
    """
    refuse_repeated([config.loss for config in configs], folds, seeds)
    runs = planned_runs(configs, folds, seeds)
    return Plan(id=uuid.uuid4().hex[:12], created=time.time(), manifest_name=manifest_name,
                manifest_sha256=manifest_sha256, runs=runs, **about)  # fmt: skip


def refuse_repeated(losses: Sequence[str], folds: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuse repeated losses, folds or seeds, and negative seeds.

    Raises:
        UserError: one is repeated or negative.
    """
    given: dict[str, Sequence[object]] = {"losses": losses, "folds": folds, "seeds": seeds}
    for what, values in given.items():
        if len(set(values)) < len(values):
            raise UserError(f"--{what}: one is repeated in {', '.join(map(str, values))}")
    if min(seeds) < 0:
        raise UserError(f"--seeds: got {min(seeds)}; expected 0 or more")


def planned_runs(configs: list[RunConfig], folds: list[int], seeds: list[int]) -> list[PlannedRun]:
    """Each config (one per loss) on each fold with each seed; a fold is finished before the next begins."""
    return [
        PlannedRun(
            id=f"{file_name(c.loss)}-fold{fold}-seed{seed}", config=c.model_copy(update={"fold": fold, "seed": seed})
        )
        for fold in folds
        for seed in seeds
        for c in configs
    ]


def file_name(loss: str) -> str:
    """A folder's name for a loss or a sum of losses: `0.2*focal+dice@monai` becomes `0.2xfocal_plus_dice_at_monai`."""
    words = loss.replace("*", "x").replace("+", "_plus_").replace("@", "_at_")
    name = re.sub(r"[^\w.]+", "_", words).strip("_.") or "loss"
    # File systems allow 255 bytes.
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(loss.encode()).hexdigest()[:8]}"
