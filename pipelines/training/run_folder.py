"""The files of one run's folder, written and read."""

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.data.layouts import NNUNET_PROBABILITIES
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import with_default
from pipelines.training.run_config import RunConfig, stored_config
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json, write_text

#: A column of epochs trained by nnU-Net only: Dice over patches of the validation cases.
_PSEUDO = "pseudo_dice"
#: Files that a run without a checkpoint may have left in its folder.
RUN_FILES = frozenset(
    {"lock", "cache", "config.json", "progress.json", "epochs.csv", "predictions", "calibration.csv", "result.json"}
)


def epoch_columns(rows: Sequence[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """The columns of `epochs.csv`: of the default metrics, and of others that rows have."""
    found = {name for row in rows for name in row}
    metrics = [f"val_{name}" for name, metric in METRICS.items() if metric.default or f"val_{name}" in found]
    return ("epoch", "train_loss", "grad_norm", "update_ratio", *metrics, "epoch_s", "data_share", "val_s", "peak_mb",
            "time")  # fmt: skip


def case_columns(found: Iterable[str] = ()) -> tuple[str, ...]:
    """The columns of `cases.csv`: the default metrics, and others that were found."""
    return ("case", "patient", "class", *with_default(METRICS.keys() & set(found)))


class RunFolder:
    """One run's folder; every file in it is written atomically.

    `config.json` (the planned config), `progress.json` (epochs done), `epochs.csv`, `cases.csv` (metrics of the
    validation cases after the last epoch), `predictions/` (their label maps, and their probabilities if asked for),
    `calibration.csv` (if probabilities were kept or measured), `result.json` (how the run ended), and the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> RunConfig | None:
        """The planned config; None before the run was planned."""
        content = read_json(self.path / "config.json")
        return None if content is None else stored_config(content)

    @property
    def begun(self) -> bool:
        """Whether an attempt was begun: it writes the config first."""
        return (self.path / "config.json").is_file()

    def begin(self, config: RunConfig) -> None:
        """Write the config, and remove the result of an earlier attempt."""
        (self.path / "result.json").unlink(missing_ok=True)
        self.write_config(config)

    def write_config(self, config: RunConfig) -> None:
        """Write `config.json`."""
        write_json(self.path / "config.json", config.model_dump(mode="json"))

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended: `state` is `done` or `failed`; None before the end.

        Raises:
            UserError: the file is damaged.
        """
        result = self._object("result.json")
        if result is not None and result.get("state") not in ("done", "failed"):
            raise self._damaged("result.json")
        return result

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`; the last step of a run."""
        write_json(self.path / "result.json", result | {"finished": time.time()})

    def prediction(self, case: str) -> Path:
        """The path of the predicted label map of a validation case."""
        return self.path / "predictions" / f"{case}.nii.gz"

    def probabilities(self, case: str) -> Path:
        """The path of the probabilities of a validation case."""
        return self.path / "predictions" / f"{case}{NNUNET_PROBABILITIES}"

    @property
    def progress(self) -> dict[str, Any] | None:
        """The content of `progress.json`; None before the run started.

        Raises:
            UserError: the file is damaged.
        """
        return self._object("progress.json")

    def write_progress(self, epoch: int, epochs: int, seconds_left: float | None, dice: float | None) -> None:
        """Write `progress.json` after `epoch` of `epochs`."""
        progress = {"state": "running", "epoch": epoch, "epochs": epochs, "seconds_left": seconds_left}
        write_json(self.path / "progress.json", progress | {"val_dice": dice, "updated": time.time()})

    @property
    def epochs(self) -> list[dict[str, float]]:
        """The rows of `epochs.csv`; missing values are NaN."""
        rows = _read_csv(self.path / "epochs.csv")
        return [{name: float(value or "nan") for name, value in row.items()} for row in rows]

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write `epochs.csv`."""
        pseudo = (_PSEUDO,) if any(_PSEUDO in row for row in rows) else ()
        write_text(self.path / "epochs.csv", _csv((*epoch_columns(rows), *pseudo), rows))

    @property
    def cases(self) -> list[dict[str, str]]:
        """The rows of `cases.csv`, as text."""
        return _read_csv(self.path / "cases.csv")

    def write_cases(self, rows: list[dict[str, Any]]) -> None:
        """Write `cases.csv`."""
        kept = [{name: value for name, value in row.items() if name != "calibration"} for row in rows]
        write_text(self.path / "cases.csv", _csv(case_columns(kept[0] if kept else ()), kept))

    @property
    def calibration(self) -> list[dict[str, str]]:
        """The rows of `calibration.csv`, as text; none if no probabilities were measured."""
        return _read_csv(self.path / "calibration.csv")

    def write_calibration(self, rows: list[dict[str, Any]]) -> None:
        """Write `calibration.csv` from rows with `case`, `class` and `calibration`; nothing if none has any."""
        from pipelines.evaluation.calibration import COLUMNS, Calibration, bin_rows  # not above: commands need no NumPy

        found = [row for row in rows if "calibration" in row]
        measured = [(row["case"], row["class"], Calibration.from_list(row["calibration"])) for row in found]
        bins = [entry for of_row in measured for entry in bin_rows(*of_row)]
        if found:
            write_text(self.path / "calibration.csv", _csv(COLUMNS, bins))

    def _object(self, name: str) -> dict[str, Any] | None:
        try:
            content = read_json(self.path / name)
        except ValueError:
            raise self._damaged(name) from None
        if content is not None and not isinstance(content, dict):
            raise self._damaged(name)
        return content

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.path / name} is damaged; remove it, and run the same command again")


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None or value != value else value for name, value in row.items()})
    return text.getvalue()


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
