"""Cases as a network reads them: decoded and normalised once, cropped and flipped anew each epoch."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.data.utils import affine_to_spacing
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRangePercentilesd,
    SpatialPadd,
    Transform,
)
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines.files import sha256
from pipelines.manifest import Case, Manifest

#: Changes when the transforms below do: cached volumes of another version are not read.
_CACHE_VERSION = "1"


class _LabelsToClasses(Transform):
    """Label values to 0..C-1, and tensors to plain ones with their spacing (mm) beside them."""

    def __init__(self, label_values: Sequence[int], dimensions: int) -> None:
        self.label_values = list(label_values)
        self.dimensions = dimensions

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        spacing = affine_to_spacing(data["label"].affine)[: self.dimensions]
        label = data["label"].as_tensor()
        classes = torch.zeros(label.shape, dtype=torch.uint8)
        for index, value in enumerate(self.label_values):
            classes[label == value] = index
        return {
            "case": data["case"],
            "image": data["image"].as_tensor().contiguous(),
            "label": classes,
            "spacing": torch.as_tensor(spacing, dtype=torch.float64),
        }


def _deterministic(manifest: Manifest) -> Compose:
    both = ["image", "label"]
    intensity: list[Any] = [NormalizeIntensityd("image")]
    if manifest.modality.upper() == "CT":
        # Metal and air would set the scale of a CT otherwise.
        intensity.insert(0, ScaleIntensityRangePercentilesd("image", 0.5, 99.5, b_min=0.0, b_max=1.0, clip=True))
    return Compose(
        [
            LoadImaged(both, reader="NibabelReader", ensure_channel_first=False),
            EnsureChannelFirstd(both, channel_dim="no_channel"),
            EnsureTyped(both, dtype=(torch.float32, torch.int32)),
            *intensity,
            _LabelsToClasses(manifest.label_values, manifest.dimensions),
        ]
    )


class _DecodedCache(PersistentDataset):
    """MONAI's cache on disk, in which a damaged entry is decoded anew, whatever the damage."""

    def _cachecheck(self, item_transformed: Any) -> Any:
        try:
            return super()._cachecheck(item_transformed)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            entry = Path(self.cache_dir) / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
            if not entry.is_file():
                raise
            warnings.warn(f"damaged cache entry {entry.name} is decoded anew ({type(error).__name__})", stacklevel=2)
            entry.unlink()
            return super()._cachecheck(item_transformed)


def decode_cases(
    manifest: Manifest, cases: Sequence[Case], root: Path, cache_dir: Path | None = None
) -> list[dict[str, Any]]:
    """Read, map and normalise cases, whole: `case`, `image` and `label` `[1, *spatial]`, `spacing` (mm).

    Args:
        manifest: whose labels and modality hold.
        cases: which to read.
        root: the data root.
        cache_dir: where decoded cases are kept, by the files' content, for other runs and processes.
    """
    transform = _deterministic(manifest)
    items = [{"case": case.id, "image": str(root / case.image), "label": str(root / case.label)} for case in cases]
    if cache_dir is None:
        return [transform(item) for item in items]
    recipe = [_CACHE_VERSION, str(manifest.label_values), manifest.modality, str(manifest.dimensions)]

    def key(item: dict[str, Any]) -> bytes:
        parts = [*recipe, item["case"], sha256(Path(item["image"])), sha256(Path(item["label"]))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest().encode()

    cache_dir.mkdir(parents=True, exist_ok=True)
    cache = _DecodedCache(items, transform, cache_dir, hash_func=key, weights_only=True)
    return [cache[index] for index in range(len(cache))]


class PatchDataset(Dataset):
    """Random patches of decoded cases.

    What is random about a patch depends on the seed, the epoch and the case alone: not on the worker that makes it,
    nor on what came before. So a resumed run, and one with another number of workers, sees the same patches.
    """

    def __init__(
        self, decoded: list[dict[str, Any]], patch: Sequence[int], seed: int, flip_axes: Sequence[int] = ()
    ) -> None:
        self.decoded = decoded
        self.seed = seed
        self.epoch = 0
        both = ["image", "label"]
        self.transform = Compose(
            [
                SpatialPadd(both, patch),
                # Two patches of three are centred on foreground, as nnU-Net's oversampling is, upside down: small
                # volumes are nearly all foreground's surroundings.
                RandCropByPosNegLabeld(both, "label", patch, pos=2, neg=1),
                *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in flip_axes),
                RandScaleIntensityd("image", 0.1, prob=0.5),
                RandShiftIntensityd("image", 0.1, prob=0.5),
            ]
        )

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.transform.set_random_state(seed=_stable_seed(self.seed, self.epoch, index))
        item = self.decoded[index]
        (patch,) = self.transform({"image": item["image"], "label": item["label"]})
        return {
            "case": item["case"],
            "image": patch["image"].as_tensor(),
            "label": patch["label"].as_tensor(),
            "spacing": item["spacing"],
        }


class EpochSampler(Sampler):
    """The cases' order, another one each epoch, by the seed and the epoch alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_stable_seed(self.seed, self.epoch, -1))
        return iter(torch.randperm(self.size, generator=generator).tolist())


def training_loader(dataset: PatchDataset, batch_size: int, workers: int) -> DataLoader:
    """Batches of patches; `start_epoch` on the result's parts makes them those of an epoch."""
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(len(dataset), dataset.seed),
        num_workers=workers,
        drop_last=len(dataset) >= batch_size,
        collate_fn=_collate,
    )


def start_epoch(loader: DataLoader, epoch: int) -> None:
    """Make a training loader's next pass that of `epoch`."""
    loader.dataset.epoch = epoch  # type: ignore[attr-defined]
    loader.sampler.epoch = epoch  # type: ignore[attr-defined]


def validation_loader(decoded: list[dict[str, Any]]) -> DataLoader:
    """Whole cases, one at a time."""
    return DataLoader(decoded, batch_size=1, collate_fn=_collate)  # type: ignore[arg-type]


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "case": [item["case"] for item in items],
        "image": torch.stack([item["image"] for item in items]),
        "label": torch.stack([item["label"] for item in items]),
        "spacing": torch.stack([item["spacing"] for item in items]),
    }


def _stable_seed(*numbers: int) -> int:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:4], "little")
