"""What a plan keeps of how it came about: what was asked for, how rates are tuned, and how losses are screened."""

from pydantic import BaseModel, ConfigDict


class Asked(BaseModel):
    """What was asked for where the plan is less than that: with a budget of time, or with halving.

    Attributes:
        losses: all of them, the reference included.
        folds: that validate.
        seeds: of the trainings.
        epochs: asked for; None: the recipe's.
        budget_minutes: in which all of it was to end; None: no bound.
        halving: whether the worse losses are dropped on the way.
        tune_lr: how many learning rates are tried per loss; None: the recipe's alone.
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
    """How each loss's learning rate is chosen before the comparison; see `planning/tuning.py`.

    Attributes:
        fold: whose cases decide; none of the comparison's own.
        seed: of the runs.
        epochs: of each run.
        factors: of the recipe's rate, in the order in which they are tried.
        over: whether all were tried; before, the plan's runs have the recipe's rates.
        tried: every loss at every rate; empty before.
        chosen: loss -> rate; empty before.
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
    """A loss that halving has dropped, and on what evidence.

    Attributes:
        loss: its name.
        rung: of the screening, from 1.
        epochs: that its screening run had.
        score: mean of the primary measure over the screening cases; None: it failed.
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
    """How losses are screened before the comparison; see `planning/halving.py`.

    Attributes:
        fold: whose cases decide; none of the comparison's own.
        seed: of the screening runs.
        losses: that are screened: all but the reference.
        rungs: epochs of each rung's runs.
        over: whether it has ended; before, the plan's runs are the reference's alone.
        dropped: which losses, in the order in which they were dropped.
        cases: how many decided; 0 before.
    """

    model_config = ConfigDict(frozen=True)

    fold: int
    seed: int
    losses: list[str]
    rungs: list[int]
    over: bool = False
    dropped: list[Dropped] = []
    cases: int = 0
