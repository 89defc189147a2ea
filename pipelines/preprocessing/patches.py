"""Random patches of prepared cases, their augmentation, and the loaders that batch them."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandSimulateLowResolution,
)
from monai.transforms.utils import create_rotate, create_scale
from numpy.random import Generator
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines.data.label_scheme import IGNORED, LabelScheme
from pipelines.preprocessing import Augmentation
from pipelines.preprocessing.case_store import ANISOTROPIC
from pipelines.preprocessing.label_maps import MAPS, label_maps
from pipelines.utils import UserError

# Augmentation.


def random_matrix(settings: Augmentation, spacing: Sequence[float], random: Generator) -> np.ndarray | None:
    """A random rotation and scaling, as a matrix `[d, d]` from steps in the patch to steps in the volume, in voxels.

    None for the identity. Rotations are in physical space, by the spacing (mm per axis).
    """
    dims = len(spacing)
    # Always drawn, so that later random numbers do not depend on the settings' shares.
    rotated, scaled = random.random(2) < settings.spatial_share
    angles = np.radians(random.uniform(-settings.rotation, settings.rotation, 1 if dims == 2 else 3))
    factor = math.exp(random.uniform(*np.log(settings.scaling)))
    rotated, scaled = rotated and settings.rotation > 0, scaled and factor != 1
    if not rotated and not scaled:
        return None
    mm = np.array(spacing)
    coarse = int(mm.argmax())
    if dims == 3 and mm[coarse] >= ANISOTROPIC * np.delete(mm, coarse).max():
        angles = np.where(np.arange(3) == coarse, angles, 0.0)
    matrix = np.eye(dims)
    if rotated:
        matrix = create_rotate(dims, angles.tolist())[:dims, :dims]
    if scaled:
        matrix = matrix @ create_scale(dims, [1 / factor] * dims)[:dims, :dims]
    voxel: np.ndarray = matrix * mm[None, :] / mm[:, None]
    return voxel


def sampled(volume: Tensor, centre: ArrayLike, matrix: np.ndarray, patch: Sequence[int], mode: str) -> Tensor:
    """The patch `[K, *patch]` around a centre (voxels) in a volume `[K, *spatial]`; outside the volume it is 0.

    A single interpolation crops, rotates and scales by a `random_matrix`, and reads only the part of the volume that it
    needs. The mode is `bilinear` (also in 3D), or `nearest` for labels.
    """
    centre = np.asarray(centre)
    reach = np.abs(matrix) @ (np.array(patch) / 2) + 2
    first = np.maximum(0, np.floor(centre - reach)).astype(int)
    last = np.minimum(volume.shape[1:], np.ceil(centre + reach) + 1).astype(int)
    part = volume[(slice(None), *map(slice, first, last))].float()
    size, offset = np.array(part.shape[1:]), centre - first
    # `affine_grid` has coordinates from -1 to 1 over all voxels, and counts axes from the last.
    theta = np.concatenate([matrix * np.array(patch) / size[:, None], ((2 * offset + 1) / size - 1)[:, None]], axis=1)
    theta[:, :-1] = theta[::-1, -2::-1]
    theta[:, -1] = theta[::-1, -1]
    grid = F.affine_grid(torch.from_numpy(theta).float()[None], [1, len(part), *patch], align_corners=False)
    return F.grid_sample(part[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0].to(volume.dtype)


class Intensities:
    """Augments the intensities of patches in 2 or 3 dimensions with MONAI's transforms."""

    def __init__(self, settings: Augmentation, dims: int) -> None:
        self.settings = settings
        transforms: list[object] = []
        if settings.noise_share:
            transforms.append(RandGaussianNoise(settings.noise_share, std=settings.noise))
        if settings.blur_share:
            transforms.append(RandGaussianSmooth(settings.blur, settings.blur, settings.blur, settings.blur_share))
        if settings.low_resolution_share:
            zoom, smooth = (settings.low_resolution, 1.0), "trilinear" if dims == 3 else "bilinear"
            transforms.append(
                RandSimulateLowResolution(settings.low_resolution_share, upsample_mode=smooth, zoom_range=zoom)
            )
        if settings.gamma_share:
            transforms.append(RandAdjustContrast(settings.gamma_share, settings.gamma, retain_stats=True))
        self.transforms = Compose(transforms) if transforms else None

    def __call__(self, image: Tensor, random: Generator) -> Tensor:
        """An augmented copy of `image`, `[K, *patch]`, each channel by random numbers of its own."""
        if len(image) > 1:
            return torch.cat([self(channel[None], random) for channel in image])
        scale, shift = (
            random.uniform(-self.settings.brightness, self.settings.brightness)
            * (random.random() < self.settings.brightness_share)
            for _ in range(2)
        )
        image = image.mul(1 + scale).add_(shift)
        if self.transforms is None:
            return image
        self.transforms.set_random_state(seed=int(random.integers(2**32)))
        varied: Tensor = self.transforms(image)
        return getattr(varied, "as_tensor", lambda: varied)()


# Patches and loaders.

_Index = tuple[int, int]


@dataclass(eq=False)
class PatchDataset(Dataset):
    """Random patches of prepared cases, by (epoch, case number).

    A patch depends only on the seed, the epoch and the case, not on the worker or on earlier patches. Resumed runs and
    runs with another number of workers therefore see the same patches.

    It uses plain tensors and slices rather than MONAI's dictionary transforms, which took 4 ms per patch of
    40 x 56 x 40 voxels (a tenth of a step) and searched the whole volume for foreground each time.

    Attributes:
        cases: from `CaseStore`.
        patch: voxels per axis; smaller cases are padded with 0, which is their mean intensity, and background.
        seed: random seed.
        flip_axes: array axes along which patches are flipped with a probability of 0.5 each.
        augmentation: settings of the augmentation.
        foreground: share of patches centred on foreground: a class is drawn first, then one of its voxels, so that
            small classes are seen as often as large ones. Other patches are anywhere in the volume, but are centred on
            a voxel that is not ignored in cases with ignored voxels.
        scheme: the classes or regions, if cases have maps of the label: those of a patch that is rotated, scaled or
            padded are computed again.
    """

    cases: Sequence[dict[str, Any]]
    patch: tuple[int, ...]
    seed: int
    flip_axes: Sequence[int] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)
    foreground: float = 2 / 3
    scheme: LabelScheme | None = None

    def __post_init__(self) -> None:
        self.intensities = Intensities(self.augmentation, len(self.patch))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: _Index) -> dict[str, Any]:
        epoch, number = index
        item = self.cases[number]
        random = np.random.default_rng((self.seed, epoch, number, 0))
        shape = item["label"].shape[1:]
        start = self._start(shape, item, random)
        matrix = random_matrix(self.augmentation, item["spacing"].tolist(), random)
        if matrix is None:
            image, label = (_cut(item[name], start, self.patch) for name in ("image", "label"))
        else:
            covered = np.minimum(shape, self.patch)
            centre = np.array(start) + (covered - 1) / 2
            image = sampled(item["image"], centre, matrix, self.patch, "bilinear")
            label = sampled(item["label"], centre, matrix, self.patch, "nearest")
            if "counted" in item and (label == IGNORED).all():  # they were rotated out of it
                image, label = (_cut(item[name], start, self.patch) for name in ("image", "label"))
        maps = self._maps(item, start, label, matrix is None and bool(np.greater_equal(shape, self.patch).all()))
        flipped = [1 + axis for axis in self.flip_axes if random.random() < 0.5]
        if flipped:
            image, label = image.flip(flipped), label.flip(flipped)
            maps = {name: of_patch.flip(flipped) for name, of_patch in maps.items()}
        kept = {name: item[name] for name in ("case", "spacing", "labelled")}
        return {**kept, **maps, "image": self.intensities(image, random), "label": label}

    def _maps(self, item: dict[str, Any], start: tuple[int, ...], label: Tensor, is_cut: bool) -> dict[str, Tensor]:
        """The maps of the case's label in a patch that was only cut out of it, else those of the patch's label."""
        names = [name for name in MAPS if name in item]
        if is_cut:
            return {name: _cut(item[name], start, self.patch) for name in names}
        return label_maps(names, label, item["spacing"].tolist(), self.scheme) if names and self.scheme else {}

    def _start(self, shape: Sequence[int], item: dict[str, Any], random: Generator) -> tuple[int, ...]:
        """A patch's first voxel; 0 along axes that the patch covers completely."""
        centres: list[Tensor] = item["centres"]
        room = [max(n - p, 0) for n, p in zip(shape, self.patch, strict=True)]
        if not any(room):
            return (0,) * len(room)
        if not centres or random.random() > self.foreground:
            if "counted" not in item:
                return tuple(int(random.integers(r + 1)) for r in room)
            centres = [item["counted"]]  # a patch of ignored voxels would teach nothing
        voxels = centres[random.integers(len(centres))]
        centre = np.unravel_index(int(voxels[random.integers(len(voxels))]), tuple(shape))
        return tuple(min(max(int(c) - p // 2, 0), r) for c, p, r in zip(centre, self.patch, room, strict=True))


class EpochBatches(Sampler[list[_Index]]):
    """The batches of an epoch: cases in an order that depends only on the seed and the epoch.

    Each of several processes gets its part of every batch, so together they see the batches of a single process. The
    batch size is that over all processes; incomplete batches are dropped.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """

    def __init__(self, size: int, seed: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.size, self.seed, self.rank, self.epoch = size, seed, rank, 0
        self.batch_size = min(batch_size, size)
        if self.batch_size % ranks:
            raise UserError(
                f"batch size: {self.batch_size} items cannot be shared evenly by {ranks} processes; "
                f"expected a multiple of {ranks}"
            )
        self.part = self.batch_size // ranks

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[_Index]]:
        order = np.random.default_rng((self.seed, self.epoch, 0, 1)).permutation(self.size).tolist()
        for batch in range(len(self)):
            first = batch * self.batch_size + self.rank * self.part
            yield [(self.epoch, number) for number in order[first : first + self.part]]


class _ReadAhead(DataLoader):
    """Prepares the next batch in a thread while the network computes.

    MONAI's `ThreadDataLoader` does as well, but an error in its thread only ends the epoch early.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with ThreadPoolExecutor(1, "loader") as thread:
            batches = super().__iter__()
            ahead = thread.submit(next, batches, None)
            try:
                while (batch := ahead.result()) is not None:
                    ahead = thread.submit(next, batches, None)
                    yield batch
            except UserError as error:
                # That of a loader process has its traceback as its message; the last line is the error's.
                line = str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
                raise UserError(line) from None


def training_loader(dataset: PatchDataset, batch_size: int, workers: int, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Batches of patches for process `rank` of `ranks`; `start_epoch` selects the epoch of the next pass.

    The batch size is that over all processes. Without loader processes (`workers`), a thread prepares the next batch
    while the network computes.
    """
    return _ReadAhead(
        dataset,
        batch_sampler=EpochBatches(len(dataset), dataset.seed, batch_size, rank, ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_patches,
        # A separate generator: otherwise each pass would draw a number from the one that dropout uses.
        generator=torch.Generator(),
    )


def start_epoch(loader: DataLoader, epoch: int) -> None:
    """Set the epoch of a training loader's next pass."""
    loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]


def validation_loader(cases: Sequence[dict[str, Any]], rank: int = 0, ranks: int = 1) -> DataLoader:
    """Whole cases, one at a time, with their reference labels; each process gets its share."""
    share = range(rank, len(cases), ranks)
    return DataLoader(cases, batch_size=1, sampler=share, collate_fn=_whole)  # type: ignore[arg-type]


def _cut(volume: Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The patch `[K, *patch]` of a volume `[K, *spatial]`, padded with 0 equally on both sides."""
    for axis, (first, length) in enumerate(zip(start, patch, strict=True), start=1):
        volume = volume.narrow(axis, first, min(length, volume.shape[axis]))
    missing = [length - n for length, n in zip(patch, volume.shape[1:], strict=True)]
    if any(missing):
        # `pad` counts axes from the last.
        volume = F.pad(volume, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    return volume


def _patches(items: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in ("image", "label", "spacing", "labelled", *MAPS) if name in items[0]]
    stacked = {name: torch.stack([item[name] for item in items]) for name in names}
    return {"case": [item["case"] for item in items], **stacked}


def _whole(items: list[dict[str, Any]]) -> dict[str, Any]:
    return _patches(items) | {
        "reference": [item.get("reference", item["label"])[0] for item in items],
        "reference_spacing": [tuple(item.get("reference_spacing", item["spacing"]).tolist()) for item in items],
    }
