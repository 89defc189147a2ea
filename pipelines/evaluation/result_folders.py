"""Results folders of other tools: nnU-Net's and MIST's, and the classes that they name.

MIST's `results.csv`: the table of one training.

MIST (github.com/mist-medical/MIST, `mist/evaluation`) writes a row a case: `id`, and `<class>_<measure>` for each class
and measure, such as `tumor_dice,tumor_haus95`. Its measures are `dice`, `haus95` (mm), `surf_dice` (1 mm unless told
otherwise) and `avg_surf` (mm); lesion-wise ones and those that others have added are left out. Rows of statistics
follow: Mean, Std, 25th Percentile, Median, 75th Percentile. Where reference and prediction are both empty MIST writes
the best value, where one is, the worst; of distances the volume's diagonal.

nnU-Net's results folders (version 2): what was trained, what its folds predicted, and what its labels are.

`nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION/` holds `dataset.json`, `plans.json` and a `fold_K` for
each training. A fold's `validation/` has a label map for each of its cases and, once all are predicted, `summary.json`.
`nnUNetv2_predict` and `nnUNetv2_accumulate_crossval_results` write `dataset.json` beside their label maps, too.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.layouts import nifti_files
from pipelines.utils import UserError

# Which classes are measured: labels, regions that are unions of labels, and the label that is not counted.

#: What nnU-Net calls the label of voxels that nobody labelled.
IGNORE = "ignore"
_EXPECTED = "expected labels with names, as 1=anterior,2=posterior, or a union, as 1+2=whole"


@dataclass(frozen=True)
class Classes:
    """What is measured.

    Attributes:
        regions: a class's name -> its label values; of several the union counts, as of nnU-Net's regions.
        ignore: the value of voxels that are not counted, if there is one. Where the reference has it, both maps count
            as nothing, neither foreground nor background, as in nnU-Net's evaluation; so surfaces end there in both.
    """

    regions: dict[str, tuple[int, ...]]
    ignore: int | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """What a prediction may hold: 0 and the classes' values, rising."""
        return tuple(sorted({0}.union(*self.regions.values())))

    def told(self) -> str:
        """As `--classes` takes them; names that are their values once."""
        labels = {name: "+".join(map(str, values)) for name, values in self.regions.items()}
        parts = [name if name == label else f"{label}={name}" for name, label in labels.items()]
        return ", ".join(parts + ([] if self.ignore is None else [f"{self.ignore}={IGNORE}"]))


def read_classes(text: str) -> Classes:
    """The classes of a list such as `1=anterior,2=posterior`, `1+2=whole,2=core` or `1=organ,2=ignore`.

    Raises:
        UserError: it is no such list.
    """
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        values, separator, name = (piece.strip() for piece in part.partition("="))
        numbers = [number.strip() for number in values.split("+")]
        whole = all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers)
        if not (separator and name and name.isprintable() and whole):
            raise UserError(f"--classes: got '{part.strip()}'; {_EXPECTED}, whole numbers above 0")
        if name in named:
            raise UserError(f"--classes: '{name}' comes twice; expected a name of its own for each class")
        named[name] = tuple(dict.fromkeys(map(int, numbers)))
    return _checked(named, "--classes")


def dataset_classes(content: dict[str, Any], path: Path) -> Classes:
    """The classes of an nnU-Net's `dataset.json`: labels, or regions, in its order; background left out.

    Args:
        content: the file's.
        path: where it lies, for the message.

    Raises:
        UserError: its labels are not as nnU-Net wants them.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{path}: has no labels; expected nnU-Net's, or pass --classes")
    named: dict[str, tuple[int, ...]] = {}
    for name, given in labels.items():
        values = given if isinstance(given, list) else [given]
        if not values or not all(isinstance(value, int) and value >= 0 for value in values):
            raise UserError(
                f"{path}: labels: got {given!r} for '{name}'; expected a whole number, or several as a region, as "
                "nnU-Net's version 2 has them; or pass --classes"
            )
        if set(values) != {0}:
            named[name] = tuple(dict.fromkeys(values))
    return _checked(named, f"{path}: labels")


def _checked(named: dict[str, tuple[int, ...]], where: str) -> Classes:
    ignore = named.pop(IGNORE, None)
    if not named:
        raise UserError(f"{where}: got no class; {_EXPECTED}")
    if ignore is None:
        return Classes(named)
    if len(ignore) > 1 or ignore[0] in set().union(*named.values()):
        raise UserError(f"{where}: the label called {IGNORE} is one value, which no class has; got {ignore}")
    return Classes(named, ignore[0])


#: MIST's measures, and the columns that they are here.
_MIST = {"dice": "dice", "haus95": "hd95_mm", "surf_dice": "nsd", "avg_surf": "assd_mm"}
#: Rows that MIST puts below the cases.
_STATISTICS = {"mean", "std", "25th percentile", "median", "75th percentile"}


def is_mist(path: Path) -> bool:
    """Whether a CSV file's columns are MIST's."""
    try:
        columns = pd.read_csv(path, nrows=0, skipinitialspace=True).columns
    except (OSError, ValueError):
        return False
    return "id" in columns and "loss" not in columns and any(_column(column) is not None for column in columns)


def mist_rows(name: str, path: Path, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row a case and class of a table of MIST's, and what has to be told of it.

    Args:
        name: the method's.
        path: the file.
        frame: its content, as text.

    Raises:
        UserError: it has no column of a known measure, or a case twice.
    """
    while len(frame) and frame["id"].iloc[-1].strip().lower() in _STATISTICS:
        frame = frame.iloc[:-1]
    columns = {column: found for column in frame.columns if (found := _column(column)) is not None}
    if not columns:
        raise UserError(f"{name}: {path} has no column of a measure such as tumor_dice; expected MIST's results.csv")
    doubled = frame["id"][frame["id"].duplicated()]
    if len(doubled):
        raise UserError(f"{name}: {path}: case {doubled.iloc[0]} comes twice; expected a row a case")
    blocks = []
    for class_name in dict.fromkeys(own for own, _ in columns.values()):
        own = {column: metric for column, (of_class, metric) in columns.items() if of_class == class_name}
        block = frame[list(own)].rename(columns=own)
        blocks.append(block.assign(case=frame["id"], **{"class": class_name}))
    table = pd.concat(blocks, ignore_index=True).assign(loss=name)
    unknown = [column for column in frame.columns if column != "id" and column not in columns]
    told = [f"{name}: columns of {path.name} that are left out: {', '.join(unknown)}."] if unknown else []
    return table, told


def _column(column: str) -> tuple[str, str] | None:
    """Class and measure of a column of MIST's; None of another."""
    measure = next((own for own in sorted(_MIST, key=len, reverse=True) if column.endswith(f"_{own}")), None)
    if measure is None or re.search(r"(^|_)lesion_wise_", column):
        return None
    class_name = column.removesuffix(f"_{measure}")
    return (class_name, _MIST[measure]) if class_name else None


#: Folders in which nnU-Net pools a cross-validation.
_POOLED = ("crossval_results", "ensemble___")
_READABLE = (".nii.gz", ".nii")


@dataclass(frozen=True)
class NnunetResults:
    """One training's results.

    Attributes:
        folder: `TRAINER__PLANS__CONFIGURATION`, or a folder of predictions with a `dataset.json`.
        dataset: `DatasetXXX_Name`; None where nothing tells it.
        trainer: the trainer's class; None where nothing tells it.
        content: of `dataset.json`.
        validations: fold -> its folder of predictions; none in a folder of predictions.
        without_all: whether there is a `fold_all`, too, which is left out.
    """

    folder: Path
    dataset: str | None
    trainer: str | None
    content: dict[str, Any]
    validations: dict[str, Path]
    without_all: bool = False

    @property
    def classes(self) -> Classes:
        """The classes of `dataset.json`.

        Raises:
            UserError: its labels are not as nnU-Net wants them.
        """
        return dataset_classes(self.content, self.folder / "dataset.json")


def read_results(path: Path, folds: tuple[int, ...] | None = None) -> NnunetResults | None:
    """What a folder is to nnU-Net; None where it is none of its folders.

    Args:
        path: a trainer's folder, one of its folds, a fold's `validation`, or a folder of predictions with a
            `dataset.json`.
        folds: these alone.

    Raises:
        UserError: a fold has not ended, there is no such fold, the folder is of several trainers, its files have an
            ending that cannot be read, or `dataset.json` is damaged.
    """
    trained, fold = _place(path)
    if trained is None:
        _refuse_several(path)
        return None
    content = _json(trained / "dataset.json")
    ending = content.get("file_ending", _READABLE[0])
    if ending not in _READABLE:
        raise UserError(f"{path}: its files end in {ending}; expected NIfTI, {' or '.join(_READABLE)}: convert them")
    if fold is None and not _folds(trained):
        return NnunetResults(trained, _dataset(trained), None, content, {})
    there = _folds(trained) if fold is None else [fold]
    chosen = [name for name in there if name != "all"]
    if not chosen:
        raise UserError(
            f"{path}: has fold_all alone, which was validated on the cases it was trained with; expected fold_0, "
            "fold_1, ..., or predictions of other cases with --labels"
        )
    if folds is not None:
        lacking = [str(number) for number in folds if str(number) not in there]
        if lacking:
            raise UserError(f"{path}: has no fold {', '.join(lacking)}; it has {', '.join(there)}: see --folds")
        chosen = [str(number) for number in folds]
    validations = {name: trained / f"fold_{name}" / "validation" for name in chosen}
    unfinished = [name for name, own in validations.items() if not (own / "summary.json").is_file()]
    if unfinished:
        raise UserError(
            f"{path}: fold {', '.join(unfinished)} has no validation/summary.json: it has not ended; finish it "
            "(nnUNetv2_train with --c, or --val), or name the folds of all that have ended, as --folds 0,1"
        )
    trainer = trained.name.split("__")[0] if trained.name.count("__") == 2 else None
    return NnunetResults(trained, _dataset(trained), trainer, content, validations, "all" in there and fold is None)


def found_references(results: NnunetResults) -> tuple[Path | None, list[Path]]:
    """The references that nnU-Net keeps of the data set, and where they were looked for.

    By the variables `nnUNet_preprocessed` and `nnUNet_raw`, or in folders so called beside the results' root.
    """
    names = (results.folder.name, results.folder.resolve().parent.name)
    cross_validation = bool(results.validations) or any(name.startswith(_POOLED) for name in names)
    if results.dataset is None or not cross_validation:
        return None, []  # of what else a folder may hold predictions, nobody knows
    places = []
    for variable, folder in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr")):
        places += [root / results.dataset / folder for root in _roots(results, variable)]
    return next((place for place in places if nifti_files(place)), None), places


def found_images(results: NnunetResults, cases: Iterable[str]) -> dict[str, Path]:
    """The first channel of each case's image, where `nnUNet_raw` is found and has it."""
    folders = [root / (results.dataset or "") / "imagesTr" for root in _roots(results, "nnUNet_raw")]
    found = {}
    for case in cases:
        files = [folder / f"{case}_0000{ending}" for folder in folders for ending in _READABLE]
        image = next((file for file in files if file.is_file()), None)
        if image is not None:
            found[case] = image
    return found


def summary_dice(validation: Path, classes: Classes) -> dict[tuple[str, str], float]:
    """The Dice that nnU-Net wrote itself: (case's file name, class) -> value; empty where it cannot be read."""
    names = {frozenset(values): name for name, values in classes.regions.items()}
    found = {}
    try:
        for own in json.loads((validation / "summary.json").read_text())["metric_per_case"]:
            file = str(own["prediction_file"]).replace("\\", "/").rsplit("/", 1)[-1]
            for key, measures in own["metrics"].items():
                values = frozenset(int(part) for part in key.strip("()").split(",") if part.strip())
                if values in names and measures["Dice"] is not None:
                    found[file, names[values]] = float(measures["Dice"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return found


def _roots(results: NnunetResults, variable: str) -> list[Path]:
    """Where the variable points to, and the folder so called beside the results' root."""
    roots = [Path(named)] if (named := os.environ.get(variable)) else []
    for folder in results.folder.resolve().parents:
        if folder.name == results.dataset:
            roots.append(folder.parent.parent / variable)
            break
    return list(dict.fromkeys(roots))


def _place(path: Path) -> tuple[Path | None, str | None]:
    """The folder with `dataset.json`, and the fold where it is of one alone."""
    real = path.resolve()
    for inner in (real, real / "validation"):
        if inner.name == "validation" and inner.is_dir() and inner.parent.name.startswith("fold_"):
            trained = inner.parent.parent
            if (trained / "dataset.json").is_file():
                return trained, inner.parent.name.removeprefix("fold_")
    return (path, None) if (path / "dataset.json").is_file() else (None, None)


def _folds(trained: Path) -> list[str]:
    """Names of the folds that were begun: numbers in order, then others."""
    names = [own.name.removeprefix("fold_") for own in trained.glob("fold_*") if own.is_dir()]
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _dataset(trained: Path) -> str | None:
    plans = trained / "plans.json"
    named = _json(plans).get("dataset_name") if plans.is_file() else None
    if isinstance(named, str) and named:
        return named
    parent = trained.resolve().parent.name
    return parent if parent.startswith("Dataset") else None


def _refuse_several(path: Path) -> None:
    """A data set's folder, or the root of all, is not what one of them predicted."""
    inner = sorted({own.parent.parent for own in path.glob("*/fold_*/validation")}) if path.is_dir() else []
    inner += sorted({own.parent.parent for own in path.glob("*/*/fold_*/validation")}) if not inner else []
    if inner:
        some = ", ".join(f"NAME={own}" for own in inner[:4]) + (f" and {len(inner) - 4} more" if len(inner) > 4 else "")
        raise UserError(f"{path}: holds the results of {len(inner)} trainer(s); expected one each: {some}")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read as JSON; expected nnU-Net's") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; expected nnU-Net's")
    return content


#: nnU-Net's own trainer, of Dice + cross entropy; folders of results are called by their trainer.
STOCK = "nnUNetTrainer"
