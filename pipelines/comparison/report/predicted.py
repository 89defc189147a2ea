"""The predictions that pictures of single cases are drawn from: where they lie, and what they belong to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.plan import Plan, PlannedRun, run_folder
from pipelines.dataset.data_root import resolve_data
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.errors import UserError

#: A fold or seed of a table that has no such column.
ONLY = "all"


@dataclass(frozen=True)
class PredictedCase:
    """One prediction that can be drawn. Its scores are the rows of the table with this loss, case, fold and seed.

    Attributes:
        loss: as the table has it.
        case: as the table has it.
        prediction: the label map's file; it may be missing, which the report then says.
        reference: the file of the label that it is measured by, on the same grid.
        image: the image's file, on the same grid; None: there is none, and the background is plain.
        fold: as the table has it.
        seed: as the table has it.
        values: the label values that were measured; others are drawn as background. None: all.
        ignore: the label's value of voxels that were not counted; they are drawn as background in both. None: none.
    """

    loss: str
    case: str
    prediction: Path
    reference: Path
    image: Path | None = None
    fold: str = ONLY
    seed: str = ONLY
    values: tuple[int, ...] | None = None
    ignore: int | None = None


def folder_predictions(
    folder: Path, plan: Plan, done: Iterable[PlannedRun]
) -> tuple[tuple[PredictedCase, ...], str | None]:
    """The predictions that a comparison's finished runs kept; else the reason why there are none to draw.

    Args:
        folder: the comparison's.
        plan: its plan.
        done: its finished runs.
    """
    runs = list(done)
    kept = [run for run in runs if (run_folder(folder, run).path / "predictions").is_dir()]
    if not kept:
        return (), "the runs kept no predictions (--no-predictions, or trained by an earlier version)"
    try:
        manifest, root = _data(plan)
    except UserError as error:
        return (), str(error).splitlines()[0]
    cases = {case.id: case for case in manifest.cases}
    return tuple(
        PredictedCase(
            loss=run.config.loss,
            case=name,
            prediction=run_folder(folder, run).prediction(name),
            reference=root / cases[name].label,
            image=root / cases[name].image,
            fold=str(run.config.fold),
            seed=str(run.config.seed),
        )
        for run in runs
        for name in dict.fromkeys(row["case"] for row in run_folder(folder, run).cases)
        if name in cases
    ), None


def _data(plan: Plan) -> tuple[Manifest, Path]:
    """The manifest that the comparison was trained with, and the root of its files, where these are now."""
    config = plan.runs[0].config
    manifest = load_manifest(config.manifest)
    if manifest.sha256 != plan.manifest_sha256:
        raise UserError(f"the manifest '{config.manifest}' has changed since the training")
    try:
        return manifest, resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
    except UserError:
        # The data may have moved, and be named anew.
        return manifest, resolve_data(manifest)
