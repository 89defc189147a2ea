"""How long forward and backward take: sides that take turns on the same tensors."""

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Side


class Stopwatch:
    """Marks in time; on a GPU by events, since the host runs ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Now."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between neighbouring marks."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


def once(side: Side, logits: Tensor) -> tuple[float, float]:
    """Seconds of one forward and one backward pass. The gradient is dropped afterwards, as a network's is."""
    watch = Stopwatch(logits.device)
    with side.context():
        watch.mark()
        value = side.function(logits)
        watch.mark()
        value.backward()
        watch.mark()
    logits.grad = None
    forward, backward = watch.seconds()
    return forward, backward


def alternate(
    sides: Sequence[Side], logits: Tensor, *, warmup: int, rounds: int, least: int, seconds: float
) -> list[list[tuple[float, float]]]:
    """Let the sides take turns; every second round in the opposite order, since each leaves its memory to the next.

    Args:
        sides: who takes turns.
        logits: a leaf that requires a gradient.
        warmup: rounds that do not count.
        rounds: rounds that count, at most.
        least: rounds that count, at least.
        seconds: no further round starts when the counted ones have taken so long.

    Returns:
        Seconds of forward and backward of each counted round, a list a side.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    gc.collect()
    start = time.perf_counter()
    for number in range(warmup + rounds):
        if number == warmup:
            start = time.perf_counter()
        elif number >= warmup + least and time.perf_counter() - start > seconds:
            break
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            measured = once(sides[index], logits)
            if number >= warmup:
                times[index].append(measured)
    return times


def summary(times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and the quartiles of the sum, as `Row` names them."""
    totals = [forward + backward for forward, backward in times]
    low, middle, high = quartiles(totals)
    return {
        "forward": statistics.median(forward for forward, _ in times),
        "backward": statistics.median(backward for _, backward in times),
        "total": middle,
        "low": low,
        "high": high,
        "rounds": len(totals),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile; of one value, three times that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
