"""The images to predict, and the files of their predictions; found before torch is imported."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.data.data_root import located_cases
from pipelines.data.layouts import PROBABILITIES, layout_labels, nifti_files, pair_by_name, stem
from pipelines.utils import UserError
from pipelines.utils.text import shown


@dataclass(frozen=True)
class Source:
    """An image to predict.

    Attributes:
        path: its file, of several the first channel's.
        name: the name of its prediction.
        sha256: file to SHA-256, for the files whose checksums are known.
        others: the files of further channels, in their order.
    """

    path: Path
    name: str
    sha256: Mapping[Path, str] = field(default_factory=dict, hash=False)
    others: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, in the order of the channels."""
        return (self.path, *self.others)

    def labels(self, folder: Path) -> Path:
        """The file of its label map."""
        return folder / f"{self.name}.nii.gz"

    def probabilities(self, folder: Path) -> Path:
        """The file of its probabilities."""
        return folder / f"{self.name}{PROBABILITIES}"

    def region(self, folder: Path, name: str) -> Path:
        """The file of the map of one region."""
        printable = re.sub(r"[^\w.-]", "_", name)
        return folder / f"{self.name}_{printable}.nii.gz"

    def outputs(self, folder: Path, *, probabilities: bool, regions: Sequence[str] = ()) -> list[Path]:
        """All files of its prediction, in the order in which they are written: the label map is last.

        Args:
            folder: where they are.
            probabilities: whether probabilities are written as well.
            regions: the regions of which maps are written as well.
        """
        made = [self.region(folder, name) for name in regions]
        return [*made, *([self.probabilities(folder)] if probabilities else []), self.labels(folder)]


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
    return [
        Source(
            root / case.images[0],
            case.id,
            {root / file: digest for file, digest in case.checksums.items() if file != case.label},
            tuple(root / file for file in case.images[1:]),
        )
        for case in cases
    ]


def by_channel(sources: Sequence[Source], channels: Sequence[str]) -> list[Source]:
    """Join the files of images with several channels, by the ends of their names.

    The files of channel 1, named `CT`, end with `_0001`, as nnU-Net's, or with `_CT`, `-CT` or `.CT` in any case. Files
    without such an end have all channels.

    Args:
        sources: one per file.
        channels: names of the channels; of one channel, or none, nothing is joined.

    Raises:
        UserError: an image lacks a channel, or has one twice.
    """
    if len(channels) < 2:
        return list(sources)
    ends = {f"_{number:04d}": number for number in range(len(channels))}
    ends |= {f"{mark}{name.lower()}": number for number, name in enumerate(channels) for mark in "_-."}
    joined: dict[tuple[Path, str], dict[int, Source]] = {}
    for source in sources:
        name = source.name.lower()
        end = max((end for end in ends if name.endswith(end) and len(end) < len(name)), key=len, default=None)
        if end is None or source.others:
            joined[source.path, source.name] = dict.fromkeys(range(len(channels)), source)
        else:
            files = joined.setdefault((source.path.parent, source.name[: -len(end)]), {})
            if (other := files.setdefault(ends[end], source)) is not source:
                raise UserError(
                    f"{shown(other.path)} and {shown(source.path)} are both channel {ends[end]} "
                    f"({channels[ends[end]]}) of one image; leave one out"
                )
    images = []
    for (_, name), files in joined.items():
        missing = [number for number in range(len(channels)) if number not in files]
        if missing:
            there = shown(next(iter(files.values())).path)
            raise UserError(
                f"{there}: channel {missing[0]} ({channels[missing[0]]}) of '{name}' is missing; expected "
                f"{name}_{missing[0]:04d}.nii.gz or {name}_{channels[missing[0]]}.nii.gz next to it"
            )
        if len({source.path for source in files.values()}) == 1:
            images.append(files[0])
        else:
            paths = [files[number].path for number in range(len(channels))]
            images.append(Source(paths[0], name, others=tuple(paths[1:])))
    return images


def refuse_collisions(
    sources: Sequence[Source], folder: Path, *, probabilities: bool, regions: Sequence[str] = ()
) -> None:
    """Refuse images whose predictions would be the same file, and predictions that would overwrite an image.

    Raises:
        UserError: there are such images.
    """
    images = {location: source for source in sources for path in source.paths for location in _locations(path)}
    written: dict[Path, Source] = {}
    for source in sources:
        targets = source.outputs(folder, probabilities=probabilities, regions=regions)
        if twice := [target for target, count in Counter(targets).items() if count > 1]:
            raise UserError(
                f"--regions: {shown(twice[0].name)} would be written twice, for the regions {', '.join(regions)}; "
                "leave out --regions"
            )
        for target in targets:
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
