"""The references, and which prediction belongs to which."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.finished.methods import Method
from pipelines.comparison.finished.nnunet_results import found_references
from pipelines.dataset.case_reader import Offence
from pipelines.dataset.pairing import is_label_name, nifti_files, pair_by_name, stem
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import shown


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
    if not owned:
        first, case = shown(method.files[0]), next(iter(references.files))
        raise UserError(
            f"--predictions: {method.name}: no file is called as a reference of {shown(references.folder)}: {first}, "
            f"for example; expected {case}.nii.gz"
        )
    told = {offence.file for offence in offences}
    extra = [file for file in method.files if file not in owned.values() and str(file) not in told]
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
    files = {f"p/{file.name}": file for file in method.files} | {f"l/{f.name}": f for f in references.files.values()}
    cases = {f"l/{file.name}": case for case, file in references.files.items()}
    pairing = pair_by_name([name for name in files if name.startswith("p/")], list(cases))
    # Where one side has two of a name, all of that name are left unpaired.
    sides = {"images": "p/", "labels": "l/"}
    doubled = [name for name, reason in pairing.unpaired
               if reason.startswith("doubled") and name.startswith(sides[reason.rsplit(" ", 1)[1]])]  # fmt: skip
    told = "its name, but for endings, is another file's, too; expected one"
    return {cases[label]: files[prediction] for _, prediction, label in pairing.pairs}, [
        Offence(str(files[name]), told) for name in doubled
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
