"""What is evaluated: named folders of predictions, and the reference of each prediction."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.checks import Offence
from pipelines.data.layouts import PROBABILITIES, nifti_files, pair_predictions, stem
from pipelines.evaluation.references import AMBIGUOUS, label_files
from pipelines.evaluation.result_folders import NnunetResults, found_references, read_results
from pipelines.utils import UserError
from pipelines.utils.text import shown

# Named folders of label maps, nnU-Net results, or tables of metrics.

_EXPECTED = "expected NAME=FOLDER or NAME=TABLE.csv, two or more"
_EXPECTED_TABLES = "expected one table, or NAME=TABLE.csv, two or more"


@dataclass(frozen=True)
class Method:
    """A named folder of label maps, with the fold of each file in a cross-validation, and nnU-Net's results in it."""

    name: str
    path: Path
    files: tuple[Path, ...]
    folds: dict[Path, str]
    nnunet: NnunetResults | None


def read_names(given: Sequence[str], flag: str = "--predictions") -> dict[str, Path]:
    """Parse the values of the option `flag`, names with paths such as `dice=runs/dice`.

    Raises:
        UserError: a value has another form, a name is used twice, or there are fewer than two.
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
            raise UserError(f"{flag}: the name {name} is used twice; expected a different name for each")
        named[name] = Path(path.strip()).expanduser()
    if len(named) < 2:
        raise UserError(f"{flag}: got only {shown(given[0]) if given else 'none'}; {expected}")
    return named


def read_methods(named: dict[str, Path], folds: tuple[int, ...] | None) -> list[Method]:
    """The label maps in named folders; of nnU-Net's results only those of the folds, if some are given.

    Raises:
        UserError: a folder does not exist or is empty, or the folds do not match.
    """
    resolved: dict[Path, str] = {}
    for name, path in named.items():
        if (other := resolved.setdefault(path.resolve(), name)) != name:
            raise UserError(f"--predictions: {other} and {name} are the same folder, {shown(path)}; expected two")
    methods = [_method(name, path, folds) for name, path in named.items()]
    validated = {method.name: tuple(method.nnunet.validations) for method in methods
                 if method.nnunet is not None and method.nnunet.validations}  # fmt: skip
    if folds is not None and not validated:
        raise UserError("--folds: got folds, but no folder has any; expected results of nnU-Net's cross-validation")
    if len(set(validated.values())) > 1:
        finished = "; ".join(f"{name} has {', '.join(of_method)}" for name, of_method in validated.items())
        common = sorted(set.intersection(*(set(of_method) for of_method in validated.values())))
        advice = f"pass --folds {','.join(common)}" if common else "name folders with the same folds"
        raise UserError(f"--predictions: the finished folds differ: {finished}; finish them, or {advice}")
    return methods


def _method(name: str, path: Path, folds: tuple[int, ...] | None) -> Method:
    if not path.is_dir():
        problem = "not a folder" if path.exists() else "no such folder"
        raise UserError(f"--predictions: {name}: {shown(path)}: {problem}; {_EXPECTED}")
    nnunet = read_results(path, folds)
    validations = {} if nnunet is None else nnunet.validations
    fold_of = {validation / file: fold for fold, validation in validations.items() for file in nifti_files(validation)}
    files = tuple(fold_of) if validations else tuple(path / file for file in nifti_files(path))
    if not files:
        hold = f"the folds of {shown(path)} hold" if validations else f"{shown(path)} holds"
        raise UserError(f"--predictions: {name}: {hold} no NIfTI file (.nii or .nii.gz)")
    return Method(name, path, files, fold_of, nnunet)


# References, and their predictions.


@dataclass(frozen=True)
class ReferenceFiles:
    """The references in a folder: case to file; a case has the name of its reference."""

    folder: Path
    files: dict[str, Path]


def read_references(folder: Path | None, methods: Sequence[Method]) -> ReferenceFiles:
    """The references in a folder; by default those that nnU-Net stores for its data set.

    Raises:
        UserError: the folder does not exist or is empty, or no folder was named and none is found.
    """
    folder = _found(methods) if folder is None else folder
    files: dict[str, Path] = {}
    for file in label_files(folder, among_images=not any(method.folds for method in methods)):
        case = stem(file.name)
        if (other := files.setdefault(case, file)) != file:
            both = f"{other.name} and {file.name}"
            raise UserError(f"--labels: {shown(folder)}: {both} are both of {case}; expected one per case")
    return ReferenceFiles(folder, files)


def match_method(references: ReferenceFiles, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    """Find each case's prediction, if there is one, and the files that cannot be matched.

    nnU-Net's predictions have the names of their references; other names may differ in the suffix for label or first
    channel, as in `medloss evaluate`.

    Raises:
        UserError: no file is named like a reference.
    """
    found, offences = (_match_by_fold if method.folds else _match_by_name)(references, method)
    if not found and not offences:
        first, case = shown(method.files[0]), next(iter(references.files))
        raise UserError(
            f"--predictions: {method.name}: no file is named like a reference in {shown(references.folder)}: {first}, "
            f"for example; expected {case}.nii.gz"
        )
    reported = {offence.file for offence in offences}
    known = {*found.values(), *(file.with_name(stem(file.name) + PROBABILITIES) for file in found.values())}
    extra = [file for file in method.files if file not in known and str(file) not in reported]
    reason = f"no reference of that name in {shown(references.folder)}; remove it, or add its reference"
    return found, [*offences, *(Offence(str(file), reason) for file in extra)]


def _match_by_fold(references: ReferenceFiles, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    predicted: dict[str, list[Path]] = defaultdict(list)
    for file in method.files:
        predicted[stem(file.name)].append(file)
    offences = []
    for case, files in predicted.items():
        folds = " and ".join(f"fold_{method.folds[file]}" for file in files)
        reason = f"{case} is predicted in {folds}; expected each case in one fold"
        offences += [Offence(str(file), reason) for file in files if len(files) > 1]
    return {case: files[0] for case, files in predicted.items() if case in references.files}, offences


def _match_by_name(references: ReferenceFiles, method: Method) -> tuple[dict[str, Path], list[Offence]]:
    files = {file.name: file for file in method.files}
    labels = {file.name: (case, file) for case, file in references.files.items()}
    found, duplicates, duplicate_labels = pair_predictions(list(files), list(labels))
    ambiguous = [*(files[name] for name in duplicates), *(labels[name][1] for name in duplicate_labels)]
    return {labels[label][0]: files[prediction] for label, prediction in found.items()}, [
        Offence(str(file), AMBIGUOUS) for file in ambiguous
    ]


def _found(methods: Sequence[Method]) -> Path:
    """The folder in which nnU-Net stores the references of the methods' data set."""
    searched = [found_references(method.nnunet) for method in methods if method.nnunet is not None]
    found = {folder.resolve(): folder for folder, _ in searched if folder is not None}
    if len(found) > 1:
        folders = " and ".join(map(shown, found.values()))
        raise UserError(
            f"--labels: got none, and nnU-Net's folders lead to {folders}; expected one folder of references"
        )
    if not found:
        tried = ", ".join(map(shown, dict.fromkeys(path for _, candidates in searched for path in candidates)))
        raise UserError(
            "--labels: got none; expected the folder of references, which only nnU-Net's cross-validations lead to"
            + (f" (looked for {tried})" if tried else "")
        )
    return next(iter(found.values()))
