"""Cases as a network reads them: decoded and normalised once, whole; kept in a cache that processes share."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import affine_to_spacing
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    ScaleIntensityRangePercentilesd,
)

from pipelines.errors import UserError
from pipelines.files import sha256, write_atomically
from pipelines.manifest import Case, Manifest

#: Changes when the transforms below do: cached volumes of another version are not read.
_CACHE_VERSION = "2"
_CHECK = "`medloss check` names every bad file"


def _reader(manifest: Manifest) -> Compose:
    both = ["image", "label"]
    intensity: list[Any] = [NormalizeIntensityd("image")]
    if manifest.modality.upper() == "CT":
        # Metal and air would set the scale of a CT otherwise.
        intensity.insert(0, ScaleIntensityRangePercentilesd("image", 0.5, 99.5, b_min=0.0, b_max=1.0, clip=True))
    return Compose(
        [
            LoadImaged(both, reader="NibabelReader", ensure_channel_first=False),
            EnsureChannelFirstd(both, channel_dim="no_channel"),
            # Labels, too: whole numbers would hide a 1.7.
            EnsureTyped(both, dtype=torch.float32),
            *intensity,
        ]
    )


def decode_cases(
    manifest: Manifest, cases: Sequence[Case], root: Path, cache_dir: Path | None = None
) -> list[dict[str, Any]]:
    """Read, map and normalise cases, whole: `case`, `image` and `label` `[1, *spatial]`, `spacing` (mm).

    Args:
        manifest: whose labels and modality hold.
        cases: which to read.
        root: the data root.
        cache_dir: where decoded cases are kept, by the files' content, for other runs and processes.

    Raises:
        UserError: a case that cannot be read or trained with.
    """
    reader = _reader(manifest)
    if cache_dir is None:
        return [_decode(manifest, case, root, reader) for case in cases]
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache: cannot make {cache_dir}: {error.strerror}") from None
    recipe = [_CACHE_VERSION, str(manifest.label_values), manifest.modality, str(manifest.dimensions)]
    decoded = []
    for case in cases:
        parts = [*recipe, case.id, *(_content(case, root / path) for path in (case.image, case.label))]
        entry = cache_dir / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.pt"
        item = _read_entry(entry)
        if item is None:
            item = _decode(manifest, case, root, reader)
            _write_entry(entry, item)
        decoded.append(item)
    return decoded


def _decode(manifest: Manifest, case: Case, root: Path, reader: Compose) -> dict[str, Any]:
    for path in (case.image, case.label):
        if not (root / path).is_file() or not (root / path).stat().st_size:
            raise UserError(f"case '{case.id}': {root / path} is missing or empty; {_CHECK}")
    try:
        data = reader({"image": str(root / case.image), "label": str(root / case.label)})
    except RuntimeError as error:
        # MONAI's own message names its transform; what it met is the cause.
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"case '{case.id}': {case.image} or {case.label} cannot be read: {cause}; {_CHECK}") from None
    image, label = data["image"].as_tensor().contiguous(), data["label"].as_tensor()
    if image.shape != label.shape or label.ndim != manifest.dimensions + 1:
        shapes = f"an image of shape {tuple(image.shape[1:])} and a label of {tuple(label.shape[1:])}"
        raise UserError(f"case '{case.id}': {shapes}; expected the same {manifest.dimensions} axes; {_CHECK}")
    if not image.isfinite().all():
        raise UserError(f"case '{case.id}': {case.image} holds NaN or infinite values; {_CHECK}")
    classes = torch.full(label.shape, 255, dtype=torch.uint8)
    for index, value in enumerate(manifest.label_values):
        classes[label == value] = index
    if (classes == 255).any():
        value = label[classes == 255][0].item()
        named = ", ".join(map(str, manifest.label_values))
        raise UserError(f"case '{case.id}': {case.label} holds {value:g}; the manifest names {named}; {_CHECK}")
    spacing = affine_to_spacing(data["label"].affine)[: manifest.dimensions]
    return {
        "case": case.id,
        "image": image,
        "label": classes,
        "spacing": torch.as_tensor(spacing, dtype=torch.float64),
    }


def _content(case: Case, path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"case '{case.id}': {path} cannot be read: {error.strerror}; {_CHECK}") from None


def _read_entry(entry: Path) -> dict[str, Any] | None:
    """A decoded case from the cache; None where there is none, or a damaged one.

    Each entry begins with its own SHA-256: torch reads one with flipped bits without an error.
    """
    try:
        content = entry.read_bytes()
    except FileNotFoundError:
        return None
    body = content[32:]
    if hashlib.sha256(body).digest() != content[:32]:
        warnings.warn(f"damaged cache entry {entry} is decoded anew", stacklevel=3)
        return None
    item: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    return item


def _write_entry(entry: Path, item: dict[str, Any]) -> None:
    body = io.BytesIO()
    torch.save(item, body)
    content = hashlib.sha256(body.getvalue()).digest() + body.getvalue()
    try:
        write_atomically(entry, lambda file: file.write(content))
    except OSError as error:
        # A full disk costs time, not the run.
        warnings.warn(f"cache entry {entry} cannot be written: {error.strerror}", stacklevel=3)
