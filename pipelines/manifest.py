"""The manifest of a data set: what it is, which files it has, and which patients train and validate together."""

import hashlib
import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.errors import UserError
from pipelines.resources import manifest_path

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Case(_Strict):
    """One image with its label; paths are relative to the data root."""

    id: str = Field(pattern=r"^[\w.\-]+$")
    patient: str = Field(min_length=1)
    fold: int = Field(ge=0)
    image: str
    label: str
    image_sha256: Sha256 | None = None
    label_sha256: Sha256 | None = None

    @field_validator("image", "label")
    @classmethod
    def _stays_in_the_root(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path:
            raise ValueError(f"'{path}' is no path inside the data root")
        if not path.endswith((".nii", ".nii.gz")):
            raise ValueError(f"'{path}' is no NIfTI file (.nii or .nii.gz)")
        return path


class Excluded(_Strict):
    """A file of the folder that is left out on purpose."""

    file: str
    reason: str = Field(min_length=1)


class Generator(_Strict):
    """A data set that the project makes itself, on first use."""

    name: Literal["phantom"]
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
        return self

    def made_cases(self) -> list[Case]:
        """The cases that it makes."""
        return [
            Case(
                id=f"{self.name}_{index:03d}",
                patient=f"{self.name}_{index:03d}",
                fold=index % self.folds,
                image=f"images/{self.name}_{index:03d}.nii.gz",
                label=f"labels/{self.name}_{index:03d}.nii.gz",
            )
            for index in range(self.cases)
        ]


class Manifest(_Strict):
    """A data set.

    Attributes:
        name: as commands and MLflow call it.
        description: one or two sentences.
        task: what is segmented.
        license: SPDX name, or a sentence.
        citation: whom to cite.
        source: where the data can be had.
        modality: `MR`, `CT`, ...
        dimensions: 2 or 3.
        spacing: expected voxel spacing, mm, in the order of the array's axes as nibabel gives them.
        spacing_tolerance: how far a file's spacing may be off, as a share of the expected.
        classes: label value to name; 0 is background; the values need not be consecutive.
        folder: the data set's own folder below the data root, if it has one.
        generator: how the project makes the data; the cases are then its own.
        cases: the images with their labels.
        excluded: files of the folder that are left out on purpose, with the reason.
    """

    name: str = Field(pattern=r"^[\w.\-]+$")
    description: str
    task: str
    license: str
    citation: str
    source: str
    modality: str
    dimensions: Literal[2, 3]
    spacing: tuple[Millimetres, ...]
    spacing_tolerance: float = Field(default=0.05, ge=0)
    classes: dict[int, str]
    folder: str | None = None
    generator: Generator | None = None
    cases: list[Case] = Field(default_factory=list)
    excluded: list[Excluded] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _cases_of_the_generator(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("generator") and not data.get("cases"):
            try:
                generator = Generator.model_validate(data["generator"])
            except ValidationError:
                return data  # told once, as the generator's own offence
            return {**data, "cases": generator.made_cases()}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Any:
        if len(self.spacing) != self.dimensions:
            yield f"spacing: {len(self.spacing)} numbers for {self.dimensions} dimensions"
        if self.generator is not None and len(self.generator.shape) != self.dimensions:
            yield f"generator.shape: {len(self.generator.shape)} axes for {self.dimensions} dimensions"
        if self.classes.get(0) is None:
            yield "classes: there is no class 0; expected 0: background"
        if min(self.classes, default=0) < 0:
            yield f"classes: label {min(self.classes)} is negative"
        if len(self.classes) < 2:
            yield "classes: there is no foreground class"
        if len(set(self.classes.values())) < len(self.classes):
            yield f"classes: a name stands twice in {list(self.classes.values())}"
        if not self.cases:
            yield "cases: there are none"
        yield from _doubled("cases: id", [case.id for case in self.cases])
        yield from _doubled("cases: file", [path for case in self.cases for path in (case.image, case.label)])
        listed = {path for case in self.cases for path in (case.image, case.label)}
        for entry in self.excluded:
            if entry.file in listed:
                yield f"excluded: '{entry.file}' is a case's file, too"
        folds_of: dict[str, set[int]] = {}
        for case in self.cases:
            folds_of.setdefault(case.patient, set()).add(case.fold)
            if self.generator is None and (case.image_sha256 is None or case.label_sha256 is None):
                yield f"cases: '{case.id}' has no image_sha256 or label_sha256"
        for patient, folds in folds_of.items():
            if len(folds) > 1:
                yield f"cases: patient '{patient}' is in folds {sorted(folds)}: in training and in validation"
        if len(self.cases) > 1 and len({case.fold for case in self.cases}) == 1:
            yield "cases: all are in one fold, so none would be left to train with"

    @property
    def foreground(self) -> list[str]:
        """The foreground classes' names, in the order of their labels."""
        return [self.classes[value] for value in self.label_values if value != 0]

    @property
    def label_values(self) -> list[int]:
        """The labels' values, rising; a network's channel c is the c-th of them."""
        return sorted(self.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)

    def folds(self) -> list[int]:
        """The folds' numbers, rising."""
        return sorted({case.fold for case in self.cases})

    def split(self, fold: int) -> tuple[list[Case], list[Case]]:
        """The cases that train and those that validate when `fold` is held out.

        Raises:
            UserError: there is no such fold.
        """
        if fold not in self.folds():
            folds = ", ".join(str(f) for f in self.folds())
            raise UserError(f"fold: got {fold}; '{self.name}' has folds {folds}")
        return [c for c in self.cases if c.fold != fold], [c for c in self.cases if c.fold == fold]

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's content, whatever its layout as text."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest, by path or by the name of a shipped one.

    Raises:
        UserError: there is none, it is no YAML, or it breaks rules: all offences are listed.
    """
    path = manifest_path(name_or_path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no manifest: expected a mapping with name, classes, cases and so on")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        offences = [line for offence in error.errors() for line in _offence_lines(offence)]
        raise UserError(f"{path}: {len(offences)} offences\n" + "\n".join(f"  {line}" for line in offences)) from None


def _offence_lines(offence: Any) -> list[str]:
    where = ".".join(str(part) for part in offence["loc"])
    lines = offence["msg"].removeprefix("Value error, ").split("\n")
    return [f"{where}: {line}" if where else line for line in lines]


def _doubled(what: str, values: list[str]) -> list[str]:
    return [f"{what} '{value}' stands {count} times" for value, count in Counter(values).items() if count > 1]
