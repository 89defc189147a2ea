"""Logits and labels as a segmentation has them, made from a seed: rough structures, and a prediction that errs."""

import torch
import torch.nn.functional as F
from torch import Tensor

_CERTAINTY = 6.0
_NOISE = 0.5


def scene(
    size: tuple[int, ...], classes: int, batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[B, C, *size]` and an index map `[B, 1, *size]` of uint8 whose structures they nearly hit.

    Args:
        size: voxels, two or three axes.
        classes: C; one class is one structure, predicted by a sigmoid.
        batch: B.
        dtype: of the logits.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.empty(batch, classes, *size, dtype=dtype)
    labels = torch.empty(batch, 1, *size, dtype=torch.uint8)
    for item in range(batch):
        label = _structures(size, max(classes, 2), generator)
        labels[item, 0] = label
        # The prediction lies a little off, misses the last structure, and is unsure at its borders.
        predicted = label.roll([max(1, n // 32) for n in size], list(range(len(size))))
        if classes > 2:
            predicted = predicted.where(predicted != classes - 1, 0)
        for channel in range(classes):
            inside = _smooth((predicted == (channel if classes > 1 else 1)).float())
            noise = torch.randn(size, generator=generator) * _NOISE
            logits[item, channel] = (inside - 0.5) * _CERTAINTY + noise
    return logits, labels


def scattered_lesions(
    size: tuple[int, ...], classes: int = 1, batch: int = 1, dtype: torch.dtype = torch.float32, number: int = 100
) -> tuple[Tensor, Tensor]:
    """As `scene` with one class, of cubes of some voxels at the nodes of a grid: `number` components per item."""
    generator = torch.Generator().manual_seed(0)
    nodes = next(n for n in range(1, number + 1) if n ** len(size) >= number)
    step = [n // nodes for n in size]
    label = torch.zeros(batch, 1, *size, dtype=torch.uint8)
    for item in range(batch):
        for node in torch.randperm(nodes ** len(size), generator=generator)[:number].tolist():
            place = [(node // nodes**axis % nodes) * step[axis] + step[axis] // 3 for axis in range(len(size))]
            box = tuple(slice(p, p + max(1, s // 4)) for p, s in zip(place, step, strict=True))
            label[(item, 0, *box)] = 1
    noise = torch.randn(batch, classes, *size, generator=generator)
    return ((label - 0.5) * _CERTAINTY + noise).to(dtype), label


def _structures(size: tuple[int, ...], classes: int, generator: torch.Generator) -> Tensor:
    """Balls with rough surfaces at random places, one a class, later ones over earlier ones."""
    label = torch.zeros(size, dtype=torch.uint8)
    rough = torch.randn([max(2, n // 4) for n in size], generator=generator)
    mode = "trilinear" if len(size) == 3 else "bilinear"
    rough = F.interpolate(rough[None, None], size, mode=mode, align_corners=True)[0, 0]
    shortest = min(size)
    for number in range(1, classes):
        # Many structures are small ones, so that they do not hide each other.
        radius = shortest * (0.28 if number == 1 else 0.5 / (classes + 1) ** (1 / len(size)))
        radius = max(radius * (0.7 + 0.3 * float(torch.rand((), generator=generator))), 1.5)
        place = torch.rand(len(size), generator=generator) * 0.6 + 0.2
        centre = [float(share) * n for share, n in zip(place, size, strict=True)]
        reach = int(1.5 * radius) + 1
        box = tuple(
            slice(max(0, int(c) - reach), min(n, int(c) + reach + 1)) for c, n in zip(centre, size, strict=True)
        )
        axes = [torch.arange(part.start, part.stop) - c for part, c in zip(box, centre, strict=True)]
        distance = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
        assert isinstance(distance, Tensor)
        label[box].masked_fill_(distance.sqrt() + 0.12 * radius * rough[box] < radius, number)
    return label


def _smooth(maps: Tensor, width: int = 5) -> Tensor:
    """Means over cubes, an axis at a time."""
    out = maps[None, None]
    pool = F.avg_pool3d if maps.ndim == 3 else F.avg_pool2d
    for axis in range(maps.ndim):
        window = [width if axis == a else 1 for a in range(maps.ndim)]
        out = pool(out, window, stride=1, padding=[w // 2 for w in window], count_include_pad=False)
    return out[0, 0]
