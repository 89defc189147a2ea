"""The prepared cases of a run, in memory and in a cache on disk, and the fingerprint of their data set."""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.label_scheme import IGNORED
from pipelines.data.manifest import Case, Manifest
from pipelines.preprocessing import Clip
from pipelines.preprocessing.label_maps import label_maps
from pipelines.preprocessing.resampling import CHECK, Preprocessing, prepared, read_case
from pipelines.utils import UserError
from pipelines.utils.files import sha256, write_atomically

# Cache on disk.


class EntryCache:
    """Computed values by key, one file each, which processes can share, in a folder that is created if needed.

    Each entry begins with its SHA-256, since torch reads flipped bits without an error; a damaged entry is computed
    again. Entries hold tensors and plain values only, so loading one cannot run code.

    Raises:
        UserError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache: cannot create {folder}: {error.strerror}") from None

    def get(self, key: list[str], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value of a key, which is everything that it depends on: read from the cache, or computed and stored."""
        entry = self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.pt"
        content = entry.read_bytes() if entry.exists() else None
        if content is not None:
            body = memoryview(content)[32:]
            if hashlib.sha256(body).digest() != content[:32]:
                warnings.warn(f"damaged cache entry {entry} is computed again", stacklevel=3)
            else:
                kept: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
                return kept
        value = compute()
        file = io.BytesIO()
        torch.save(value, file)
        try:
            write_atomically(entry, lambda out: out.write(hashlib.sha256(file.getbuffer()).digest() + file.getvalue()))
        except OSError as error:
            # A full disk costs time, not the run.
            warnings.warn(f"cache entry {entry} cannot be written: {error.strerror}", stacklevel=3)
        return value


# Prepared cases.

#: Changed together with `resampling.py`: cached cases of other versions are not read.
_CACHE_VERSION = "5"
#: Changed together with the maps of `label_maps.py`.
_MAPS_VERSION = "maps 1"


class CaseStore(Sequence[dict[str, Any]]):
    """Prepared cases (see `resampling.prepared`) by number, decoded on first access.

    As many cases as fit into `memory_mb` stay in memory, in order of first access; the others are read from the cache
    each time, or decoded again without a cache. Cases in memory are never evicted: with random orders of access, a
    fixed set gives more hits than the most recent cases.

    Args:
        manifest: the data set, whose label values are used.
        cases: the cases.
        root: the data root.
        preprocessing: preprocessing of image and label; None: intensities only.
        cache: cache of prepared cases by file content, shared with other runs and processes.
        memory_mb: MB of memory for prepared cases.
        keys: case to its `content_key`, if known already, since computing it reads every file.
        maps: maps of the label that each case gets, see `label_maps.MAPS`. They have cache entries of their own, so
            that losses without them share the others.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(
        self,
        manifest: Manifest,
        cases: Sequence[Case],
        root: Path,
        preprocessing: Preprocessing | None = None,
        cache: EntryCache | None = None,
        memory_mb: float = 2048,
        keys: dict[str, list[str]] | None = None,
        maps: Sequence[str] = (),
    ) -> None:
        self.maps = tuple(maps)
        self.manifest, self.cases, self.root, self.cache, self.memory_mb = manifest, list(cases), root, cache, memory_mb
        self.preprocessing = preprocessing or Preprocessing(dimensions=manifest.dimensions)
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0
        self._keys: list[list[str]] = []
        if cache is not None:
            recipe = [_CACHE_VERSION, *_data_key(manifest), self.preprocessing.model_dump_json()]
            self._keys = [[*recipe, *((keys or {}).get(case.id) or content_key(case, root))] for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:  # a number, not a slice
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]

        def compute() -> dict[str, Any]:
            read = read_case(self.manifest, self.cases[index], self.root, self.preprocessing)
            return prepared(read, self.preprocessing, self.manifest.scheme)

        item = compute() if self.cache is None else self.cache.get(self._keys[index], compute)
        if self.maps:

            def compute_maps() -> dict[str, Any]:
                return label_maps(self.maps, item["label"], item["spacing"].tolist(), self.manifest.scheme)

            key = [] if self.cache is None else [_MAPS_VERSION, *self.maps, *self._keys[index]]
            item = item | (compute_maps() if self.cache is None else self.cache.get(key, compute_maps))
        size = _bytes(item)
        if self._kept_bytes + size <= self.memory_mb * 2**20:
            self._kept[index] = item
            self._kept_bytes += size
        return item

    def prepare(self) -> "CaseStore":
        """Access all cases once: afterwards each is in memory or in the cache, and known to be readable."""
        for index in range(len(self)):
            self[index]
        return self


def content_key(case: Case, root: Path) -> list[str]:
    """What a cached value of a case depends on: the case's name and its files' content."""
    key = [case.id, *([] if case.labelled is None else [str(sorted(case.labelled))])]
    for path in (root / file for file in case.files):
        try:
            key.append(sha256(path))
        except OSError as error:
            raise UserError(f"case '{case.id}': {path} cannot be read: {error.strerror}; {CHECK}") from None
    return key


def _data_key(manifest: Manifest) -> list[str]:
    """What cached values depend on besides a case's files and its preprocessing."""
    return [manifest.scheme.model_dump_json(), str(len(manifest.image_channels))]


def _bytes(item: dict[str, Any]) -> int:
    parts = [part for value in item.values() for part in (value if isinstance(value, list) else [value])]
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


# Fingerprints.

_VERSION = "facts 3"
#: Number of foreground intensities sampled per case, evenly spaced: enough with hundreds of cases.
_MAX_INTENSITIES = 5_000
#: An axis is anisotropic if its spacing exceeds the coarsest of the others by this factor, as in nnU-Net.
ANISOTROPIC = 3.0


@dataclass(frozen=True)
class Fingerprint:
    """Properties of the training cases, from which a run is configured; validation cases are not used.

    Attributes:
        shapes: voxels per axis, one entry per case.
        spacings: mm per axis, one entry per case.
        intensities: evenly spaced samples of the foreground's intensities over all cases, `[K, samples]`.
    """

    shapes: list[tuple[int, ...]]
    spacings: list[tuple[float, ...]]
    intensities: np.ndarray

    def target_spacing(self) -> tuple[float, ...]:
        """The spacing (mm per axis) to train at: the median, or the 10th percentile along an anisotropic axis.

        As in nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): if one axis has both three times the
        spacing of the coarsest of the others and a third of their voxels, its median would interpolate the slices of
        most cases.
        """
        spacings, shapes = np.array(self.spacings), np.array(self.shapes)
        target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
        coarsest = int(target.argmax())
        others = [axis for axis in range(len(target)) if axis != coarsest]
        if target[coarsest] > ANISOTROPIC * target[others].max() and size[coarsest] * ANISOTROPIC < size[others].min():
            target[coarsest] = max(np.percentile(spacings[:, coarsest], 10), target[others].max())
        return tuple(float(value) for value in target)

    def clip(self, channel: int = 0) -> Clip:
        """Clipping and scaling of a channel's quantitative intensities, such as Hounsfield units, as in nnU-Net."""
        values = self.intensities[channel] if self.intensities.size else np.zeros(1)
        low, high = np.percentile(values, [0.5, 99.5])
        clipped = values.clip(low, high)
        return Clip(low=low, high=high, mean=clipped.mean(), std=max(float(clipped.std()), 1e-8))


def take_fingerprint(
    manifest: Manifest,
    cases: Sequence[Case],
    root: Path,
    reading: Preprocessing,
    cache: EntryCache | None = None,
    keys: dict[str, list[str]] | None = None,
) -> Fingerprint:
    """Read the training cases, one at a time, and collect their properties; arguments are those of `CaseStore`.

    `reading` says along which axes, and whether channels are resampled.

    Raises:
        UserError: a case cannot be read.
    """
    facts = []
    # What else it says does not matter before the cases are resampled.
    reading = reading.model_copy(update={"spacing": None, "clip": None})
    for case in cases:
        compute = partial(_facts, manifest, case, root, reading)
        if cache is None:
            facts.append(compute())
        else:
            content = (keys or {}).get(case.id) or content_key(case, root)
            facts.append(cache.get([_VERSION, *_data_key(manifest), reading.model_dump_json(), *content], compute))
    intensities = np.concatenate([of_case["intensities"].numpy() for of_case in facts], axis=1)
    shapes, spacings = ([tuple(of_case[name]) for of_case in facts] for name in ("shape", "spacing"))
    return Fingerprint(shapes, spacings, intensities)


def _facts(manifest: Manifest, case: Case, root: Path, reading: Preprocessing) -> dict[str, Any]:
    read = read_case(manifest, case, root, reading)
    label = read["label"][0]
    values = read["image"][:, (label > 0) & (label != IGNORED)]
    step = max(1, values.shape[1] // _MAX_INTENSITIES)
    return {
        "shape": list(label.shape),
        "spacing": read["spacing"].tolist(),
        "intensities": values[:, ::step].to(torch.float32).clone(),
    }
