"""Which images are predicted, and which files their predictions become."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.dataset.data_root import located_cases
from pipelines.dataset.pairing import layout_labels, nifti_files, pair_by_name, stem
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import shown

_ENDING = ".nii.gz"
#: How the file of an image's probabilities ends, after the image's name.
PROBABILITIES = "_probabilities.nii.gz"


@dataclass(frozen=True)
class Source:
    """An image to predict: its file, what it is called, its SHA-256 if known."""

    path: Path
    name: str
    sha256: str | None = None

    def labels(self, folder: Path) -> Path:
        """Where its label map is written."""
        return folder / (self.name + _ENDING)

    def probabilities(self, folder: Path) -> Path:
        """Where its probabilities are written."""
        return folder / (self.name + PROBABILITIES)

    def outputs(self, folder: Path, *, probabilities: bool) -> list[Path]:
        """The files that its prediction becomes, the label map last: with it, all are there."""
        return [*([self.probabilities(folder)] if probabilities else []), self.labels(folder)]


def image_sources(paths: Iterable[Path]) -> tuple[list[Source], list[Path]]:
    """The images of paths to files and folders, in that order; a folder's by name, its own folders left out.

    Labels that lie side by side with images are no images: in a folder all that are named so, and of files that are
    named one by one those whose image is among them.

    Returns:
        The images, and the labels that were left out.

    Raises:
        UserError: a path that is not there, a file that is none of NIfTI by its name, a folder without one, or with
            labels alone.
    """
    found: list[Path] = []
    labels: list[Path] = []
    for path in paths:
        files = nifti_files(path) if path.is_dir() else [path.name]
        if not files:
            raise UserError(f"{shown(path)} holds no NIfTI file (.nii or .nii.gz)")
        if not os.path.lexists(path):
            raise UserError(f"{shown(path)}: no such file or folder")
        if not files[0].endswith((".nii", _ENDING)):
            raise UserError(f"{shown(path)}: no NIfTI file by its name; expected .nii or .nii.gz")
        if not path.is_dir():
            found.append(path)
            continue
        of_layout = layout_labels(path, files)
        if len(of_layout) == len(files):
            raise UserError(
                f"{shown(path)} holds labels alone, by their names, as {shown(files[0])}; to predict them all the "
                "same, name the files"
            )
        found += [path / name for name in files if name not in of_layout]
        labels += [path / name for name in of_layout]
    labels += (beside := _labels_beside(found))
    return [Source(file.absolute(), stem(file.name)) for file in found if file not in beside], labels


def _labels_beside(files: list[Path]) -> list[Path]:
    """Labels by the layout whose images are among the files, too."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file.name)
    beside = []
    for folder, names in folders.items():
        labels = layout_labels(folder, names)
        pairs = pair_by_name([name for name in names if name not in labels], labels).pairs
        beside += [folder / label for _, _, label in pairs]
    return beside


def manifest_sources(name: str, data_root: Path | None, fold: int | None = None) -> list[Source]:
    """The images of a manifest, or of its fold `fold`, called as their cases are.

    Raises:
        UserError: no such manifest, fold or data; or the root holds none of the images.
    """
    _, cases, root = located_cases(name, data_root, fold, "image")
    return [Source(root / case.image, case.id, case.image_sha256) for case in cases]


def refuse_collisions(sources: Sequence[Source], folder: Path, *, probabilities: bool) -> None:
    """Refuse images whose predictions would be one file, and predictions that would lie on an image.

    Raises:
        UserError: there are such.
    """
    images = {place: source for source in sources for place in _places(source.path)}
    written: dict[Path, Source] = {}
    for source in sources:
        for target in source.outputs(folder, probabilities=probabilities):
            other = written.setdefault(target, source)
            if other is not source:
                both = f"{shown(other.path)} and {shown(source.path)}"
                raise UserError(f"{both} would both be predicted as {shown(target.name)}; predict them apart")
            overwritten = next((images[place] for place in _places(target) if place in images), None)
            if overwritten is not None:
                raise UserError(
                    f"--out: {shown(target)} would overwrite the image {shown(overwritten.path)}; name another folder"
                )


def _places(path: Path) -> set[str]:
    """Where a path lies, and, if it is a link, where it leads."""
    return {str(Path(os.path.realpath(path.parent)) / path.name), os.path.realpath(path)}
