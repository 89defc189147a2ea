"""The page of `benchmarks.gpu`: made of its results alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import Row, row_from_json
from benchmarks.goals import gpu_verdicts, reference_of
from benchmarks.tables import comparison_table, verdict_table
from benchmarks.transforms import bandwidth

_TITLE = "# The losses' speed and memory on a GPU"
_COMMAND = "benchmarks/gpu.sh"
#: Title; whose time the shares are of: a library's, and of which loss, None for the row's.
_GROUPS = {
    "gpu": ("The goals' sizes", "medloss", "dice"),
    "grid": ("The main losses next to MONAI's, or torch's cross entropy", "MONAI", None),
    "hausdorff": ("The Hausdorff loss next to MONAI's", "MONAI", None),
    "compiled": ("Next to MONAI's and plain torch, compiled by torch", "torch, compiled", None),
    "others": ("Every other loss, next to Dice", "medloss", "dice"),
    "transform": ("The Euclidean transform, and a copy", "medloss", "signed_distance_map"),
}


def page(machine: Mapping[str, str], outcomes: Mapping[str, Any], dry: bool) -> str:
    """The Markdown text.

    Args:
        machine: as `benchmarks.machine.describe` gives it.
        outcomes: `benchmarks.gpu_worker.Outcome` by the step's name.
        dry: nothing was measured on a GPU.
    """
    rows = [row_from_json(row) for outcome in outcomes.values() for row in outcome.rows]
    lines = [_TITLE, "", f"    {_COMMAND}", ""]
    lines += ["A dry run on the CPU with tiny sizes: its times mean nothing.", ""] if dry else []
    lines += [
        f"Machine: {'; '.join(machine.values())}.",
        "",
        "## Goals",
        "",
        *verdict_table(gpu_verdicts([] if dry else rows)),
    ]
    if speed := bandwidth(rows):
        lines += ["", f"Measured bandwidth of a copy: {speed / 1e9:.0f} GB/s, read and written."]
    lines += ["", "## Steps", "", "| step | outcome | seconds | date | note |", "| --- | --- | ---: | --- | --- |"]
    for name, outcome in outcomes.items():
        note = outcome.note.replace("|", "\\|")
        lines.append(f"| {name} | {outcome.status} | {outcome.seconds:.0f} | {outcome.date} | {note} |")
    for group, (title, library, loss) in _GROUPS.items():
        chosen = [r for r in rows if r.group == group]
        if chosen:
            of_what = f"medloss's {loss}" if loss else f"{library}'s"
            lines += ["", f"## {title}", "", *comparison_table(chosen, _reference(rows, library, loss), of_what)]
    return "\n".join(lines) + "\n"


def not_measured() -> str:
    """The page while no GPU was available."""
    from benchmarks.gpu import NOT_MEASURED

    how = (
        "On a machine with one, this command checks and measures the losses in at most 8 minutes, and writes this page:"
    )
    return "\n".join([_TITLE, "", NOT_MEASURED, how, "", f"    {_COMMAND}", "", *verdict_table(gpu_verdicts([])), ""])


def _reference(rows: list[Row], library: str, loss: str | None) -> Any:
    def of(row: Row) -> Row | None:
        found = reference_of(dataclasses.replace(row, kernels="triton"), rows, library, loss or row.loss)
        return found or (reference_of(row, rows, "torch", row.loss) if loss is None else None)

    return of
