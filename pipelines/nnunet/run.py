"""A run of a comparison that nnU-Net trains, and nnU-Net's checkpoints."""

import os
import pickle
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from pipelines.data.grids import Orientation
from pipelines.data.manifest import load_manifest
from pipelines.data.nifti import read_labels, squeezed, write_labels
from pipelines.data.probabilities import probability_file, read_probabilities, write_npz
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.references import manifest_references, match
from pipelines.evaluation.result_folders import STOCK
from pipelines.nnunet.datasets import Prepared, find_prepared
from pipelines.nnunet.losses import LOSS_STATE, PREFIX
from pipelines.training.auto_config import metric_settings
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import TrainingError, UserError
from pipelines.utils.files import write_atomically
from pipelines.utils.machine import (
    available_cores,
    chosen_device,
    is_out_of_memory,
    machine,
    peak_memory_mb,
    reset_peak_memory,
    versions,
)

# Checkpoints


def export_checkpoint(path: Path, out: Path | None = None) -> Path:
    """Write a checkpoint of one of our trainers as one of nnU-Net's stock trainer, which has the same network.

    The file to write is by default `checkpoint_stock.pth` next to the checkpoint; it is returned.

    Raises:
        UserError: no checkpoint of one of our trainers; it contains code; the file to write exists.
    """
    out = out or path.with_name("checkpoint_stock.pth")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if out.exists():
        raise UserError(f"--out: {out} is there already; remove it, or name another file")
    checkpoint = read_checkpoint(path)
    trainer = checkpoint.get("trainer_name")
    if trainer == STOCK:
        raise UserError(f"{path}: names {STOCK} already, and needs no export")
    if not (isinstance(trainer, str) and trainer.startswith(PREFIX)):
        raise UserError(f"{path}: is of the trainer '{trainer}', whose network may differ; expected {PREFIX}...")
    exported = checkpoint | {"trainer_name": STOCK}
    if isinstance(log := checkpoint.get("logging"), dict):
        # nnU-Net expects an entry per epoch in each item of the log; the stock trainer adds none to this one.
        exported["logging"] = {item: entries for item, entries in log.items() if item != LOSS_STATE}
    try:
        write_atomically(out, lambda file: torch.save(exported, file))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    return out


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net without running code in it; a `UserError` if it is none or damaged."""
    try:
        # Apart from tensors nnU-Net's checkpoints contain NumPy's numbers, in the log; their types run no code.
        kinds = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + "efd?"}
        numbers = [np._core.multiarray.scalar, np.dtype, *kinds]  # type: ignore[attr-defined]
        with torch.serialization.safe_globals(numbers), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles in another format than torch's
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: it holds more than tensors, numbers and text, perhaps code") from None
    except Exception:  # torch raises any kind of error for a damaged file
        raise UserError(f"{path}: is no checkpoint, or damaged") from None
    if not (isinstance(checkpoint, dict) and {"network_weights", "trainer_name", "init_args"} <= checkpoint.keys()):
        raise UserError(f"{path}: is no checkpoint of nnU-Net; expected one such as fold_0/checkpoint_final.pth")
    return checkpoint


def refuse_damaged(path: Path) -> None:
    """Raise a `TrainingError` for a checkpoint that is damaged, or contains code, which nnU-Net would run."""
    try:
        read_checkpoint(path)
    except UserError as error:
        raise TrainingError(f"{error}; remove it, and train the run again with --retry-failed") from None


# Runs: a run's folder has the same files as one of our engines

#: nnU-Net's checkpoint of a finished training.
_FINAL = "checkpoint_final.pth"


def train_nnunet_run(
    config: RunConfig, run_dir: Path, cache: Path, before_files: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train or resume a run in its folder, and return the content of its `result.json`.

    nnU-Net's folder of results is `nnunet` in it. `cache` has the cases that `prepare` has left. `before_files` is
    called at the end of each epoch, before anything is written.

    Raises:
        UserError: the cases are not prepared.
        TrainingError: weights became infinite, or memory did not suffice; it is also in `result.json`.
    """
    folder, prepared = RunFolder(run_dir), find_prepared(config, cache)
    reset_peak_memory()
    try:
        with _environment(prepared, config, run_dir / "nnunet"):
            return NnunetRun(config, folder, prepared, before_files)()
    except TrainingError as error:
        failure = error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = TrainingError("out of memory with the patches that nnU-Net has planned; run fewer at a time (--jobs)")
    folder.write_result({"state": "failed", "error": str(failure)})
    raise failure from None


class NnunetRun:
    """A run that nnU-Net trains; the arguments are those of `train_nnunet_run`."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, prepared: Prepared, before_files: Callable[[], None]
    ) -> None:
        # Not above: it imports nnU-Net, which may not be installed.
        from pipelines.nnunet.trainers import compared_trainer

        assert config.nnunet is not None
        self.manifest = load_manifest(config.manifest)
        self.device = chosen_device(config.device)
        self.folder = folder
        self.raw = prepared.folder / "raw" / prepared.dataset
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.trainer = compared_trainer(config)(
            prepared.content(prepared.plans) | {"continue_training": _checkpoint(folder.path) is not None},
            config.nnunet.configuration,
            self.manifest.folds().index(config.fold),  # nnU-Net numbers its splits from 0
            prepared.content("dataset"),
            self.device,
        )
        self.trainer.before_files, self.trainer.after_epoch = before_files, self._end_epoch
        tolerance = metric_settings(config, self.manifest).nsd_tolerance_mm
        self.config = config.model_copy(update=self._planned() | {"nsd_tolerance": tolerance})
        self.peaks = {int(row["epoch"]): row["peak_mb"] for row in folder.epochs}

    def __call__(self) -> dict[str, Any]:
        """Train the remaining epochs, validate, and return the content of `result.json`."""
        trainer, path = self.trainer, _checkpoint(self.folder.path)
        if path is not None:
            refuse_damaged(path)
            trainer.load_checkpoint(str(path))
        self.folder.begin(self.config)
        self._write_progress()
        if path is None or path.name != _FINAL:
            trainer.run_training()
        began = time.perf_counter()
        settings = metric_settings(self.config, self.manifest)
        if self.config.keep_probabilities or settings.by_probabilities:
            trainer.perform_actual_validation(save_probabilities=True)
        else:
            trainer.perform_actual_validation()
        evaluation = self._evaluate()
        patients = {case.id: case.patient for case in self.manifest.split(self.config.fold)[1]}
        rows = self._rows()
        rows[-1] |= {f"val_{name}": value for name, value in evaluation.foreground_means().items()}
        rows[-1]["val_s"] = round(time.perf_counter() - began, 3)
        result = self._result(evaluation, rows)
        self.folder.write_epochs(rows)
        self.folder.write_cases([row | {"patient": patients[row["case"]]} for row in evaluation.rows])
        calibration = evaluation.calibration.items()
        self.folder.write_calibration(
            [{"case": case, "class": name, "calibration": found.to_list()} for (case, name), found in calibration]
        )
        self.folder.write_result(result)
        return result

    def _planned(self) -> dict[str, Any]:
        """The fields of a run's config that nnU-Net has planned; axes in the order of the files."""
        plan = self.trainer.configuration_manager
        forward = self.trainer.plans_manager.transpose_forward
        # nnU-Net reads files with reversed axes, and then permutes them; 2D has an additional axis of one slice.
        order = np.argsort([-axis for axis in forward[len(forward) - len(plan.patch_size) :]])
        found: dict[str, Any] = {"batch_size": plan.batch_size}
        if len(order) == self.manifest.dimensions:
            found["patch_size"] = tuple(int(plan.patch_size[place]) for place in order)
            found["spacing"] = tuple(float(plan.spacing[place]) for place in order)
        return found

    def _end_epoch(self) -> None:
        self.peaks[self.trainer.current_epoch] = round(peak_memory_mb(self.device), 1)
        self._write_progress()

    def _write_progress(self) -> None:
        """Write the finished epochs; the last one's row includes the validation, and is written after it."""
        rows = self._rows()
        finished, epochs = len(rows), self.config.epochs
        self.folder.write_epochs(rows[: epochs - 1])
        remaining_s = (epochs - finished) * statistics.fmean(row["epoch_s"] for row in rows) if rows else None
        # Without nnU-Net's Dice, which is over patches: that of finished runs is over whole cases.
        self.folder.write_progress(finished, epochs, remaining_s, None)

    def _rows(self) -> list[dict[str, Any]]:
        return [row | {"peak_mb": self.peaks.get(row["epoch"])} for row in self.trainer.rows()]

    def _evaluate(self) -> Evaluation:
        """Compute the metrics of nnU-Net's label maps, from files on the labels' grid as for our engines."""
        root = None if self.config.data_root is None else Path(self.config.data_root)
        references = manifest_references(self.config.manifest, root, self.config.fold)
        written, ending = Path(self.trainer.output_folder) / "validation", self.trainer.dataset_json["file_ending"]
        predictions = [self.folder.prediction(label.name) for label in references.labels]
        for label, path in zip(references.labels, predictions, strict=True):
            file = f"{label.name}{ending}"
            given = self.raw / "labelsTr" / file
            write_on_label(written / file, given, label.path, path, self.manifest.dimensions)
            if (kept_by_nnunet := probability_file(written / file)) is not None:
                probabilities = read_probabilities(kept_by_nnunet, read_labels(given, (self.manifest.dimensions,)))
                write_npz(self.folder.probabilities(label.name), probabilities, nib.load(label.path).header)
                kept_by_nnunet.unlink()
        folder = self.folder.prediction("any").parent
        found = evaluate(folder, references, match(references, folder), metric_settings(self.config, self.manifest))
        kept = self.config.keep_predictions or self.config.keep_probabilities
        for label, path in zip(references.labels, predictions, strict=True):
            if not self.config.keep_probabilities:
                self.folder.probabilities(label.name).unlink(missing_ok=True)
            if not kept:
                path.unlink()
        if not kept:
            folder.rmdir()
        return found

    def _result(self, evaluation: Evaluation, rows: list[dict[str, Any]]) -> dict[str, Any]:
        peaks = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
        return {
            "state": "done",
            "error": None,
            "metrics": evaluation.foreground_means(),
            "per_class": evaluation.class_means(),
            "seconds": round(sum(row["epoch_s"] + row.get("val_s", 0.0) for row in rows), 3),
            "epoch_s": statistics.median(row["epoch_s"] for row in rows),
            "peak_mb": max(peaks, default=None),
            "patch_size": list(self.config.patch_size or ()),
            "precision": "float16" if self.device.type == "cuda" else "float32",
            "manifest_sha256": self.manifest.sha256,
            "versions": versions() | {"nnunetv2": version("nnunetv2")},
            "machine": machine(self.device),
        }


def write_on_label(written: Path, given: Path, label: Path, path: Path, dimensions: int) -> None:
    """Write a label map of nnU-Net's, which is along the axes of the image, with the geometry of a label's file.

    Args:
        written: the map.
        given: the label that nnU-Net was given, along the axes of the image.
        label: the label's file in the data set, which may be along other axes.
        path: the file to write.
        dimensions: 2 or 3.
    """
    values = np.asanyarray(nib.load(written).dataobj)
    orientation = Orientation.of(nib.load(given).affine, dimensions)
    canonical = orientation.canonical(values.reshape(squeezed(values.shape, dimensions)))
    write_labels(path, canonical, nib.load(label).header)


def _checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to resume from: the final one, or the latest; None if there is none."""
    for name in (_FINAL, "checkpoint_latest.pth"):
        if found := next((run_dir / "nnunet").glob(f"*/*/fold_*/{name}"), None):
            return found
    return None


@contextmanager
def _environment(prepared: Prepared, config: RunConfig, results: Path) -> Iterator[None]:
    """Set nnU-Net's environment variables; values that the user has set are kept."""
    threads = config.threads or available_cores()
    # At most 12 processes augment, as in nnU-Net; on the CPU they would compete with the training for its cores.
    augmenting = 0 if chosen_device(config.device).type == "cpu" else min(12, threads)
    before = dict(os.environ)
    limits = {"nnUNet_def_n_proc": str(threads), "nnUNet_n_proc_DA": str(augmenting)}
    os.environ.update(limits | before | prepared.environment(results))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
