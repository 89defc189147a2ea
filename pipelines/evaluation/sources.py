"""What is evaluated: names with folders of predictions, and the reference of each prediction."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.checks import Offence
from pipelines.data.layouts import PROBABILITIES, is_label_name, nifti_files, pair_predictions, stem
from pipelines.evaluation.references import DOUBLED, shown
from pipelines.evaluation.result_folders import NnunetResults, found_references, read_results
from pipelines.utils import UserError

# What is compared: names with folders of label maps, nnU-Net's results, or tables of measures.

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


# The references, and which prediction belongs to which.


@dataclass(frozen=True)
class References:
    """The references of a folder.

    Attributes:
        folder: theirs.
        files: case -> file; a case is called as its reference is.
    """

    folder: Path
    files: dict[str, Path]


def read_references(folder: Path | None, methods: Sequence[Method]) -> References:
    """The references in a folder, or, where none is named, those that nnU-Net keeps of its data set.

    Raises:
        UserError: there is no such folder, nothing in it, or none was named and none is found.
    """
    folder = _found(methods) if folder is None else folder
    if not folder.is_dir():
        raise UserError(f"--labels: {shown(folder)}: no such folder")
    names = nifti_files(folder)
    if not any(method.folds for method in methods):
        names = [name for name in names if is_label_name(name)] or names  # beside them may lie images
    if not names:
        raise UserError(f"--labels: {shown(folder)} holds no NIfTI file (.nii or .nii.gz)")
    files: dict[str, Path] = {}
    for name in names:
        if stem(name) in files:
            both = f"{files[stem(name)].name} and {name}"
            raise UserError(f"--labels: {shown(folder)}: {both} are both of {stem(name)}; expected one a case")
        files[stem(name)] = folder / name
    return References(folder, files)


def match(references: References, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    """Each case's prediction, as far as there is one, and the files that keep it from being clear.

    nnU-Net calls predictions as their references; elsewhere names may differ in what says label or first channel, as
    `medloss evaluate` has it.

    Raises:
        UserError: no file is called as a reference is.
    """
    owned, offences = (_of_folds if method.folds else _by_name)(references, method)
    if not owned and not offences:
        first, case = shown(method.files[0]), next(iter(references.files))
        raise UserError(
            f"--predictions: {method.name}: no file is called as a reference of {shown(references.folder)}: {first}, "
            f"for example; expected {case}.nii.gz"
        )
    told = {offence.file for offence in offences}
    known = {*owned.values(), *(file.with_name(stem(file.name) + PROBABILITIES) for file in owned.values())}
    extra = [file for file in method.files if file not in known and str(file) not in told]
    reason = f"no reference of that name in {shown(references.folder)}; remove it, or add its reference"
    return owned, [*offences, *(Offence(str(file), reason) for file in extra)]


def _of_folds(references: References, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    predicted: dict[str, list[Path]] = defaultdict(list)
    for file in method.files:
        predicted[stem(file.name)].append(file)
    offences = []
    for case, files in predicted.items():
        folds = " and ".join(f"fold_{method.folds[file]}" for file in files)
        reason = f"{case} is predicted in {folds}; expected each case in one fold"
        offences += [Offence(str(file), reason) for file in files if len(files) > 1]
    return {case: files[0] for case, files in predicted.items() if case in references.files}, offences


def _by_name(references: References, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    files = {file.name: file for file in method.files}
    labels = {file.name: (case, file) for case, file in references.files.items()}
    found, doubled, doubled_labels = pair_predictions(list(files), list(labels))
    twice = [*(files[name] for name in doubled), *(labels[name][1] for name in doubled_labels)]
    return {labels[label][0]: files[prediction] for label, prediction in found.items()}, [
        Offence(str(file), DOUBLED) for file in twice
    ]


def _found(methods: Sequence[Method]) -> Path:
    leading = [method.nnunet for method in methods if method.nnunet is not None]
    found = {}
    places: list[Path] = []
    for nnunet in leading:
        folder, tried = found_references(nnunet)
        places += tried
        if folder is not None:
            found[folder.resolve()] = folder
    if len(found) > 1:
        told = " and ".join(shown(folder) for folder in found.values())
        raise UserError(f"--labels: got none, and nnU-Net's folders lead to {told}; expected one folder of references")
    if not found:
        looked = ", ".join(shown(place) for place in dict.fromkeys(places))
        told = f" (looked for {looked})" if looked else ""
        raise UserError(
            f"--labels: got none; expected the folder of references, which only nnU-Net's cross-validations lead "
            f"to{told}"
        )
    return next(iter(found.values()))
