"""The references, and which prediction belongs to which."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.finished.methods import Method
from pipelines.comparison.finished.nnunet_results import found_references
from pipelines.dataset.case_reader import Offence
from pipelines.dataset.pairing import is_label_name, nifti_files, pair_predictions, stem
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import DOUBLED, shown
from pipelines.prediction.sources import PROBABILITIES


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
