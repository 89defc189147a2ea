"""Logits and targets that the tests of the losses share."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import medloss
from medloss.base import CommonArguments

#: `make test-all` sets it: Triton's interpreter runs the whole contract, and hypothesis draws many examples.
EVERYTHING = bool(os.environ.get("MEDLOSS_TEST_EVERYTHING"))

#: Three different numbers: swapping any two axes must fail a test.
SPACING = {2: (2.0, 0.7), 3: (3.0, 1.0, 0.6)}
SHAPE = {2: (7, 9), 3: (6, 7, 5)}
MODES = ("softmax", "sigmoid", "probabilities")

#: Hyper-parameters that give a loss something to do on volumes of a few voxels a side.
SMALL = {"hausdorff_cv": {"radii": (1.0, 1.9)}, "hausdorff_er": {"erosions": 4}}


#: The matrix of distances has the classes' weights.
TAKES_NO_WEIGHT = ("generalized_wasserstein_dice",)
#: With softmax class 0 never counts.
WITHOUT_BACKGROUND = ("skeleton_recall", "instance_wise")


def modes_of(name: str) -> tuple[str, ...]:
    """The modes in which a registered loss has a meaning."""
    return MODES[:1] if medloss.LOSSES[name].cls.categorical_only else MODES


def class_weights(name: str, mode: str, background: bool) -> list[float] | None:
    """A weight for each class that is left, of three; None for a loss that takes none."""
    if name in TAKES_NO_WEIGHT:
        return None
    left_out = not background or (mode == "softmax" and name in WITHOUT_BACKGROUND)
    return [0.5, 2.0, 1.5][: 2 if left_out else 3]


@dataclass
class Sample:
    """Float64 logits, an index map and one map a class for one mode."""

    logits: Tensor
    index: Tensor
    maps: Tensor
    spacing: tuple[float, ...]


def sample(
    mode: str, dims: int, *, structured: bool = True, seed: int = 0, channels: int = 3, batch: int = 2
) -> Sample:
    """Noise, or boxes with an inside and logits that are wrong on some thick parts of them."""
    generator = torch.Generator().manual_seed(seed)
    spatial = SHAPE[dims]
    if structured:
        index = torch.zeros(batch, 1, *spatial, dtype=torch.long)
        for item in range(batch):
            for label in range(1, channels):
                start = [int(torch.randint(0, max(n // 2, 1), (), generator=generator)) for n in spatial]
                box = tuple(slice(s, s + int(0.6 * n)) for s, n in zip(start, spatial, strict=True))
                index[(item, 0, *box)] = label
    else:
        index = torch.randint(0, max(channels, 2), (batch, 1, *spatial), generator=generator)
    if channels == 1:
        index, maps = (index > 0).long(), (index > 0).double()
    else:
        maps = (index == torch.arange(channels).view(1, -1, *(1,) * dims)).double()
    logits = torch.randn(batch, channels, *spatial, generator=generator, dtype=torch.float64)
    if structured:
        logits = logits + 3 * torch.roll(maps, shifts=2, dims=2) - 1.5
    if mode == "probabilities":
        logits = torch.sigmoid(logits)
    return Sample(logits, index, maps, SPACING[dims])


def mask_like(index: Tensor, seed: int = 1, share: float = 0.7) -> Tensor:
    """A random mask in which some voxels of each item count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(index.shape, generator=generator) < share


def make(name: str, mode: str, **arguments: Any) -> medloss.SegmentationLoss:
    """The registered loss, its activation set, with hyper-parameters for small volumes."""
    activation = {} if mode == "probabilities" else {mode: True}
    return medloss.LOSSES[name].cls(**activation, **(SMALL.get(name, {}) | arguments))


def to_numpy(value: Any) -> Any:
    """Tensors as arrays, anything else as it is."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def assert_close(actual: Any, expected: Any, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    """Compare tensors, arrays or numbers."""
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=rtol, atol=atol)


COMMON = set(CommonArguments.__annotations__)
