"""What is compared: names with folders of label maps, nnU-Net's results, or tables of measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.finished.nnunet_results import NnunetResults, read_results
from pipelines.dataset.pairing import nifti_files
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import shown

_EXPECTED = "expected NAME=FOLDER or NAME=TABLE.csv, two or more"
_EXPECTED_TABLES = "expected one table, or NAME=TABLE.csv, two or more"


@dataclass(frozen=True)
class Method:
    """A folder of predictions.

    Attributes:
        name: what it is called; the report's losses are called so.
        path: as it was named.
        files: the label maps.
        folds: file -> fold, of a cross-validation.
        nnunet: what nnU-Net says of it.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    folds: dict[Path, str]
    nnunet: NnunetResults | None


def read_names(given: Sequence[str], flag: str = "--predictions") -> dict[str, Path]:
    """Names with paths, of words such as `dice=runs/dice`.

    Args:
        given: the words.
        flag: what they were given to.

    Raises:
        UserError: a word is not so, a name comes twice, or there are fewer than two.
    """
    expected = _EXPECTED if flag == "--predictions" else _EXPECTED_TABLES
    named: dict[str, Path] = {}
    for word in given:
        name, separator, path = word.partition("=")
        name = name.strip()
        if not (separator and name and path.strip()):
            raise UserError(f"{flag}: got {shown(word)}; {expected}")
        if "/" in name or not name.isprintable():
            raise UserError(f"{flag}: got the name {shown(name)}; expected one without / and control characters")
        if name in named:
            raise UserError(f"{flag}: the name {name} comes twice; expected one of its own for each")
        named[name] = Path(path.strip()).expanduser()
    if len(named) < 2:
        raise UserError(f"{flag}: got {shown(given[0]) if given else 'none'} alone; {expected}")
    return named


def read_methods(named: dict[str, Path], folds: tuple[int, ...] | None) -> list[Method]:
    """Look into the folders.

    Args:
        named: name -> folder.
        folds: these alone, of nnU-Net's results.

    Raises:
        UserError: no such folder, nothing in it, or folds that do not fit.
    """
    places: dict[Path, str] = {}
    for name, path in named.items():
        if (other := places.setdefault(path.resolve(), name)) != name:
            raise UserError(f"--predictions: {other} and {name} are one folder, {shown(path)}; expected two")
    methods = [_method(name, path, folds) for name, path in named.items()]
    validated = {method.name: tuple(method.nnunet.validations) for method in methods
                 if method.nnunet is not None and method.nnunet.validations}  # fmt: skip
    if folds is not None and not validated:
        raise UserError("--folds: got folds, and no folder has any; expected results of nnU-Net's cross-validation")
    if len(set(validated.values())) > 1:
        told = "; ".join(f"{name} has {', '.join(own)}" for name, own in validated.items())
        common = sorted(set.intersection(*(set(own) for own in validated.values())))
        way = f"pass --folds {','.join(common)}" if common else "name folders with the same folds"
        raise UserError(f"--predictions: the folds that have ended differ: {told}; finish them, or {way}")
    return methods


def _method(name: str, path: Path, folds: tuple[int, ...] | None) -> Method:
    if not path.is_dir():
        what = "is no folder" if path.exists() else "no such folder"
        raise UserError(f"--predictions: {name}: {shown(path)}: {what}; {_EXPECTED}")
    nnunet = read_results(path, folds)
    if nnunet is None or not nnunet.validations:
        files = tuple(path / file for file in nifti_files(path))
        if not files:
            raise UserError(f"--predictions: {name}: {shown(path)} holds no NIfTI file (.nii or .nii.gz)")
        return Method(name, path, files, {}, nnunet)
    of_folds = {validation / file: fold for fold, validation in nnunet.validations.items()
                for file in nifti_files(validation)}  # fmt: skip
    if not of_folds:
        raise UserError(f"--predictions: {name}: the folds of {shown(path)} hold no NIfTI file (.nii or .nii.gz)")
    return Method(name, path, tuple(of_folds), of_folds, nnunet)
