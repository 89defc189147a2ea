"""The plan of a comparison: its runs, per loss, fold and seed, and how it came about."""

import hashlib
import math
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

# How a plan came about: what was asked for, how rates are tuned, and how losses are screened.


class Asked(BaseModel):
    """What was asked for, where the plan is fitted into a budget of time, tunes learning rates, or screens losses.

    Attributes:
        losses: all losses, the reference included.
        folds: validation folds.
        seeds: of the runs.
        epochs: asked for; None: the recipe's.
        budget_minutes: for the whole comparison; None: no limit.
        halving: whether the worse losses are dropped before the comparison.
        tune_lr: how many learning rates are tried per loss; None: only the recipe's.
    """

    model_config = ConfigDict(frozen=True)

    losses: list[str]
    folds: list[int]
    seeds: list[int]
    epochs: int | None = None
    budget_minutes: float | None = None
    halving: bool = False
    tune_lr: int | None = None


class Tried(BaseModel):
    """A learning rate that was tried.

    Attributes:
        loss: its name.
        rate: the highest of the schedule.
        score: mean of the primary metric over the cases that decide; None: the run failed.
        error: why it failed.
    """

    model_config = ConfigDict(frozen=True)

    loss: str
    rate: float
    score: float | None = None
    error: str | None = None


class Tuning(BaseModel):
    """How each loss's learning rate is chosen before the comparison; see `comparison/screening.py`.

    Attributes:
        fold: whose cases decide; not one of the comparison's folds.
        seed: of the runs.
        epochs: of each run.
        factors: of the recipe's rate, in the order in which they are tried.
        over: whether all were tried; until then the plan's runs have the recipe's rates.
        tried: every loss at every rate; empty until then.
        chosen: loss -> rate; empty until then.
    """

    model_config = ConfigDict(frozen=True)

    fold: int
    seed: int
    epochs: int
    factors: list[float]
    over: bool = False
    tried: list[Tried] = []
    chosen: dict[str, float] = {}


class Dropped(BaseModel):
    """A loss that halving has dropped, and the evidence.

    Attributes:
        loss: its name.
        rung: of the screening, from 1.
        epochs: of its screening run.
        score: mean of the primary metric over the screening cases; None: it failed.
        bound: the lowest-ranked survivor's, of the same rung.
        error: why it failed.
    """

    model_config = ConfigDict(frozen=True)

    loss: str
    rung: int
    epochs: int
    score: float | None = None
    bound: float | None = None
    error: str | None = None


class Halving(BaseModel):
    """How losses are screened before the comparison; see `comparison/screening.py`.

    Attributes:
        fold: whose cases decide; not one of the comparison's folds.
        seed: of the screening runs.
        losses: the screened ones: all but the reference.
        rungs: epochs of each rung's runs.
        over: whether it has ended; until then the plan has only the reference's runs.
        dropped: which losses, in the order in which they were dropped.
        cases: how many decided; 0 until then.
    """

    model_config = ConfigDict(frozen=True)

    fold: int
    seed: int
    losses: list[str]
    rungs: list[int]
    over: bool = False
    dropped: list[Dropped] = []
    cases: int = 0


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
    """A run, or its remaining epochs, as far as it matters to a forecast.

    Attributes:
        loss: its name.
        fold: validation fold.
        epochs: of the whole run.
        done: epochs that are finished.
    """

    loss: str
    fold: int
    epochs: int
    done: int = 0


def run_shapes(grid: RunGrid) -> list[RunShape]:
    """All runs of a grid, in the order in which they are trained."""
    return [RunShape(loss, fold, grid.epochs) for fold in grid.folds for _ in grid.seeds for loss in grid.losses]


#: The loss that the others are compared with if none is named: nnU-Net's.
DEFAULT_REFERENCE = "dice+binary_cross_entropy"
#: In place of a reference's name: every pair of losses is compared.
NO_REFERENCE = "none"


class PlannedRun(BaseModel):
    """One run of a comparison; its folder is `runs/<id>`."""

    model_config = ConfigDict(frozen=True)

    id: str
    config: RunConfig

    @property
    def title(self) -> str:
        """`dice fold 0 seed 0`."""
        return f"{self.config.loss} fold {self.config.fold} seed {self.config.seed}"


class Plan(BaseModel):
    """A comparison: every loss on every fold with every seed.

    Attributes:
        id: of the comparison, also MLflow's tag `medloss.comparison`.
        created: unix time, seconds.
        manifest_name: the data set's name.
        manifest_sha256: the manifest's content.
        runs: in the order in which they are trained.
        reference: the loss that the others are compared with, or `NO_REFERENCE`; None: not named before training, in
            plans of an earlier version.
        metric: the primary metric.
        margin: of equivalence, in the metric's unit.
        empty: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`.
        non_inferior: whether *non-inferior* takes the place of *equivalent*.
        asked: what was asked for, where that is not simply what is planned.
        told: why less is planned than was asked for, one sentence per reason.
        tuning: the choice of learning rates, which comes first; None without one.
        halving: the screening before the comparison; None without one.
        rung: number of this rung of a comparison's screening, or of this trial of its tuning; None: a whole comparison.
        factor: in a trial of a tuning, of the recipe's learning rates; None elsewhere.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    created: float
    manifest_name: str
    manifest_sha256: str
    runs: list[PlannedRun]
    reference: str | None = None
    metric: str = "dice"
    margin: float = 0.01
    empty: str = "one"
    non_inferior: bool = False
    asked: Asked | None = None
    told: list[str] = []
    tuning: Tuning | None = None
    halving: Halving | None = None
    rung: int | None = None
    factor: float | None = None

    @property
    def losses(self) -> list[str]:
        """The losses, in the order of the plan."""
        return list(dict.fromkeys(run.config.loss for run in self.runs))


def make_plan(
    configs: list[RunConfig],
    folds: list[int],
    seeds: list[int],
    manifest_name: str,
    manifest_sha256: str,
    **about: Any,
) -> Plan:
    """Plan each config (one per loss) on each fold with each seed; a fold is finished before the next begins.

    Args:
        configs: one per loss.
        folds: validation folds.
        seeds: of the runs.
        manifest_name: the data set's name.
        manifest_sha256: the manifest's content.
        about: further attributes of the plan, such as `reference`, `metric` and `margin`.

    Raises:
        UserError: a loss, fold or seed is repeated.
    """
    refuse_repeated([config.loss for config in configs], folds, seeds)
    return Plan(
        id=uuid.uuid4().hex[:12],
        created=time.time(),
        manifest_name=manifest_name,
        manifest_sha256=manifest_sha256,
        runs=planned_runs(configs, folds, seeds),
        **about,
    )


def refuse_repeated(losses: Sequence[str], folds: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuse repeated losses, folds or seeds, and negative seeds.

    Raises:
        UserError: one is repeated or negative.
    """
    given: dict[str, Sequence[object]] = {"losses": losses, "folds": folds, "seeds": seeds}
    for what, values in given.items():
        if len(set(values)) < len(values):
            raise UserError(f"--{what}: one is repeated in {', '.join(str(v) for v in values)}")
    if min(seeds) < 0:
        raise UserError(f"--seeds: got {min(seeds)}; expected 0 or more")


def planned_runs(configs: list[RunConfig], folds: list[int], seeds: list[int]) -> list[PlannedRun]:
    """Each config (one per loss) on each fold with each seed; a fold is finished before the next begins."""
    return [
        PlannedRun(
            id=f"{file_name(config.loss)}-fold{fold}-seed{seed}",
            config=config.model_copy(update={"fold": fold, "seed": seed}),
        )
        for fold in folds
        for seed in seeds
        for config in configs
    ]


def file_name(loss: str) -> str:
    """A folder's name for a loss or a sum of losses: `0.2*focal+dice` becomes `0.2xfocal_plus_dice`."""
    name = re.sub(r"[^\w.]+", "_", loss.replace("*", "x").replace("+", "_plus_")).strip("_.") or "loss"
    # File systems allow 255 bytes.
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(loss.encode()).hexdigest()[:8]}"


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
