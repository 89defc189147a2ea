"""Rows as Markdown tables."""

from collections.abc import Callable

from benchmarks.cases import CACHING, FRESH, RECYCLED, Row
from benchmarks.goals import Verdict, share

Reference = Callable[[Row], Row | None]


def verdict_table(found: list[Verdict]) -> list[str]:
    """The goals: what was asked for, what the worst case gave."""
    lines = ["| what | goal | worst | which | verdict |", "| --- | ---: | ---: | --- | --- |"]
    for v in found:
        value = "" if v.value is None else f"{v.value:.2f}"
        sign = "≥" if v.at_least else "≤"
        lines.append(f"| {v.what} | {sign} {v.limit:g} | {value} | {v.where} | {v.text} |")
    return lines


def comparison_table(rows: list[Row], reference: Reference, of_what: str) -> list[str]:
    """A line a side: milliseconds (forward + backward) and the share of the reference's, a regime; memory.

    Args:
        rows: of one group.
        reference: the row that a row is compared with.
        of_what: whose time the shares are of.
    """
    regimes = [name for name in (FRESH, RECYCLED, CACHING) if any(r.regime == name for r in rows)]
    head = ["loss", "logits", "side", *(h for name in regimes for h in (f"{name}, ms", f"of {of_what}")), "peak"]
    lines = [_line(head), _line(["---"] * 3 + ["---:"] * (len(head) - 3))]
    keys = dict.fromkeys((r.loss, r.cached_map, r.size, r.batch, r.classes, r.dtype, r.side) for r in rows)
    for key in keys:
        same = [r for r in rows if (r.loss, r.cached_map, r.size, r.batch, r.classes, r.dtype, r.side) == key]
        cells = []
        for name in regimes:
            r = next((r for r in same if r.regime == name), None)
            cells += ["", ""] if r is None else [_time(r), _number(share(r, reference(r)))]
        peak = next((r.peak for r in same if r.peak is not None), None)
        loss = key[0] + (", map given" if key[1] else "")
        lines.append(_line([loss, _logits(same[0]), key[-1], *cells, _number(peak)]))
    return lines


def growth_table(slopes: dict[str, dict[tuple[str, str], float]]) -> list[str]:
    """Fitted slopes."""
    lines = ["| loss | regime | slope over voxels | slope over classes |", "| --- | --- | ---: | ---: |"]
    keys = dict.fromkeys([*slopes["voxels"], *slopes["classes"]])
    return lines + [_line([*key, *(_number(slopes[axis].get(key)) for axis in ("voxels", "classes"))]) for key in keys]


def _logits(r: Row) -> str:
    size = f"{r.size[0]}^{len(r.size)}" if len(set(r.size)) == 1 else " x ".join(map(str, r.size))
    return f"{r.batch} x {r.classes} x {size}" + ("" if r.dtype == "float32" else f" {r.dtype}")


def _time(r: Row) -> str:
    if r.total is None or r.forward is None or r.backward is None:
        return r.note
    return f"{1000 * r.total:.1f} ({1000 * r.forward:.1f} + {1000 * r.backward:.1f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
