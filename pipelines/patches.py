"""Random patches of decoded cases, and the loaders that batch them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, Sampler

#: So many patches are centred on foreground, its class drawn first, a voxel of it then: what is small is seen as often
#: as what is large. The others lie anywhere.
_FOREGROUND_SHARE = 2 / 3
#: As many of a class's voxels are kept as centres; of more, evenly spread ones.
_MOST_CENTRES = 10_000
#: Intensities are scaled by 0.9 to 1.1, and shifted by -0.1 to 0.1 of their standard deviation, each in half the cases.
_INTENSITY = 0.1


class PatchDataset(Dataset):
    """Random patches of decoded cases.

    What is random about a patch depends on the seed, the epoch and the case alone: not on the worker that makes it,
    nor on what came before. So a resumed run, and one with another number of workers, sees the same patches.

    Plain tensors and slices, not MONAI's dictionary transforms: those took 4 ms a patch of 40 x 56 x 40 voxels, a
    tenth of a step, and looked for the foreground of the whole volume anew each time.

    Args:
        decoded: from `decode_cases`.
        patch: voxels an axis; what a case lacks is padded with zeros, the mean of its intensities, and background.
        seed: decides everything random, with `epoch`, which the loader's owner moves on.
        flip_axes: array axes along which every second patch is flipped.
    """

    def __init__(
        self, decoded: list[dict[str, Any]], patch: Sequence[int], seed: int, flip_axes: Sequence[int] = ()
    ) -> None:
        self.decoded = decoded
        self.patch = tuple(patch)
        self.seed = seed
        self.flip_axes = tuple(flip_axes)
        self.epoch = 0
        self.centres = [_centres(item["label"][0], self.patch) for item in decoded]

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.decoded[index]
        random = np.random.default_rng((self.seed, self.epoch, index, 0))
        start = _start(item["label"].shape[1:], self.patch, self.centres[index], random)
        image, label = (_cut(item[name], start, self.patch) for name in ("image", "label"))
        flipped = [1 + axis for axis in self.flip_axes if random.random() < 0.5]
        if flipped:
            image, label = image.flip(flipped), label.flip(flipped)
        scale, shift = (random.uniform(-_INTENSITY, _INTENSITY) * (random.random() < 0.5) for _ in range(2))
        return {
            "case": item["case"],
            "image": image.mul(1 + scale).add_(shift),
            "label": label,
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
        return iter(np.random.default_rng((self.seed, self.epoch, 0, 1)).permutation(self.size).tolist())


def training_loader(dataset: PatchDataset, batch_size: int, workers: int) -> DataLoader:
    """Batches of patches; `start_epoch` makes its next pass that of an epoch."""
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(len(dataset), dataset.seed),
        num_workers=workers,
        drop_last=len(dataset) >= batch_size,
        collate_fn=_collate,
        # Its own: else each pass would draw a number from the generator that dropout draws from.
        generator=torch.Generator(),
    )


def start_epoch(loader: DataLoader, epoch: int) -> None:
    """Make a training loader's next pass that of `epoch`."""
    loader.dataset.epoch = epoch  # type: ignore[attr-defined]
    loader.sampler.epoch = epoch  # type: ignore[attr-defined]


def validation_loader(decoded: list[dict[str, Any]]) -> DataLoader:
    """Whole cases, one at a time."""
    return DataLoader(decoded, batch_size=1, collate_fn=_collate)  # type: ignore[arg-type]


def _centres(label: Tensor, patch: tuple[int, ...]) -> list[Tensor]:
    """Flat indices of voxels, one tensor a foreground class that is there; none where every patch is the whole case."""
    if all(p >= n for n, p in zip(label.shape, patch, strict=True)):
        return []
    flat = label.reshape(-1)
    foreground = flat.nonzero()[:, 0]
    values = flat[foreground]
    voxels = [foreground[values == value] for value in values.unique()]
    return [v[:: math.ceil(len(v) / _MOST_CENTRES)].to(torch.int32) for v in voxels]


def _start(shape: Sequence[int], patch: tuple[int, ...], centres: list[Tensor], random: Generator) -> tuple[int, ...]:
    """A patch's first voxel; 0 along axes that the patch covers."""
    room = [max(n - p, 0) for n, p in zip(shape, patch, strict=True)]
    if not centres or random.random() > _FOREGROUND_SHARE:
        return tuple(int(random.integers(r + 1)) for r in room)
    voxels = centres[random.integers(len(centres))]
    centre = np.unravel_index(int(voxels[random.integers(len(voxels))]), shape)
    return tuple(min(max(int(c) - p // 2, 0), r) for c, p, r in zip(centre, patch, room, strict=True))


def _cut(volume: Tensor, start: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The patch `[1, *patch]` of a volume `[1, *spatial]`; what lies outside is 0 on both sides alike."""
    for axis, (first, length) in enumerate(zip(start, patch, strict=True), start=1):
        volume = volume.narrow(axis, first, min(length, volume.shape[axis]))
    missing = [length - n for length, n in zip(patch, volume.shape[1:], strict=True)]
    if any(missing):
        # `pad` counts axes from the last.
        volume = pad(volume, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    return volume


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "case": [item["case"] for item in items],
        "image": torch.stack([item["image"] for item in items]),
        "label": torch.stack([item["label"] for item in items]),
        "spacing": torch.stack([item["spacing"] for item in items]),
    }
