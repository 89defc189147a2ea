"""Runs one case, or one setting of a training step, in this process; `regimes.py` starts it.

python -m benchmarks.worker REGIME RESULT < case.json
"""

import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.cases import CACHING, EXACT, Case, Row, case_from_json, row
from benchmarks.contenders import NEED, Side, build
from benchmarks.measure import alternate, once, summary
from benchmarks.memory import peak_memory
from benchmarks.scenes import scattered_lesions, scene


def run_case(case: Case, regime: str) -> list[Row]:
    """A row of each contender: times, or in the regime `exact` peak memory."""
    if case.group == "transform":
        from benchmarks.transforms import transform_rows

        return transform_rows(case, regime)
    device = torch.device(case.device)
    fits = {c: _need(case, c.library) < _free_memory(device) for c in case.contenders}
    rows = [
        row(case, contender, regime, note=f"would need some {_need(case, contender.library) / 2**30:.0f} GiB")
        for contender in case.contenders
        if not fits[contender]
    ]
    runnable = [contender for contender in case.contenders if fits[contender]]
    if not runnable:
        return rows
    scattered = case.group == "instances"
    make = scattered_lesions if scattered else scene
    logits, target = make(case.size, case.classes, case.batch, getattr(torch, case.dtype))
    logits, target = logits.to(device).requires_grad_(), target.to(device)
    sides = [build(contender, target, case.classes) for contender in runnable]
    if regime == EXACT:
        return rows + [row(case, side.contender, regime, peak=_peak(side, logits)) for side in sides]
    times = alternate(sides, logits, warmup=case.warmup, rounds=case.rounds, least=case.least, seconds=case.seconds)
    # A GPU's allocator counts for itself, and needs no regime for it.
    peaks = [_peak(side, logits) if regime == CACHING else None for side in sides]
    measured = zip(runnable, times, peaks, strict=True)
    return rows + [row(case, contender, regime, **summary(t), peak=peak) for contender, t, peak in measured]


def _peak(side: Side, logits: Tensor) -> float | None:
    """In sizes of the logits, after a pass that warms up."""
    once(side, logits)
    peak = peak_memory(lambda: once(side, logits), logits.device)
    return None if peak is None else peak / (logits.numel() * logits.element_size())


def _need(case: Case, library: str) -> float:
    """Bytes that a side may take, the logits and their making included."""
    return (1.2 + NEED[library]) * case.logits_bytes


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    return 0.9 * psutil.virtual_memory().available


def main() -> None:
    """Read the case or setting, write the rows."""
    regime, result = sys.argv[1:]
    # Warnings are the losses' business; here they would only delay.
    warnings.simplefilter("ignore")
    work = json.load(sys.stdin)
    rows: Sequence[Any]
    if "contenders" in work:
        rows = run_case(case_from_json(work), regime)
    else:
        from benchmarks.step_settings import setting_from_json
        from benchmarks.step_timing import run_setting

        rows = run_setting(setting_from_json(work), regime)
    Path(result).write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
