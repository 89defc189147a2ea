"""The report, made of the results' file: nothing in it is written by hand."""

import statistics
from pathlib import Path

from benchmarks.cases import Row
from benchmarks.goals import gpu_verdicts, growth_slopes, reference_of, verdicts
from benchmarks.gpu_report import not_measured
from benchmarks.plots import draw_all
from benchmarks.regimes import EXPLAINED
from benchmarks.results import Group, all_rows, read_results
from benchmarks.tables import Reference, comparison_table, growth_table, verdict_table
from benchmarks.transforms import bandwidth
from pipelines.utils.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "losses"
#: Device to the report's name, next to `cpu.json` or `gpu-full.json`; `benchmarks.gpu` writes `gpu.md`.
NAMES = {"cpu": "cpu", "cuda": "gpu-full"}

_TITLES = {
    "goals": "Dice, Tversky and focal compared with other libraries",
    "entropy": "Cross entropy compared with torch's",
    "others": "Every other voxelwise and region loss compared with our Dice",
    "more": "Region and voxelwise losses of the second set compared with our Dice",
    "lovasz": "Lovász losses compared with kornia's and segmentation_models_pytorch's",
    "instances": "A loss averaged over a hundred components compared with the loss of the volume",
    "mapped": "Losses with a distance map or a local statistic compared with our Dice",
    "hausdorff": "Hausdorff losses",
    "gpu": "The goals' sizes on the GPU",
    "transform": "The Euclidean transform and a copy",
    "grid": "Sizes, classes and types",
    "growth": "Growth",
}
_HOW = """\
Medians over rounds in which the sides take turns on the same tensors, forward plus backward (milliseconds; in
brackets the two separately). Each case and regime runs in a separate process, warmed up by eight rounds (by two for
logits of more than 100 million numbers, and the slow losses at large sizes in "Growth"). *peak*: the peak memory
beyond logits and target, including the gradient, relative to the size of the logits, by the kernel's count of
resident pages, in a third process in which large tensors are returned to the system at once (on a GPU by torch's
allocator). The target is an index map of uint8; each side converts it as it needs, and ours checks it, as in
training."""


def write_report(device: str, folder: Path = FOLDER) -> Path:
    """Write the report and the figures of a device's results.

    Args:
        device: `cpu` or `cuda`.
        folder: where the results lie and the report will.
    """
    name = NAMES[device]
    groups = read_results(folder / f"{name}.json")
    path = folder / f"{name}.md"
    write_text(path, "\n".join(_lines(device, groups, folder)) + "\n")
    if device == "cpu" and not (folder / "gpu.json").is_file():
        write_text(folder / "gpu.md", not_measured())
    return path


def _lines(device: str, groups: dict[str, Group], folder: Path) -> list[str]:
    rows = all_rows(groups)
    pictures = draw_all(rows, folder, NAMES[device])
    lines = [f"# The losses' speed and memory on a {'GPU' if device == 'cuda' else 'CPU'}", ""]
    command = "python -m benchmarks.losses " + " ".join(f"--group {name}" for name in groups)
    lines += [f"    {command}", "", *_machines(groups), "", _HOW, ""]
    lines += ["- {}: {}".format(*EXPLAINED[regime]) for regime in dict.fromkeys(r.regime for r in rows)]
    lines += _noise(rows)
    found = gpu_verdicts(rows) if device == "cuda" else verdicts(rows)
    lines += ["", "## Goals", "", "Each goal is judged by its worst case.", "", *verdict_table(found)]
    speed = bandwidth(rows)
    if speed:
        lines += ["", f"Measured bandwidth of a copy: {speed / 1e9:.0f} GB/s, read and written."]
    for group, title in _TITLES.items():
        of_group = [r for r in rows if r.group == group]
        if of_group:
            lines += ["", f"## {title}", ""]
            if group in pictures:
                regimes = " and ".join(dict.fromkeys(r.regime for r in of_group))
                shown = of_group[0].regime if group == "grid" else regimes
                lines += [f"![{title}]({pictures[group]})", "", f"Regime of the figure: {shown}.", ""]
            table = _table(group, of_group)
            if group == "grid":
                # Some hundred lines: a page of their own.
                page = f"{NAMES[device]}-grid.md"
                write_text(
                    folder / page,
                    "\n".join([f"# {title}", "", f"Back to [the report]({NAMES[device]}.md).", "", *table, ""]),
                )
                table = [f"The numbers: [{page}]({page})."]
            lines += table
    return lines


def _table(group: str, rows: list[Row]) -> list[str]:
    if group == "growth":
        return growth_table({axis: growth_slopes(rows, axis) for axis in ("voxels", "classes")})
    if group in ("goals", "grid"):
        reference, of_what = _rival(rows), "MONAI's or torch's"
    elif group == "entropy":
        reference, of_what = _rival(rows), "torch's"
    elif group == "transform":
        return comparison_table(
            rows, lambda r: reference_of(r, rows, "SimpleITK", "signed_distance_map"), "SimpleITK's"
        )
    elif group == "hausdorff":
        small, large = [r for r in rows if r.size[0] <= 64], [r for r in rows if r.size[0] > 64]
        first = comparison_table(small, _rival(small), "MONAI's")
        return [*first, "", *comparison_table(large, _ours(large, "hausdorff_dt"), "hausdorff_dt's")]
    elif group == "lovasz":
        reference, of_what = lambda r: reference_of(r, rows, "kornia", "lovasz"), "kornia's"
    elif group == "instances":
        reference, of_what = _ours(rows, "dice+binary_cross_entropy"), "the inner loss's"
    else:
        reference, of_what = _ours(rows, "dice"), "our Dice's"
    return comparison_table(rows, reference, of_what)


def _noise(rows: list[Row]) -> list[str]:
    """How far the rounds differ: on a machine that others use, too, a median is worth less."""
    spreads = [(r.high - r.low) / r.total for r in rows if r.total and r.low is not None and r.high is not None]
    if not spreads:
        return []
    return [
        "",
        f"The middle half of a case's rounds spans {statistics.median(spreads):.0%} of its median (the median case).",
    ]


def _rival(rows: list[Row]) -> Reference:
    return lambda r: reference_of(r, rows, "MONAI", r.loss) or reference_of(r, rows, "torch", r.loss)


def _ours(rows: list[Row], loss: str) -> Reference:
    return lambda r: reference_of(r, rows, "medloss", loss)


def _machines(groups: dict[str, Group]) -> list[str]:
    """Where and when, once where all groups agree."""
    places: dict[str, list[str]] = {}
    for name, group in groups.items():
        place = "; ".join([*group.machine.values(), group.date])
        places.setdefault(place, []).append(name)
    if len(places) == 1:
        return [f"Machine: {next(iter(places))}."]
    return [f"- {', '.join(names)}: {place}." for place, names in places.items()]
