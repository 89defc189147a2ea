"""The images to predict, and the files of their predictions; found before torch is imported."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.data_root import located_cases
from pipelines.data.layouts import PROBABILITIES, layout_labels, nifti_files, pair_by_name, stem
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile
from pipelines.utils.text import shown


@dataclass(frozen=True)
class Source(NamedFile):
    """An image to predict."""

    def labels(self, folder: Path) -> Path:
        """The file of its label map."""
        return folder / f"{self.name}.nii.gz"

    def probabilities(self, folder: Path) -> Path:
        """The file of its probabilities."""
        return folder / f"{self.name}{PROBABILITIES}"

    def outputs(self, folder: Path, *, probabilities: bool) -> list[Path]:
        """All files of its prediction; the label map is last, so if it exists, all exist."""
        return [*([self.probabilities(folder)] if probabilities else []), self.labels(folder)]


def image_sources(paths: Iterable[Path]) -> tuple[list[Source], list[Path]]:
    """The images given by paths to files and folders, in that order, and the labels next to them that were left out.

    Files in a folder are sorted, subfolders ignored. Labels are, in a folder, all files named as labels; of single
    files, the labels whose image is also given.

    Raises:
        UserError: a path does not exist, a file has no NIfTI extension, or a folder has no NIfTI files or only labels.
    """
    found: list[Path] = []
    labels: list[Path] = []
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{shown(path)}: no such file or folder")
        if not path.is_dir():
            if not path.name.endswith((".nii", ".nii.gz")):
                raise UserError(f"{shown(path)}: not a NIfTI file by its name; expected .nii or .nii.gz")
            found.append(path)
            continue
        if not (files := nifti_files(path)):
            raise UserError(f"{shown(path)} holds no NIfTI file (.nii or .nii.gz)")
        of_layout = layout_labels(path, files)
        if len(of_layout) == len(files):
            raise UserError(
                f"{shown(path)} holds only labels, by their names, such as {shown(files[0])}; to predict them anyway, "
                "name the files"
            )
        found += [path / name for name in files if name not in of_layout]
        labels += [path / name for name in of_layout]
    folders: dict[Path, list[str]] = defaultdict(list)
    for file in found:
        folders[file.parent].append(file.name)
    paired = []
    for folder, names in folders.items():
        of_layout = layout_labels(folder, names)
        pairs = pair_by_name([name for name in names if name not in of_layout], of_layout).pairs
        paired += [folder / label for _, _, label in pairs]
    return [Source(file.absolute(), stem(file.name)) for file in found if file not in paired], labels + paired


def manifest_sources(name: str, data_root: Path | None, fold: int | None = None) -> list[Source]:
    """The images of a manifest, or of one of its folds, named like their cases.

    Raises:
        UserError: no such manifest, fold or data; or the root has none of the images.
    """
    _, cases, root = located_cases(name, data_root, fold, "image")
    return [Source(root / case.image, case.id, case.image_sha256) for case in cases]


def refuse_collisions(sources: Sequence[Source], folder: Path, *, probabilities: bool) -> None:
    """Refuse images whose predictions would be the same file, and predictions that would overwrite an image.

    Raises:
        UserError: there are such images.
    """
    images = {location: source for source in sources for location in _locations(source.path)}
    written: dict[Path, Source] = {}
    for source in sources:
        for target in source.outputs(folder, probabilities=probabilities):
            other = written.setdefault(target, source)
            if other is not source:
                both = f"{shown(other.path)} and {shown(source.path)}"
                raise UserError(f"{both} would both be predicted as {shown(target.name)}; predict them separately")
            overwritten = next((images[location] for location in _locations(target) if location in images), None)
            if overwritten is not None:
                raise UserError(
                    f"--out: {shown(target)} would overwrite the image {shown(overwritten.path)}; name another folder"
                )


def _locations(path: Path) -> set[str]:
    """Where a path is and, if it is a link, where it leads."""
    return {str(Path(os.path.realpath(path.parent)) / path.name), os.path.realpath(path)}
