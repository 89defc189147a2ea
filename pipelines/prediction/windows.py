"""How a network sees a whole case: in windows that overlap. Validation and prediction share this, so they agree."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from pipelines.cases.preprocessing import resampled

#: By which share of their size windows overlap; their middles count more. nnU-Net's is 0.5, which makes up to
#: (0.75 / 0.5)^3 = 3.4 times as many windows in 3D.
OVERLAP = 0.25
#: Windows that a network sees at once.
WINDOWS = 4


class AutocastInferer(Inferer):
    """Runs a network under autocast on any device, and gives float32 logits: MONAI's engines know CUDA alone."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        self.memory_format = memory_format

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits, or a list of them where the network gives one."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = network(inputs.contiguous(memory_format=self.memory_format), *args, **kwargs)
        return logits.float() if isinstance(logits, Tensor) else [scale.float() for scale in logits]


class WindowInferer(Inferer):
    """Logits `[B, C, *grid]`, float32, of images `[B, 1, *grid]` of any size.

    They are put together where the network is, or in main memory where a GPU's does not suffice. Images that are
    smaller than a window are padded with zeros, as in training.

    Args:
        patch: the window, voxels.
        run: what runs the network on a batch of windows.
        windows: that the network sees at once.
        flip_axes: average over the windows mirrored along each subset of these spatial axes; takes 2^n times as long.
    """

    def __init__(
        self,
        patch: Sequence[int],
        run: AutocastInferer,
        *,
        windows: int = WINDOWS,
        flip_axes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.patch, self.windows = tuple(patch), windows
        self._run = run
        self._mirrored: list[list[int]] = [[]]
        for axis in flip_axes:
            self._mirrored += [[*axes, 2 + axis] for axes in self._mirrored]

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Logits of whole images."""

        def predict(window: Tensor) -> Tensor:
            total: Tensor = self._run(window, network, *args, **kwargs)
            # Window by window: mirrored copies of the whole case's logits would take twice its memory.
            for axes in self._mirrored[1:]:
                total = total + self._run(window.flip(axes), network, *args, **kwargs).flip(axes)
            return total / len(self._mirrored) if len(self._mirrored) > 1 else total

        try:
            return self._slide(inputs, predict, self._run.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        return self._slide(inputs.cpu(), predict, torch.device("cpu"))

    def _slide(self, inputs: Tensor, predict: Callable[[Tensor], Tensor], stitched_on: torch.device) -> Tensor:
        slide = SlidingWindowInferer(
            self.patch, self.windows, OVERLAP, "gaussian", sw_device=self._run.device, device=stitched_on
        )
        logits: Tensor = slide(inputs, predict)
        return logits


def channels_last(spatial_dims: int) -> torch.memory_format:
    """The memory format in which convolutions are fastest: a step takes 0.7 of the time of the plain one."""
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


def label_map(logits: Tensor, shape: Sequence[int]) -> Tensor:
    """The class of the largest logit on another grid: `[*shape]`, whole numbers, of logits `[C, *grid]`.

    Class by class: all of them on a large image's grid would take C times its size.
    """
    best = resampled(logits[:1], shape).clone()
    winner = torch.zeros(best.shape, dtype=torch.uint8 if len(logits) <= 256 else torch.int32, device=logits.device)
    for c in range(1, len(logits)):
        part = resampled(logits[c : c + 1], shape)
        winner.masked_fill_(part > best, c)
        torch.maximum(best, part, out=best)
    return winner[0]
