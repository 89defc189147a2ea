"""Buffers that keep their type when the module that holds them is cast."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class UncastBuffers(nn.Module):
    """A module whose buffers move to other devices but are not cast.

    A loss that belongs to a network's module is cast along with it (`network.bfloat16()`, Lightning's `bf16-true`).
    Class weights would be rounded then, and sums over an epoch saturate: bfloat16 has 8 bits. Register floating buffers
    as float32, since not every device has float64.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before: dict[str, Any] = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self
