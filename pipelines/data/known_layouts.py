"""Layouts of folders: which files are the channels and the label of one case. A new layout is one function here."""

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.data.layouts import image_name, is_label_name, names_of, pair_by_name, path_problem, stem
from pipelines.utils import UserError
from pipelines.utils.text import counted, shown


@dataclass(frozen=True)
class FolderOptions:
    """What a user says about a folder.

    Attributes:
        channels: names of the images' channels, in order; where files are named by channel, these are the ones used.
        images: patterns of the images, one per channel; what their `*` match pairs them with the labels.
        labels: pattern of the labels.
        pairs: a CSV file that lists the cases.
        resample_channels: whether the channels of a case may be on different grids.
        classes: name to the label values that it consists of, instead of those that `dataset.json` names.
        ignore: with `classes`, the label value of voxels that count nowhere.
    """

    channels: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    labels: str | None = None
    pairs: Path | None = None
    resample_channels: bool = False
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None


@dataclass(frozen=True)
class FoundCase:
    """A case's files, relative to the folder; the images are one file, or one per channel."""

    name: str
    images: tuple[str, ...]
    label: str
    patient: str | None


@dataclass(frozen=True)
class Found:
    """The cases of a folder.

    Attributes:
        layout: what the folder looks like.
        cases: the complete cases.
        left_out: other files, each with the reason.
        channels: names of the channels, where files or the user name them.
    """

    layout: str
    cases: list[FoundCase]
    left_out: list[tuple[str, str]]
    channels: tuple[str, ...]


@dataclass
class Groups:
    """Files by case, as a layout sees them.

    Attributes:
        images: case to channel to files; one file per channel is expected.
        labels: case to labels; one is expected.
        left_out: files that are not used, with the reason.
        patients: case to patient, where the layout says it.
        named: whether channels are known by their names, rather than by their numbers.
        numbered: whether the files' names number the channels, so that no file has several.
    """

    images: dict[str, dict[str, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    labels: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    named: bool = False
    numbered: bool = False

    def add(self, case: str, file: str, channel: str | None) -> None:
        """Add an image of a channel, or a label (None)."""
        (self.labels[case] if channel is None else self.images[case][channel]).append(file)


# The layouts: each is a function of the NIfTI files' paths; None if the folder is of another layout.

Layout = Callable[[list[str], Sequence[str]], Groups | None]
#: In the order in which they are tried.
LAYOUTS: dict[str, Layout] = {}


def _layout(description: str) -> Callable[[Layout], Layout]:
    def register(layout: Layout) -> Layout:
        LAYOUTS[description] = layout
        return layout

    return register


@_layout("nnU-Net (imagesTr with numbered channels, labelsTr)")
def _nnunet(files: list[str], channels: Sequence[str]) -> Groups | None:
    groups = _two_folders(files, "imagesTr", "labelsTr")
    return groups if groups is not None and groups.numbered else None


@_layout("Medical Segmentation Decathlon (imagesTr, labelsTr)")
def _decathlon(files: list[str], channels: Sequence[str]) -> Groups | None:
    return _two_folders(files, "imagesTr", "labelsTr")


@_layout("images and labels in folders of these names")
def _images_and_labels(files: list[str], channels: Sequence[str]) -> Groups | None:
    return _two_folders(files, "images", "labels")


@_layout("BIDS (sub-*, with labels in derivatives)")
def _bids(files: list[str], channels: Sequence[str]) -> Groups | None:
    groups = Groups(named=True)
    for file in files:
        found = re.fullmatch(r"(derivatives/(?:.*?/)?)?(sub-[^/]+)/(?:(ses-[^/]+)/)?(?:([^/]+)/)?([^/]+)", file)
        if found is None:
            continue
        derived, subject, session, kind, name = found.groups()
        case = "_".join(filter(None, (subject, session)))
        groups.patients[case] = subject
        channel = stem(name).removeprefix(subject).lstrip("_").removeprefix(session or "").lstrip("_")
        if is_label_name(channel) or (derived and re.search("seg|mask|label|lesion|roi", channel, re.IGNORECASE)):
            groups.add(case, file, None)
        elif not derived and (kind not in ("func", "fmap", "dwi") or channel in channels):  # these are series
            groups.add(case, file, channel)
    return groups if groups.images or groups.labels else None


@_layout("ACDC (patient*_frame*, patient*_frame*_gt)")
def _acdc(files: list[str], channels: Sequence[str]) -> Groups | None:
    groups = Groups()
    for file in files:
        if found := re.fullmatch(r"((patient\d+)_frame\d+)(_gt)?", stem(file)):
            groups.add(found[1], file, None if found[3] else "0")
            groups.patients[found[1]] = found[2]
        elif re.fullmatch(r"patient\d+_4d", stem(file)):
            groups.left_out[file] = "the time series, of which single frames are labelled"
    return groups if groups.images else None


@_layout("LiTS (volume-*, segmentation-*)")
def _lits(files: list[str], channels: Sequence[str]) -> Groups | None:
    groups = Groups()
    for file in files:
        if found := re.fullmatch(r"(volume|segmentation)-(\d+)", stem(file)):
            groups.add(f"volume-{found[2]}", file, "0" if found[1] == "volume" else None)
    return groups if groups.images and groups.labels else None


@_layout("one folder per case")
def _folder_per_case(files: list[str], channels: Sequence[str]) -> Groups | None:
    folders: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if "/" in file:
            folders[file.rpartition("/")[0]].append(file)
    last = Counter(PurePosixPath(folder).name for folder in folders)
    groups = Groups(named=True)
    for folder, inside in folders.items():
        name = PurePosixPath(folder).name
        case = name if last[name] == 1 else folder
        for file, suffix in zip(inside, _suffixes(name, inside), strict=True):
            groups.add(case, file, None if is_label_name(suffix) else suffix)
    one = [case for case, labels in groups.labels.items() if len(labels) == 1 and case in groups.images]
    return groups if one and 2 * len(one) > len(groups.labels) else None


@_layout("pairs side by side")
def _side_by_side(files: list[str], channels: Sequence[str]) -> Groups | None:
    top = [file for file in files if "/" not in file]
    labels = [file for file in top if is_label_name(file)]
    return _by_name([file for file in top if not is_label_name(file)], labels) if top else None


def _two_folders(files: list[str], images: str, labels: str) -> Groups | None:
    both = [[file for file in files if file.rpartition("/")[0] == folder] for folder in (images, labels)]
    return _by_name(*both) if any(both) else None


def _by_name(images: list[str], labels: list[str]) -> Groups:
    """Group files whose names differ only in the suffix for image, label or number of the channel."""
    groups, names = Groups(), names_of(labels)
    pairing = pair_by_name(images, labels)
    groups.left_out = dict(pairing.unpaired)
    for name, image, label in pairing.pairs:
        groups.add(name, image, "0")
        groups.add(name, label, None)
    for image in images:
        name, channel = image_name(image, names)
        groups.numbered |= stem(image) == f"{name}_{channel:04d}"
        if channel:
            groups.add(name, image, str(channel))
            del groups.left_out[image]
    without_first = groups.images.keys() - groups.labels.keys()
    for label in labels:
        for name in names_of([label]) & without_first:
            if groups.left_out.get(label) == "label without an image":
                del groups.left_out[label]
                groups.add(name, label, None)
    return groups


def _suffixes(folder: str, files: list[str]) -> list[str]:
    """What distinguishes the files of one case: their names without the folder's, or without their first words."""
    names = [stem(file) for file in files]
    if all(name.startswith(folder) for name in names):
        return [name.removeprefix(folder).lstrip("-_.") or name for name in names]
    words = [re.split(r"(?<=[-_.])", name) for name in names]
    common = 0
    while all(len(one) > common + 1 and one[common] == words[0][common] for one in words) and len(words) > 1:
        common += 1
    return ["".join(one[common:]) for one in words]


# Folders of other layouts: the user names the files.


def _by_pattern(files: list[str], options: FolderOptions) -> Groups:
    if not (options.images and options.labels):
        raise UserError("--images: patterns of both images and labels are needed: pass --images and --labels")
    groups = Groups()
    stars = options.labels.count("*")
    labels: set[str] = set()
    matched: list[tuple[tuple[str, ...], str, str | None]] = []
    for pattern, channel in [(options.labels, None), *((p, str(n)) for n, p in enumerate(options.images))]:
        option = "--labels" if channel is None else "--images"
        if not stars or pattern.count("*") != stars:
            raise UserError(
                f"{option}: '{pattern}' has {pattern.count('*')} *, and --labels has {stars}; expected as many in all "
                "patterns, since what they match pairs the files"
            )
        expression = re.escape(pattern).replace(r"\*\*", "(.*)").replace(r"\*", "([^/]*)").replace(r"\?", "[^/]")
        found = {file: match for file in files if (match := re.fullmatch(expression, file)) and file not in labels}
        if not found:
            example = f", such as {shown(files[0])}" if files else ""
            raise UserError(f"{option}: '{pattern}' matches none of {len(files)} NIfTI files{example}")
        matched += [(match.groups(), file, channel) for file, match in found.items()]
        if channel is None:
            labels.update(found)
    short = {parts: "_".join(dict.fromkeys(parts)) for parts, _, _ in matched}
    shared = Counter(short.values())
    for parts, file, channel in matched:
        groups.add(short[parts] if shared[short[parts]] == 1 else "/".join(parts), file, channel)
    return groups


def _by_table(path: Path) -> Groups:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--pairs: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--pairs: {path} is not text in UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        columns, rows = list(reader.fieldnames or []), list(reader)
    except csv.Error as error:
        raise UserError(f"--pairs: {path} is not CSV: {error}") from None
    images = [column for column in columns if column.startswith("image")]
    other = set(columns) - {"case", "patient", "label", *images}
    if not images or not {"case", "label"} <= set(columns) or other or len(set(columns)) < len(columns):
        raise UserError(
            f"--pairs: {path} has the columns {', '.join(columns) or 'none'}; expected case, image, label, and at will "
            "patient, image2, image3, ..."
        )
    if all(re.fullmatch(r"image\d*", column) for column in images):
        images.sort(key=lambda column: int(column.removeprefix("image") or 1))
    groups = Groups()
    for number, row in enumerate(rows, start=2):
        case = (row["case"] or "").strip()
        patient = (row.get("patient") or "").strip() or case
        if not case or case in groups.patients or not patient.isprintable():
            problem = f"{case!r} is listed twice" if case in groups.patients else f"case {case!r}, patient {patient!r}"
            raise UserError(f"--pairs: {path}, line {number}: {problem}")
        groups.patients[case] = patient
        for column, file in row.items():
            if column in (*images, "label") and file and file.strip():
                channel = None if column == "label" else str(images.index(column))
                groups.add(case, str(PurePosixPath(file.strip())), channel)
    return groups


# From a folder to cases.


def find_cases(folder: Path, options: FolderOptions, names: Sequence[str] = ()) -> Found:
    """Find which files of a folder are the channels and the label of one case.

    Args:
        folder: the data set's folder.
        options: what the user says about it.
        names: names of the channels from `dataset.json`.

    Raises:
        UserError: the folder does not exist, cannot be read or has no complete case; the message says why.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = options.channels or names
    files = _all_files(folder)
    nifti = [file for file in files if file.endswith((".nii", ".nii.gz"))]
    if options.pairs is not None:
        given: dict[str, Groups | None] = {f"as listed in {options.pairs}": _by_table(options.pairs)}
    elif options.images or options.labels:
        given = {"as matched by --images and --labels": _by_pattern(nifti, options)}
    else:
        given = {}
    first: Found | None = None
    for description in given or LAYOUTS:
        groups = given[description] if given else LAYOUTS[description](nifti, options.channels)
        if groups is not None:
            found = _assembled(description, groups, names, chosen=bool(options.channels), files=nifti)
            if found.cases:
                return found
            first = first or found
    raise UserError(f"{folder}: {_why_nothing(folder, files, nifti, first)}")


def _all_files(folder: Path) -> list[str]:
    """Sorted paths of all files that are not hidden, relative to the folder; links are followed."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        # A folder named like an image is a bad image.
        names += [name for name in folders if name.endswith((".nii", ".nii.gz"))]
        folders[:] = [n for n in folders if not n.startswith(".") and n not in names] if real not in seen else []
        seen.add(real)
        relative = Path(place).relative_to(folder)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _assembled(description: str, groups: Groups, names: Sequence[str], *, chosen: bool, files: list[str]) -> Found:
    """The complete cases, and the reason for every other file in their folders.

    A channel is one that at least half of the labelled cases have, unless channels are named.
    """
    labelled = [case for case in groups.images if groups.labels.get(case)]
    counts = Counter(key for case in labelled for key in groups.images[case])
    keys = sorted((key for key, count in counts.items() if 2 * count >= len(labelled)), key=lambda key: (len(key), key))
    if groups.named:
        keys = list(names) if chosen else sorted(keys)
        if labelled and (unknown := [key for key in keys if not counts[key]]):
            found = ", ".join(sorted(counts))
            raise UserError(f"--channels: no image is named '{unknown[0]}'; the folder has {found}")
        names = keys
    elif names and (len(keys) > 1 or groups.numbered):
        keys = [str(index) for index in range(len(names))]
    left_out, cases = dict(groups.left_out), []
    for case in sorted({*groups.images, *groups.labels}):
        images, labels = groups.images.get(case, {}), groups.labels.get(case, [])
        chosen_files = [file for key in keys for file in images.get(key, [])]
        problem = _case_problem(case, images, labels, keys, names)
        if problem is None:
            cases.append(FoundCase(case, tuple(chosen_files), labels[0], groups.patients.get(case)))
        else:
            left_out |= dict.fromkeys([*(file for of_key in images.values() for file in of_key), *labels], problem)
        if labels:
            other = f"not one of the channels {', '.join(names if len(names) == len(keys) else keys)}"
            left_out |= {file: other for key, of_key in images.items() if key not in keys for file in of_key}
    used = {file for case in cases for file in (*case.images, case.label)}
    folders = {file.rpartition("/")[0] for file in used}
    for file in files:
        if file not in used and file.rpartition("/")[0] in folders:
            left_out.setdefault(file, "belongs to no case")
    return Found(description, cases, sorted(left_out.items()), tuple(names))


def _case_problem(
    case: str, images: dict[str, list[str]], labels: list[str], keys: Sequence[str], names: Sequence[str]
) -> str | None:
    if not labels:
        return "image without a label"
    if not images:
        return "label without an image"
    if len(labels) > 1:
        return f"duplicate: '{case}' has {len(labels)} labels"
    for index, key in enumerate(keys):
        name = f" ({names[index]})" if len(names) == len(keys) > 1 else ""
        if not images.get(key):
            return f"channel {index}{name} is missing"
        if len(images[key]) > 1:
            return f"duplicate: '{case}' has {len(images[key])} images{f' of channel {index}{name}' if name else ''}"
    for file in (*(images[key][0] for key in keys), labels[0]):
        if problem := path_problem(file):
            return problem
        if not file.endswith((".nii", ".nii.gz")):
            return f"'{file}' is not a NIfTI file (.nii or .nii.gz)"
    return None


_DICOM = 'sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames("FOLDER"))'
#: Endings of images that are not read, and how SimpleITK reads them.
_OTHER_FORMATS = dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".png", ".tif", ".tiff", ".jpg")) | {
    ".dcm": _DICOM,
    ".nii.zip": "",
}


def _why_nothing(folder: Path, files: list[str], nifti: list[str], found: Found | None) -> str:
    """Why a folder has no complete case, in one line."""
    hint = _other_format(folder, files)
    if not files:
        return "holds no files"
    if not nifti:
        return f"no NIfTI file (.nii or .nii.gz), but {hint or _such(files, 'other')}"
    choices = f"pass --images and --labels, or --pairs{f' ({hint})' if hint else ''}"
    if found is None:
        return f"{_such(nifti, 'NIfTI file')}, in no known layout: {choices}"
    by_reason: dict[str, list[str]] = defaultdict(list)
    for file, reason in found.left_out:
        by_reason[reason].append(file)
    images, labels = by_reason.pop("image without a label", []), by_reason.pop("label without an image", [])
    if by_reason:
        reason, of_reason = next(iter(by_reason.items()))
        named = ", ".join(shown(file) for file in of_reason[:4])
        return f"no case can be used; the first: {reason.removeprefix('duplicate: ')}: {named}"
    if images and labels:
        example = f"{shown(images[0])} and {shown(labels[0])}"
        return f"names that do not match: no image has a label's name, for example {example}: {choices}"
    if labels:
        return f"labels but no images: {_such(labels, 'label')}: {choices}"
    return (
        f"images but no labels: {_such(images, 'image')}; expected labelsTr next to imagesTr, labels next to images, "
        f"or a_label.nii.gz next to a_image.nii.gz: {choices}"
    )


def _such(files: list[str], noun: str) -> str:
    return f"{counted(len(files), noun)}, such as {shown(files[0])}"


def _other_format(folder: Path, files: list[str]) -> str:
    """A hint on images of other formats; empty if there are none."""
    endings = Counter(
        ending for file in files for ending in _OTHER_FORMATS if file.lower().endswith(ending)
    ) or Counter(".dcm" for file in files if "." not in file.rpartition("/")[2] and _is_dicom(folder / file))
    if not endings:
        return ""
    ending, count = endings.most_common(1)[0]
    reader = _OTHER_FORMATS[ending]
    if reader == "":
        return f"{counted(count, f'{ending} file')}: only NIfTI is read; unpack them"
    what = "DICOM" if ending == ".dcm" else ending
    reader = reader or f'sitk.ReadImage("a{ending}")'
    given = counted(count, f"{what} file")
    return f'{given}: only NIfTI is read; SimpleITK converts: sitk.WriteImage({reader}, "a.nii.gz")'


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
