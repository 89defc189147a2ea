"""The manifest of a data set: its files, its classes, and which patients train and validate together."""

import difflib
import hashlib
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.data.label_scheme import LabelScheme, scheme_problems
from pipelines.data.layouts import path_problem
from pipelines.utils import UserError
from pipelines.utils.files import manifest_path
from pipelines.utils.security import parse_yaml, refuse_code

# Rules between a manifest's fields, checked even if single fields are invalid.


def manifest_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """One line per broken rule between fields; pydantic reports invalid single fields.

    Args:
        content: a manifest's fields; values of wrong types are ignored.
    """
    yield from _axes(content)
    classes = content.get("classes")
    if isinstance(classes, dict):
        yield from _classes(classes, generated=content.get("generator") is not None)
    if not content.get("cases") and content.get("generator") is None:
        yield "cases: none listed"
    entries = content.get("cases")
    cases = [case for case in entries if isinstance(case, dict)] if isinstance(entries, list) else []
    yield from _duplicates("cases: id", [case["id"] for case in cases if isinstance(case.get("id"), str)])
    files = [str(PurePosixPath(file)) for case in cases for file in _files(case)]
    yield from _duplicates("cases: file", files)
    entries = content.get("excluded")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("file") in files:
            yield f"excluded: '{entry['file']}' is also a case's file"
    yield from _folds(cases)
    yield from scheme_problems(content)
    yield from _connectivity(content)
    yield from _channels(content.get("channels"), cases)
    if isinstance(classes, dict):
        yield from _labelled(cases, list(classes.values()))


def _files(case: Mapping[str, Any]) -> list[str]:
    image = case.get("image")
    entries = [*(image if isinstance(image, list | tuple) else [image]), case.get("label")]
    return [file for file in entries if isinstance(file, str)]


def _connectivity(content: Mapping[str, Any]) -> Iterator[str]:
    lesions, dimensions = content.get("lesions"), content.get("dimensions")
    given = lesions.get("connectivity") if isinstance(lesions, dict) else None
    known = {2: (4, 8), 3: (6, 18, 26)}.get(dimensions if isinstance(dimensions, int) else 0, ())
    if known and isinstance(given, int) and given not in known:
        yield f"lesions.connectivity: got {given}; expected one of {', '.join(map(str, known))} in {dimensions}D"


def _axes(content: Mapping[str, Any]) -> Iterator[str]:
    dimensions, spacing, generator = (content.get(name) for name in ("dimensions", "spacing", "generator"))
    if dimensions not in (2, 3):
        return
    if isinstance(spacing, list | tuple) and len(spacing) != dimensions:
        yield f"spacing: {len(spacing)} numbers for {dimensions} dimensions"
    shape = generator.get("shape") if isinstance(generator, dict) else None
    if isinstance(shape, list | tuple) and len(shape) != dimensions:
        yield f"generator.shape: {len(shape)} axes for {dimensions} dimensions"


def _classes(classes: Mapping[Any, Any], generated: bool) -> Iterator[str]:
    if 0 not in classes:
        yield "classes: class 0 is missing; expected 0: background"
    if len(classes) < 2:
        yield "classes: no foreground class"
    if generated and len(classes) != 4:
        yield f"classes: {len(classes)} for a phantom; expected 4, background included"
    yield from _duplicates("classes: name", [name for name in classes.values() if isinstance(name, str)])


def _folds(cases: list[dict[str, Any]]) -> Iterator[str]:
    folds_of: dict[str, set[int]] = {}
    for case in cases:
        if isinstance(case.get("patient"), str) and isinstance(case.get("fold"), int):
            folds_of.setdefault(case["patient"], set()).add(case["fold"])
    for patient, folds in folds_of.items():
        if len(folds) > 1:
            yield f"cases: patient '{patient}' is in folds {sorted(folds)}: in both training and validation"
    used = set().union(*folds_of.values())
    if len(used) == 1:
        yield f"cases: all are in fold {used.pop()}, so none are left for training"
    elif used and used != set(range(len(used))):
        yield f"cases: the folds are {sorted(used)}; expected 0, 1, 2, ... without gaps"


def _channels(channels: Any, cases: list[dict[str, Any]]) -> Iterator[str]:
    if not isinstance(channels, list | tuple):
        return
    named = [channel["name"] for channel in channels if isinstance(channel, dict) and "name" in channel]
    yield from _duplicates("channels: name", [name for name in named if isinstance(name, str)])
    count = max(1, len(channels))
    for case in cases:
        image, digests = case.get("image"), case.get("image_sha256")
        files = len(image) if isinstance(image, list | tuple) else 1
        if files not in (1, count):
            yield f"cases: '{case.get('id')}' has {files} images for {count} channels; expected one per channel"
        elif digests is not None and (len(digests) if isinstance(digests, list | tuple) else 1) != files:
            yield f"cases: '{case.get('id')}': image_sha256: expected one per image"


def _labelled(cases: list[dict[str, Any]], classes: list[Any]) -> Iterator[str]:
    for case in cases:
        labelled = case.get("labelled")
        if not isinstance(labelled, list | tuple):
            continue
        if not labelled:
            yield f"cases: '{case.get('id')}' labels nothing; leave it out, or 'labelled' if it labels everything"
        for name in labelled:
            if name not in classes[1:]:
                near = difflib.get_close_matches(str(name), [str(one) for one in classes[1:]], n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                yield f"cases: '{case.get('id')}': labelled: no foreground class {_short.repr(name)}{hint}"


def _duplicates(what: str, values: list[str]) -> list[str]:
    return [f"{what} '{value}' appears {count} times" for value, count in Counter(values).items() if count > 1]


# The model of a manifest.


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has unprintable characters")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LabelValue = Annotated[int, Field(ge=0, strict=True)]
#: Names that also appear in file names and in tables.
Name = Annotated[str, Field(pattern=r"^\w[\w.\-]*$")]
Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]

#: Shortens long or nested values in messages: a small YAML file can expand to a huge value.
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring = 2, 3, 3, 80

#: Placeholder of a text that a manifest's author has to fill in.
UNKNOWN = "unknown; to be filled in"


class ManifestError(UserError):
    """A manifest that breaks rules: `offences` has a line per broken rule, and the message has all lines."""

    def __init__(self, path: Path, offences: list[str]) -> None:
        self.path = path
        self.offences = offences
        count = "1 error" if len(offences) == 1 else f"{len(offences)} errors"
        super().__init__(f"{path}: {count}\n" + "\n".join(f"  {line}" for line in offences))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Case(_Strict):
    """One image with its label; paths are relative to the data root.

    Attributes:
        id: unique name.
        patient: whose image it is; all cases of a patient are in the same fold.
        fold: the fold in which it is validated.
        image: a file with all channels (3D or 2D for one channel, 4D with channels last for several), or one file per
            channel in the order of the manifest's `channels`.
        label: the label map.
        image_sha256: checksum of the image, or one per file; optional.
        label_sha256: checksum of the label map; optional.
        labelled: names of the foreground classes that were annotated; None if all were.
    """

    id: Name
    patient: Text
    fold: int = Field(ge=0, strict=True)
    image: str | tuple[str, ...]
    label: str
    image_sha256: Sha256 | tuple[Sha256, ...] | None = None
    label_sha256: Sha256 | None = None
    labelled: tuple[str, ...] | None = None

    @field_validator("image", "label")
    @classmethod
    def _is_nifti_inside_the_root(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        paths = (given,) if isinstance(given, str) else given
        if not paths:
            raise ValueError("expected a file, or one per channel")
        for path in paths:
            problem = path_problem(path)
            if problem is None and not path.endswith((".nii", ".nii.gz")):
                problem = f"'{path}' is not a NIfTI file (.nii or .nii.gz)"
            if problem is not None:
                raise ValueError(problem)
        return given if isinstance(given, str) or len(given) > 1 else given[0]

    @property
    def images(self) -> tuple[str, ...]:
        """The image's files: one with all channels, or one per channel."""
        return (self.image,) if isinstance(self.image, str) else self.image

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the case, its label last."""
        return (*self.images, self.label)

    @property
    def checksums(self) -> dict[str, str]:
        """File to SHA-256, for the files whose checksums are known."""
        digests = (self.image_sha256,) if isinstance(self.image_sha256, str) else self.image_sha256 or ()
        known = dict(zip(self.images, digests, strict=False))
        return known if self.label_sha256 is None else known | {self.label: self.label_sha256}


class Channel(_Strict):
    """A channel of the images.

    Attributes:
        name: such as `T1` or `PET`.
        modality: such as `MR`, `CT` or `PET`; default: its name.
        intensity: `clip` (by percentiles of the foreground over the training cases, then scaled by their statistics) or
            `zscore` (each image to mean 0 and standard deviation 1); default: `clip` for CT, `zscore` for all others,
            PET included, as in nnU-Net.
    """

    name: Text
    modality: Text | None = None
    intensity: Literal["clip", "zscore"] | None = None

    @property
    def quantitative(self) -> bool:
        """Whether its intensities are clipped and scaled alike in all images."""
        if self.intensity is not None:
            return self.intensity == "clip"
        return (self.modality or self.name).upper() == "CT"


class Lesions(_Strict):
    """What a lesion is, for lesion-wise metrics.

    Attributes:
        connectivity: number of neighbours of a voxel in a lesion: 6, 18 or 26 in 3D, 4 or 8 in 2D; default: all.
        overlap: a predicted and a reference lesion can match if their IoU is above this.
    """

    connectivity: Literal[4, 6, 8, 18, 26] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)


class Excluded(_Strict):
    """A file of the folder, or a pattern such as `*_flair.nii.gz`, that is excluded on purpose."""

    file: Text
    reason: Text


class Generator(_Strict):
    """A data set that is generated on first use."""

    name: Literal["phantom", "phantom_regions"]
    cases: int = Field(default=40, ge=2, le=10_000)
    folds: int = Field(default=5, ge=2)
    shape: tuple[int, ...]
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds > self.cases:
            raise ValueError(f"{self.folds} folds of {self.cases} cases")
        if len(self.shape) not in (2, 3) or min(self.shape) < 12:
            raise ValueError(f"shape {self.shape}; expected 2 or 3 axes of 12 voxels or more")
        if math.prod(self.shape) * self.cases > 2_000_000_000:
            raise ValueError(f"{self.cases} cases of shape {self.shape}; expected at most 2e9 voxels in total")
        return self

    def generated_cases(self) -> list[Case]:
        """The cases that are generated."""
        cases = []
        for index in range(self.cases):
            name = f"{self.name}_{index:03d}"
            ends = ("_0000", "_0001") if self.name == "phantom_regions" else ("",)
            images = [f"images/{name}{end}.nii.gz" for end in ends]
            cases.append(
                Case(id=name, patient=name, fold=index % self.folds, image=images, label=f"labels/{name}.nii.gz")  # type: ignore[arg-type]  # one is a text
            )
        return cases


class Manifest(_Strict):
    """A data set.

    Attributes:
        name: the name in commands and in MLflow.
        description: one or two sentences.
        task: what is segmented.
        license: SPDX identifier, or a sentence.
        citation: what to cite.
        source: where the data are available.
        modality: `MR`, `CT`, ...; default: the modalities of `channels`.
        channels: of the images, in their order; empty for one channel of the `modality`.
        dimensions: 2 or 3.
        spacing: expected voxel spacing, mm, along the axes of the closest canonical orientation (left to right,
            posterior to anterior, inferior to superior). The order of a file's axes is accepted, too.
        spacing_tolerance: accepted relative deviation of a file's spacing.
        classes: label value to name; 0 is background; the values need not be consecutive.
        regions: region to its label values, if overlapping regions rather than classes are segmented.
        region_order: the label value that each region's voxels get in predicted label maps, as in nnU-Net's
            `regions_class_order`: later regions overwrite earlier ones.
        ignore: label value of voxels that count neither in training nor in metrics.
        folder: the data set's folder below the data root, if it has one.
        generator: how the data are generated; the cases are then the generator's.
        cases: the images with their labels.
        excluded: files of the folder that are excluded on purpose, with the reason.
        metrics: names of metrics that are computed in addition to the default ones (`docs/metrics.md` has all).
        primary_metric: the metric that a comparison decides by unless its options name another; default: Dice.
        nsd_tolerance: distance between surfaces up to which there is no error for the NSD, mm; default: 1 mm or the
            largest of `spacing`, whichever is more.
        lesions: what a lesion is, for lesion-wise metrics.
    """

    name: Name
    description: str
    task: str
    license: str
    citation: str
    source: str
    modality: str
    channels: tuple[Channel, ...] = ()
    dimensions: Literal[2, 3]
    spacing: tuple[Millimetres, ...]
    spacing_tolerance: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    classes: dict[LabelValue, Text]
    regions: dict[Text, tuple[LabelValue, ...]] = Field(default_factory=dict)
    region_order: tuple[LabelValue, ...] = ()
    ignore: LabelValue | None = None
    folder: str | None = None
    generator: Generator | None = None
    cases: list[Case] = Field(default_factory=list)
    excluded: list[Excluded] = Field(default_factory=list)
    metrics: tuple[Name, ...] = ()
    primary_metric: Name | None = None
    nsd_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] | None = None
    lesions: Lesions = Lesions()

    @field_validator("folder")
    @classmethod
    def _is_inside_the_root(cls, folder: str | None) -> str | None:
        problem = None if folder is None else path_problem(folder)
        if problem is not None:
            raise ValueError(problem)
        return folder

    @model_validator(mode="before")
    @classmethod
    def _modality_of_the_channels(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("modality") or not isinstance(data.get("channels"), list):
            return data
        named = [
            channel.get("modality") or channel.get("name") for channel in data["channels"] if isinstance(channel, dict)
        ]
        return {**data, "modality": " + ".join(dict.fromkeys(map(str, named)))} if named else data

    @model_validator(mode="before")
    @classmethod
    def _cases_of_the_generator(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("generator") and not data.get("cases"):
            try:
                generator = Generator.model_validate(data["generator"])
            except ValidationError:
                return data  # reported once, as an error of the generator
            return {**data, "cases": generator.generated_cases()}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = list(manifest_problems(self.model_dump()))
        if self.generator is not None and self.cases != self.generator.generated_cases():
            problems.append("cases: the generator creates the cases; expected none to be listed")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def scheme(self) -> LabelScheme:
        """Classes, regions and ignored label, and a network's channels for them."""
        return LabelScheme(
            classes=self.classes, regions=self.regions, region_order=self.region_order, ignore=self.ignore
        )

    @property
    def image_channels(self) -> tuple[Channel, ...]:
        """The channels of every image, one or more."""
        return self.channels or (Channel(name=self.modality, modality=self.modality),)

    @property
    def label_values(self) -> list[int]:
        """The label values in ascending order, without the ignored one."""
        return sorted(self.classes)

    def folds(self) -> list[int]:
        """The fold numbers in ascending order."""
        return sorted({case.fold for case in self.cases})

    def split(self, fold: int) -> tuple[list[Case], list[Case]]:
        """The training cases and the validation cases when `fold` is held out.

        Raises:
            UserError: there is no such fold.
        """
        if fold not in self.folds():
            folds = ", ".join(str(f) for f in self.folds())
            raise UserError(f"fold: got {fold}; '{self.name}' has folds {folds}")
        return [c for c in self.cases if c.fold != fold], [c for c in self.cases if c.fold == fold]

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's content, independent of its text layout."""
        content = self.model_dump(mode="json")
        # Fields that older versions did not have are left out if unused, so that plans of that time keep their digest.
        for name in ("channels", "regions", "region_order", "ignore"):
            if not content[name] and content[name] != 0:
                del content[name]
        # Nor do these, if they are at their defaults.
        for name in ("metrics", "primary_metric", "nsd_tolerance", "lesions"):
            if getattr(self, name) == Manifest.model_fields[name].default:
                del content[name]
        for case in content["cases"]:
            if case["labelled"] is None:
                del case["labelled"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest, by path or by the name of a shipped one.

    Raises:
        UserError: it does not exist, is not valid YAML, or is made huge by aliases.
        ManifestError: it breaks rules; lists all of them.
    """
    path = manifest_path(name_or_path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    refuse_code(content, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a manifest: expected a mapping with name, classes, cases and other fields")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ManifestError(path, _offences(error, content)) from None


def _offences(error: ValidationError, content: dict[str, Any]) -> list[str]:
    lines = [_field_line(offence, content) for offence in error.errors() if offence["loc"]]
    fields = [line for line in lines if line]
    if fields:
        # Pydantic checks rules between fields only once all fields are valid, so they are checked here.
        return [*fields, *manifest_problems(content)]
    return [line for offence in error.errors() for line in str(offence["ctx"]["error"]).splitlines()]


def _field_line(offence: Any, content: dict[str, Any]) -> str:
    """`cases[3] (case_07).fold: should be an integer; got 1.5`; empty for the form of a value that was not meant."""
    where = ""
    at: Any = content
    for part in offence["loc"]:
        # Pydantic adds parts that are not in the content: `[key]`, and of a field with two forms the one that it tried.
        form = re.fullmatch(r"\[key\]|(tuple)\[.*\]|(constrained-)?str", str(part))
        if form and not (isinstance(at, dict) and part in at):
            if part != "[key]" and (form[1] is not None) != isinstance(at, list):
                return ""
            continue
        known = isinstance(at, dict) or (isinstance(at, list) and isinstance(part, int))
        at = (at.get(part) if isinstance(at, dict) else at[part]) if known else None
        where += f"[{part}]" if isinstance(part, int) else f".{_key(part)}" if where else _key(part)
        if isinstance(part, int) and isinstance(at, dict) and isinstance(at.get("id"), str):
            where += f" ({_key(at['id'])})"
    if offence["type"] == "missing":
        return f"{where}: missing"
    if offence["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(offence["loc"][-1]), _fields(offence["loc"]), n=1)
        return f"{where}: unknown field" + (f"; did you mean '{near[0]}'?" if near else "")
    if offence["type"] == "value_error":
        return f"{where}: {offence['ctx']['error']}"
    message = offence["msg"]
    for kind in ("Input", "String", "List", "Tuple", "Value", "Dictionary"):
        message = message.removeprefix(f"{kind} ")
    message = re.sub(r" or instance of \w+$", "", message)
    return f"{where}: {message}; got {_short.repr(offence['input'])}"


def _key(part: Any) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= 60 else _short.repr(part)


def _fields(location: tuple[int | str, ...]) -> list[str]:
    models: dict[Any, type[BaseModel]] = {
        "cases": Case, "channels": Channel, "excluded": Excluded, "generator": Generator, "lesions": Lesions
    }  # fmt: skip
    return list((models.get(location[0], Manifest) if len(location) > 1 else Manifest).model_fields)
