"""The plan of a comparison: its runs, loss by loss, fold by fold, seed by seed; written before any of them starts."""

import hashlib
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.comparison.planning.records import Asked, Halving, Tuning
from pipelines.errors import UserError
from pipelines.files import read_json, write_json
from pipelines.training.run_config import INCIDENTAL, RunConfig
from pipelines.training.run_folder import RunFolder

_NAME = "plan.json"
#: What a plan may differ in and still be the same comparison.
_INCIDENTAL = INCIDENTAL
#: The loss that the others are compared with if no other is named: what nnU-Net trains with.
DEFAULT_REFERENCE = "dice+binary_cross_entropy"
#: In place of a reference's name: all losses are compared with all.
NO_REFERENCE = "none"


class PlannedRun(BaseModel):
    """One training of a comparison; its folder is `runs/<id>`."""

    model_config = ConfigDict(frozen=True)

    id: str
    config: RunConfig

    @property
    def title(self) -> str:
        """For people: `dice fold 0 seed 0`."""
        return f"{self.config.loss} fold {self.config.fold} seed {self.config.seed}"


class Plan(BaseModel):
    """A comparison: every loss on every fold with every seed.

    Attributes:
        id: of the comparison, as MLflow's tag `medloss.comparison` has it.
        created: unix time, seconds.
        manifest_name: the data set's name.
        manifest_sha256: the manifest's content.
        runs: in the order in which they are trained.
        reference: the loss that the others are compared with, or `NO_REFERENCE`; None: not named before training, as
            in plans of an earlier version.
        metric: the primary measure.
        margin: of equivalence, in the measure's unit.
        empty: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`.
        non_inferior: whether *non-inferior* takes the place of *equivalent*.
        asked: what was asked for, where that is not simply what is planned.
        told: why less is planned than was asked for, a sentence each.
        tuning: the choice of learning rates before all else; None without one.
        halving: the screening before the comparison; None without one.
        rung: which one of a comparison's screening, or of the trials of its tuning, this is; None: it is no part of
            another.
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
    """Plan each config (one a loss) on each fold with each seed; a fold is finished before the next begins.

    Args:
        configs: one a loss.
        folds: that validate.
        seeds: of the trainings.
        manifest_name: the data set's name.
        manifest_sha256: the manifest's content.
        about: further attributes of the plan, such as `reference`, `metric` and `margin`.

    Raises:
        UserError: a loss, fold or seed stands twice.
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
    """Refuse losses, folds or seeds of which one stands twice, and negative seeds.

    Raises:
        UserError: there are such.
    """
    given: dict[str, Sequence[object]] = {"losses": losses, "folds": folds, "seeds": seeds}
    for what, values in given.items():
        if len(set(values)) < len(values):
            raise UserError(f"--{what}: one of them stands twice in {', '.join(str(v) for v in values)}")
    if min(seeds) < 0:
        raise UserError(f"--seeds: got {min(seeds)}; expected 0 or more")


def planned_runs(configs: list[RunConfig], folds: list[int], seeds: list[int]) -> list[PlannedRun]:
    """Each config (one a loss) on each fold with each seed; a fold is finished before the next begins."""
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
    """A loss's name, or expression, as a folder's name: `0.2*focal+dice` becomes `0.2xfocal_plus_dice`."""
    name = re.sub(r"[^\w.]+", "_", loss.replace("*", "x").replace("+", "_plus_")).strip("_.") or "loss"
    # File systems take 255 bytes.
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(loss.encode()).hexdigest()[:8]}"


def adopt_plan(folder: Path, plan: Plan) -> Plan:
    """Write a plan to an empty folder, or take up the folder's own, if it is the same.

    What does not make it another comparison, such as where the data lie, is from now on as the new plan has it.

    Raises:
        UserError: the folder holds another comparison; says in what it differs.
    """
    existing = refuse_another(folder, plan)
    if existing is None:
        keep_plan(folder, plan)
        return plan
    configs = {run.id: run.config.model_dump(include=_INCIDENTAL) for run in plan.runs}
    runs = [run.model_copy(update={"config": run.config.model_copy(update=configs[run.id])}) for run in existing.runs]
    if runs != existing.runs:
        existing = existing.model_copy(update={"runs": runs})
        keep_plan(folder, existing)
    return existing


def refuse_another(folder: Path, plan: Plan) -> Plan | None:
    """Read a folder's plan, and leave it alone if it is not the same comparison.

    Returns:
        The folder's plan; None where there is none.

    Raises:
        UserError: the folder holds another comparison; says in what it differs.
    """
    refuse_foreign(folder)
    existing = read_plan(folder)
    if existing is not None and (difference := _difference(existing, plan)):
        raise UserError(f"--out: {folder} holds another comparison: {difference}; name another folder")
    return existing


def keep_plan(folder: Path, plan: Plan) -> None:
    """Write the folder's plan, in place of what it has."""
    write_json(folder / _NAME, plan.model_dump(mode="json"))


def refuse_foreign(folder: Path) -> None:
    """Leave alone what is no comparison's folder.

    Raises:
        UserError: it is no folder, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is no folder; name another one")
    content = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if _NAME not in content and content - {"compare.lock"}:
        raise UserError(f"--out: {folder} is not empty and holds no comparison; name another folder")


def read_plan(folder: Path) -> Plan | None:
    """The folder's plan; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = read_json(folder / _NAME)
        return None if content is None else Plan.model_validate(content)
    except ValueError:
        raise UserError(f"{folder / _NAME} is damaged, or of another version; name another folder") from None


def require_plan(folder: Path) -> Plan:
    """The folder's plan.

    Raises:
        UserError: there is none.
    """
    plan = read_plan(folder)
    if plan is None:
        raise UserError(
            f"{folder} holds no comparison (no {_NAME}); name the folder that `medloss compare --out` named"
        )
    return plan


def run_folder(folder: Path, run: PlannedRun) -> RunFolder:
    """The folder of one run of a comparison."""
    return RunFolder(folder / "runs" / run.id)


def cache_folder(folder: Path, config: RunConfig) -> Path:
    """Where the prepared cases of a comparison's run are kept."""
    return folder / "cache" if config.cache_dir is None else Path(config.cache_dir)


def _difference(old: Plan, new: Plan) -> str:
    if old.manifest_name != new.manifest_name:
        return f"its data set is '{old.manifest_name}', and '{new.manifest_name}' was asked for"
    if old.manifest_sha256 != new.manifest_sha256:
        return f"its data set is '{old.manifest_name}' as it was then, and the manifest has changed since"
    if (old.asked is None) != (new.asked is None):
        has, lacks = ("this one", "it") if old.asked is None else ("it", "this one")
        return f"{has} is planned with --budget, --tune-lr or --halving, and {lacks} is not"
    runs = [{run.id: run.config.model_dump(exclude=_INCIDENTAL) for run in plan.runs} for plan in (old, new)]
    for name, theirs, ours in (("has", runs[0], runs[1]), ("lacks", runs[1], runs[0])):
        if missing := [run for run in theirs if run not in ours]:
            joined = name == "lacks" and old.reference is None and new.reference in set(new.losses) - set(old.losses)
            # Earlier versions planned no reference by themselves.
            return f"it {name} the run {missing[0]}{'; --reference none goes on without a reference' if joined else ''}"
    for run, config in runs[0].items():
        for field, value in config.items():
            if runs[1][run][field] != value:
                return f"its {field} is {_shown(value)}, and {_shown(runs[1][run][field])} was asked for"
    for field in ("reference", "metric", "margin", "empty", "non_inferior"):
        theirs, ours = getattr(old, field), getattr(new, field)
        # An earlier version asked for no reference before training; now it is as it was.
        if theirs != ours and theirs is not None:
            return f"its {field} is {theirs}, and {_shown(ours)} was asked for"
    return ""


def _shown(value: Any) -> str:
    return "the default" if value is None else str(value)
