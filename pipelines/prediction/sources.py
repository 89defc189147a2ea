"""Which images are predicted, and which files their predictions become."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.dataset.data_root import located_cases
from pipelines.dataset.pairing import nifti_files, stem
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


def image_sources(paths: Iterable[Path]) -> list[Source]:
    """The images of paths to files and folders, in that order; a folder's by name, its own folders left out.

    Raises:
        UserError: a path that is not there, a file that is none of NIfTI by its name, a folder without one.
    """
    sources = []
    for path in paths:
        found = [path / name for name in nifti_files(path)] if path.is_dir() else [path]
        if not found:
            raise UserError(f"{shown(path)} holds no NIfTI file (.nii or .nii.gz)")
        if not os.path.lexists(path):
            raise UserError(f"{shown(path)}: no such file or folder")
        if not found[0].name.endswith((".nii", _ENDING)):
            raise UserError(f"{shown(path)}: no NIfTI file by its name; expected .nii or .nii.gz")
        sources += [Source(file.absolute(), stem(file.name)) for file in found]
    return sources


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
