"""Results of other tools (nnU-Net and MIST), and the classes to evaluate.

MIST (github.com/mist-medical/MIST) writes `results.csv`: `id`, and `<class>_<metric>` per class and metric.
nnU-Net's `summary.json` has every case: version 1 in `results`, `all`, with its paths as `reference` and `test`;
version 2 in `metric_per_case`, with counts of voxels.
nnU-Net (version 2) writes `nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION/` with `dataset.json`,
`plans.json` and a `fold_K` per fold, in whose `validation/` are label maps and, once all are predicted, `summary.json`.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.layouts import nifti_files, stem
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated

# Classes: labels, regions that are unions of labels, and the ignored label.

#: nnU-Net's name of the label of unlabelled voxels.
IGNORE = "ignore"
_EXPECTED = "expected labels with names, such as 1=anterior,2=posterior, or a union, such as 1+2=whole"


@dataclass(frozen=True)
class Classes:
    """The classes to evaluate.

    Attributes:
        regions: class name to label values; several values are a union, like nnU-Net's regions.
        ignore: value in the reference of voxels that are neither foreground nor background in both maps, so surfaces
            end there, as in nnU-Net's evaluation; None: there is none.
    """

    regions: dict[str, tuple[int, ...]]
    ignore: int | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """The values that a prediction may have: 0 and the classes' values, in ascending order."""
        return tuple(sorted({0}.union(*self.regions.values())))

    def as_option(self) -> str:
        """The classes in the syntax of `--classes`; a name equal to its value is written once."""
        labels = {name: "+".join(map(str, values)) for name, values in self.regions.items()}
        parts = [name if name == label else f"{label}={name}" for name, label in labels.items()]
        return ", ".join(parts + ([] if self.ignore is None else [f"{self.ignore}={IGNORE}"]))


def read_classes(text: str) -> Classes:
    """Parse classes such as `1=anterior,2=posterior`, `1+2=whole,2=core` or `1=organ,2=ignore`.

    Raises:
        UserError: the text has another form.
    """
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        values, separator, name = (piece.strip() for piece in part.partition("="))
        numbers = [number.strip() for number in values.split("+")]
        whole = all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers)
        if not (separator and name and name.isprintable() and whole):
            raise UserError(f"--classes: got '{part.strip()}'; {_EXPECTED}, whole numbers above 0")
        if name in named:
            raise UserError(f"--classes: '{name}' is used twice; expected a different name for each class")
        named[name] = tuple(dict.fromkeys(map(int, numbers)))
    return _checked(named, "--classes")


def _checked(named: dict[str, tuple[int, ...]], where: str) -> Classes:
    ignore = named.pop(IGNORE, None)
    if not named:
        raise UserError(f"{where}: got no class; {_EXPECTED}")
    if ignore is None:
        return Classes(named)
    if len(ignore) > 1 or ignore[0] in set().union(*named.values()):
        raise UserError(f"{where}: the label '{IGNORE}' must be a single value that no class has; got {ignore}")
    return Classes(named, ignore[0])


# MIST.

#: MIST's metrics to those here.
_MIST = {
    "dice": "dice", "haus95": "hd95_mm", "surf_dice": "nsd", "avg_surf": "assd_mm",
    "lesion_wise_dice": "lesion_dice", "lesion_wise_haus95": "lesion_hd95_mm",
}  # fmt: skip
#: What its lesion-wise metrics begin with, also those that are not among the ones here.
_LESION_WISE = "lesion_wise"
#: Rows that MIST writes below the cases.
_STATISTICS = {"mean", "std", "25th percentile", "median", "75th percentile"}


def is_mist(columns: Iterable[str]) -> bool:
    """Whether a table's columns are MIST's."""
    names = list(columns)
    return "id" in names and "loss" not in names and any(_column(column) is not None for column in names)


def mist_rows(name: str, path: Path, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per case and class from the content of MIST's table `path`, as text, and notes on it.

    Raises:
        UserError: it has no column of a known metric, or has a case twice.
    """
    while len(frame) and frame["id"].iloc[-1].strip().lower() in _STATISTICS:
        frame = frame.iloc[:-1]
    columns = {column: found for column in frame.columns if (found := _column(column)) is not None}
    if not columns:
        raise UserError(f"{name}: {path} has no column of a metric such as tumor_dice; expected MIST's results.csv")
    duplicates = frame["id"][frame["id"].duplicated()]
    if len(duplicates):
        raise UserError(f"{name}: {path}: case {duplicates.iloc[0]} appears twice; expected one row per case")
    blocks: dict[str, pd.DataFrame] = {}
    for column, (class_name, metric) in columns.items():
        block = blocks.get(class_name, pd.DataFrame({"case": frame["id"], "class": class_name, "loss": name}))
        blocks[class_name] = block.assign(**{metric: frame[column]})
    table = pd.concat(blocks.values(), ignore_index=True)
    unknown = [column for column in frame.columns if column != "id" and column not in columns]
    notes = [f"{name}: columns of {path.name} that are left out: {', '.join(unknown)}."] if unknown else []
    return table, notes


def _column(column: str) -> tuple[str, str] | None:
    """Class and metric of a column of MIST; None for other columns."""
    metric = next((name for name in sorted(_MIST, key=len, reverse=True) if column.endswith(f"_{name}")), None)
    if metric is None:
        return None
    class_name = column.removesuffix(f"_{metric}")
    if not class_name or class_name.endswith(_LESION_WISE):
        return None
    return class_name, _MIST[metric]


# nnU-Net: a summary alone.

#: nnU-Net's metrics to those here; version 2 has `Dice`, `IoU` and counts of voxels.
_NNUNET = {
    "Dice": "dice", "IoU": "iou", "Jaccard": "iou", "Recall": "sensitivity", "True Negative Rate": "specificity",
    "Hausdorff Distance 95": "hd95_mm", "Avg. Symmetric Surface Distance": "assd_mm",
}  # fmt: skip


def summary_rows(name: str, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per case and class from nnU-Net's `summary.json`, of version 1 or 2, as text, and notes on it.

    Sensitivity and specificity of version 2 are those of its counts. A metric that nnU-Net did not define is `nan`.

    Raises:
        UserError: it is not such a file, or has a case twice.
    """
    content = _json(path)
    version, cases = 2, content.get("metric_per_case")
    if cases is None:
        results = content.get("results")
        version, cases = 1, results.get("all") if isinstance(results, dict) else None
    rows: list[dict[str, str]] = []
    background = False
    try:
        for entry in cases or ():
            of_case = entry["metrics"] if version == 2 else entry
            case = _case_name(entry)
            for label, metrics in of_case.items():
                if not isinstance(metrics, dict):
                    continue  # the paths of version 1
                if label == "0":
                    background = True
                    continue
                found = {_NNUNET[key]: value for key, value in metrics.items() if key in _NNUNET}
                if {"TP", "FN", "FP", "TN"} <= metrics.keys():
                    found["sensitivity"] = _share(metrics["TP"], metrics["FN"])
                    found["specificity"] = _share(metrics["TN"], metrics["FP"])
                texts = {key: "nan" if value is None else repr(float(value)) for key, value in found.items()}
                rows.append({"case": case, "class": label.strip("()").replace(", ", "+"), "loss": name, **texts})
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        rows = []
    if not rows:
        raise UserError(
            f"{name}: {path} has no cases with metrics; expected nnU-Net's summary.json, of version 1 (results, all) "
            "or 2 (metric_per_case)"
        )
    frame = pd.DataFrame(rows)
    twice = frame[frame.duplicated(["case", "class"])]
    if len(twice):
        raise UserError(f"{name}: {path}: case {twice['case'].iloc[0]} appears twice; expected each case once")
    left_out = ", without the background, 0" if background else ""
    notes = [
        f"{name}: {path.name} of nnU-Net, version {version}: {frame['case'].nunique()} cases, classes "
        f"{abbreviated(frame['class'].unique(), 12)}{left_out}."
    ]
    if "hd95_mm" in frame.columns:
        notes.append(f"{name}: the HD95 is that of nnU-Net's version 1: the percentile of both directions together.")
    return frame, notes


def _case_name(entry: dict[str, Any]) -> str:
    """The name of a case: that of its reference, or else of its prediction, without folder and extension."""
    keys = ("reference_file", "reference", "prediction_file", "test")
    file = next(entry[key] for key in keys if isinstance(entry.get(key), str))
    last = file.replace("\\", "/").rsplit("/", 1)[-1]
    return stem(last) if last.endswith(_READABLE) else Path(last).stem


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest else float("nan")


# nnU-Net: folders.

#: nnU-Net's default trainer, with Dice + cross entropy; folders of results are named by their trainer.
STOCK = "nnUNetTrainer"
#: Prefixes of folders in which nnU-Net pools a cross-validation.
_POOLED = ("crossval_results", "ensemble___")
_READABLE = (".nii.gz", ".nii")


@dataclass(frozen=True)
class NnunetResults:
    """Results of a trainer.

    Attributes:
        folder: `TRAINER__PLANS__CONFIGURATION`, or a folder of predictions with a `dataset.json`.
        dataset: `DatasetXXX_Name`; None if unknown.
        trainer: class name of the trainer; None if unknown.
        content: content of `dataset.json`.
        validations: fold to its folder of predictions; empty for a folder of predictions.
        without_all: whether there is also a `fold_all`, which is left out.
    """

    folder: Path
    dataset: str | None
    trainer: str | None
    content: dict[str, Any]
    validations: dict[str, Path]
    without_all: bool = False

    @property
    def classes(self) -> Classes:
        """The classes of `dataset.json`: labels or regions in its order, without background.

        Raises:
            UserError: its labels are not in nnU-Net's format.
        """
        path, labels = self.folder / "dataset.json", self.content.get("labels")
        if not isinstance(labels, dict) or not labels:
            raise UserError(f"{path}: has no labels; expected nnU-Net's, or pass --classes")
        named: dict[str, tuple[int, ...]] = {}
        for name, given in labels.items():
            values = given if isinstance(given, list) else [given]
            if not values or not all(isinstance(value, int) and value >= 0 for value in values):
                raise UserError(
                    f"{path}: labels: got {given!r} for '{name}'; expected a whole number, or several as a region, as "
                    "in nnU-Net version 2; or pass --classes"
                )
            if set(values) != {0}:
                named[name] = tuple(dict.fromkeys(values))
        return _checked(named, f"{path}: labels")


def read_results(path: Path, folds: tuple[int, ...] | None = None) -> NnunetResults | None:
    """Read a results folder of nnU-Net, or only some of its folds; None for other folders.

    The path is a trainer's folder, one of its folds, a fold's `validation`, or a folder of predictions with a
    `dataset.json`.

    Raises:
        UserError: a fold is unfinished or does not exist, the folder has the results of several trainers, its files
            are not NIfTI, or `dataset.json` is damaged.
    """
    folder, fold = _locate(path)
    if folder is None:
        _refuse_several(path)
        return None
    content = _json(folder / "dataset.json")
    ending = content.get("file_ending", _READABLE[0])
    if ending not in _READABLE:
        raise UserError(f"{path}: its files end in {ending}; expected NIfTI, {' or '.join(_READABLE)}: convert them")
    available = _folds(folder) if fold is None else [fold]
    if not available:
        return NnunetResults(folder, _dataset(folder), None, content, {})
    chosen = [name for name in available if name != "all"]
    if not chosen:
        raise UserError(
            f"{path}: has only fold_all, which was validated on its training cases; expected fold_0, fold_1, ..., or "
            "predictions of other cases with --labels"
        )
    if folds is not None:
        missing = [str(number) for number in folds if str(number) not in available]
        if missing:
            raise UserError(f"{path}: has no fold {', '.join(missing)}; it has {', '.join(available)}: see --folds")
        chosen = [str(number) for number in folds]
    validations = {name: folder / f"fold_{name}" / "validation" for name in chosen}
    unfinished = [name for name, of_fold in validations.items() if not (of_fold / "summary.json").is_file()]
    if unfinished:
        raise UserError(
            f"{path}: fold {', '.join(unfinished)} has no validation/summary.json: it is unfinished; finish it "
            "(nnUNetv2_train with --c, or --val), or name the finished folds, such as --folds 0,1"
        )
    trainer = folder.name.split("__")[0] if folder.name.count("__") == 2 else None
    return NnunetResults(folder, _dataset(folder), trainer, content, validations, "all" in available and fold is None)


def found_references(results: NnunetResults) -> tuple[Path | None, list[Path]]:
    """The folder in which nnU-Net stores the data set's references, and all folders that were searched.

    The roots are those of the variables `nnUNet_preprocessed` and `nnUNet_raw`, and folders of these names next to the
    root of the results.
    """
    names = (results.folder.name, results.folder.resolve().parent.name)
    cross_validation = bool(results.validations) or any(name.startswith(_POOLED) for name in names)
    if results.dataset is None or not cross_validation:
        return None, []  # the predictions may be of any other images
    candidates = []
    for variable, name in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr")):
        candidates += [root / results.dataset / name for root in _roots(results, variable)]
    return next((folder for folder in candidates if nifti_files(folder)), None), candidates


def found_images(results: NnunetResults, cases: Iterable[str]) -> dict[str, Path]:
    """The first channel of each case's image, if `nnUNet_raw` is found and has it."""
    folders = [root / (results.dataset or "") / "imagesTr" for root in _roots(results, "nnUNet_raw")]
    files = [(case, folder / f"{case}_0000{ending}") for case in cases for folder in folders[::-1]
             for ending in _READABLE[::-1]]  # fmt: skip
    return {case: file for case, file in files if file.is_file()}  # the last of a case, which is found first, counts


def summary_dice(validation: Path, classes: Classes) -> dict[tuple[str, str], float]:
    """nnU-Net's Dice: (file name of the case, class) to value; empty if it cannot be read."""
    names = {frozenset(values): name for name, values in classes.regions.items()}
    found = {}
    try:
        for case in json.loads((validation / "summary.json").read_text())["metric_per_case"]:
            file = str(case["prediction_file"]).replace("\\", "/").rsplit("/", 1)[-1]
            for key, metrics in case["metrics"].items():
                values = frozenset(int(part) for part in key.strip("()").split(",") if part.strip())
                if values in names and metrics["Dice"] is not None:
                    found[file, names[values]] = float(metrics["Dice"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return found


def _roots(results: NnunetResults, variable: str) -> list[Path]:
    """The folder that the variable names, and the folder of that name next to the root of the results."""
    roots = [Path(named)] if (named := os.environ.get(variable)) else []
    beside = (folder for folder in results.folder.resolve().parents if folder.name == results.dataset)
    return list(dict.fromkeys([*roots, *(folder.parent.parent / variable for folder in islice(beside, 1))]))


def _locate(path: Path) -> tuple[Path | None, str | None]:
    """The trainer's folder, which has `dataset.json`; and the fold, if the path is that of a single one."""
    real = path.resolve()
    for inner in (real, real / "validation"):
        if inner.name == "validation" and inner.is_dir() and inner.parent.name.startswith("fold_"):
            folder = inner.parent.parent
            if (folder / "dataset.json").is_file():
                return folder, inner.parent.name.removeprefix("fold_")
    return (path, None) if (path / "dataset.json").is_file() else (None, None)


def _folds(folder: Path) -> list[str]:
    """Names of the folds that were started: numbers in order, then others."""
    names = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()]
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _dataset(folder: Path) -> str | None:
    plans = folder / "plans.json"
    named = _json(plans).get("dataset_name") if plans.is_file() else None
    if isinstance(named, str) and named:
        return named
    parent = folder.resolve().parent.name
    return parent if parent.startswith("Dataset") else None


def _refuse_several(path: Path) -> None:
    """Refuse a data set's folder, or the root of the results, which have the results of several trainers."""
    for pattern in ("*/fold_*/validation", "*/*/fold_*/validation"):
        if trainers := sorted({fold.parent.parent for fold in path.glob(pattern)}):
            named = abbreviated((f"NAME={trainer}" for trainer in trainers), 4)
            raise UserError(f"{path}: holds the results of {len(trainers)} trainer(s); expected one each: {named}")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read as JSON; expected nnU-Net's") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; expected nnU-Net's")
    return content
