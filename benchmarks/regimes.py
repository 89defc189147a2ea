"""The ways of allocating memory: each is the environment of a separate process."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import CACHING, EXACT, FRESH, RECYCLED, Case, Row, case_to_json, row, row_from_json

#: What each regime adds to the environment. A GPU's memory is always recycled, by torch's caching allocator.
REGIMES: dict[str, dict[str, str]] = {
    FRESH: {},
    RECYCLED: {
        "MALLOC_TOP_PAD_": "536870912",
        "MALLOC_TRIM_THRESHOLD_": "2147483648",
        "MALLOC_MMAP_THRESHOLD_": "2147483648",
    },
    CACHING: {},
    EXACT: {"MALLOC_TOP_PAD_": "0", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
}
#: A figure's title, and what it means.
EXPLAINED = {
    FRESH: ("fresh memory", "glibc's defaults: large tensors come from the system each time"),
    RECYCLED: (
        "recycled memory",
        "glibc keeps what was freed: " + ", ".join(f"`{n}={v}`" for n, v in REGIMES[RECYCLED].items()),
    ),
    CACHING: ("caching allocator", "torch's, on a GPU"),
}
_SECONDS = 3600
_ROOT = Path(__file__).resolve().parents[1]


def run_everywhere(case: Case) -> list[Row]:
    """The rows of a case in all regimes of its device; peaks stand in the first regime's rows."""
    if case.device == "cuda":
        return run_in_regime(case, CACHING)
    rows = [r for regime in (FRESH, RECYCLED) for r in run_in_regime(case, regime)]
    if case.group == "transform":
        return rows
    exact = {_contender(r): r for r in run_in_regime(case, EXACT)}
    return [_with_peak(r, exact[_contender(r)]) if r.regime == FRESH else r for r in rows]


def run_in_regime(case: Case, regime: str) -> list[Row]:
    """Run a case in a separate process. One that dies leaves rows that say so."""
    found, note = in_process(case_to_json(case), regime, _SECONDS)
    if found is not None:
        return [row_from_json(data) for data in found]
    return [row(case, contender, regime, note=note) for contender in case.contenders]


def in_process(work: dict[str, Any], regime: str, seconds: float) -> tuple[list[dict[str, Any]] | None, str]:
    """What `benchmarks.worker` finds in a separate process whose memory is managed as the regime says.

    Args:
        work: a case or a setting, as JSON has it.
        regime: one of `REGIMES`.
        seconds: how long it may take.

    Returns:
        Rows as JSON has them and an empty note; or None, and why there are none.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        try:
            finished = subprocess.run(
                [sys.executable, "-m", "benchmarks.worker", regime, str(result)],
                input=json.dumps(work),
                env=inherited | REGIMES[regime],
                cwd=_ROOT,
                text=True,
                capture_output=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return None, f"took more than {seconds:g} s"
        if result.is_file():
            return json.loads(result.read_text()), ""
    if finished.returncode < 0:
        return None, "failed: killed, out of memory?"
    last = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
    return None, f"failed: {last[:200]}"


def _with_peak(timed: Row, exact: Row) -> Row:
    return dataclasses.replace(timed, peak=exact.peak, note=timed.note or exact.note)


def _contender(r: Row) -> tuple[str, str, str, bool]:
    return r.library, r.loss, r.kernels, r.cached_map
