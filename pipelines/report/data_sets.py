"""The report over several data sets: comparisons' folders, and folders of reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import Metric
from pipelines.report.collect import check_results, from_folder
from pipelines.report.plots.base import BLUE, VERDICT_STYLE, WIDTH, Plot, drawn, name_rows, p_text, short
from pipelines.report.provenance import report_by
from pipelines.report.result_tables import TASK, read_results
from pipelines.report.write import remove_stale
from pipelines.runs.comparison_folder import read_plan
from pipelines.runs.plan import DEFAULT_REFERENCE, NO_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.data_sets import (
    DataSetResult,
    DataSetsAnalysis,
    analyse_data_sets,
    from_stored,
    result_of,
    stored_metrics,
)
from pipelines.statistics.table import CaseTable, check_table
from pipelines.statistics.verdict_text import NOT_CONTROLLED
from pipelines.utils import UserError
from pipelines.utils.figures import GRADIENT_COLOURS, NEIGHBOUR_GREY, figure, plain
from pipelines.utils.files import read_json, write_atomically, write_json, write_text

#: The page and the numbers; a folder of one report has other names.
PAGE, NUMBERS = "report.html", "analysis.json"
_EXPECTED = "expected the folder of a comparison, or of a report"


@dataclass(frozen=True)
class Source:
    """One data set before its analysis.

    Attributes:
        path: the folder or file.
        title: name of the data set.
        metric: primary metric of its own.
        reference: reference of its own; None: none.
        table: the results; None: only stored numbers are known.
        stored: content of `analysis.json`; None: the table is analysed.
        margin: margin of its own, for the sentence of each data set.
        empty: its rule for empty references.
    """

    path: Path
    title: str
    metric: str
    reference: str | None
    table: CaseTable | None = None
    stored: Mapping[str, Any] | None = None
    margin: float = 0.01
    empty: str = "one"

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases or patients."""
        if self.table is not None:
            return tuple(sorted(self.table.frame["case"].unique()))
        return tuple(sorted((self.stored or {}).get("patients", ())))


def read_source(folder: Path) -> Source:
    """Read the folder of a comparison or of a report.

    Raises:
        UserError: it is neither, or damaged.
    """
    if (plan := read_plan(folder)) is not None:
        collected = from_folder(folder)
        reference = collected.reference if collected.reference in collected.table.losses else None
        return Source(folder, plan.manifest_name, collected.metric, reference, collected.table, None, collected.margin,
                      collected.empty)  # fmt: skip
    try:
        stored = read_json(folder / NUMBERS)
        if stored is None:
            raise UserError(f"{folder}: has neither plan.json nor {NUMBERS}; {_EXPECTED}")
        return Source(folder, str(stored["title"]), str(stored["primary"]["metric"]), stored["reference"],
                      stored=stored)  # fmt: skip
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{folder / NUMBERS}: cannot be read; {_EXPECTED}: make the report again") from None


def task_sources(path: Path, columns: Mapping[str, str], metric: str | None) -> tuple[list[Source], str | None]:
    """The tasks of a table with several, as challengeR's, each as a data set, and what was made of the table.

    There are none if the table has one task, or no column of tasks.

    Raises:
        UserError: the table cannot be used.
    """
    found = read_results(path, columns, metric)
    if TASK not in found.frame.columns or found.frame[TASK].nunique() < 2:
        return [], None
    sources = []
    for task, frame in found.frame.groupby(TASK, sort=False):
        table = check_results(path, replace(found, frame=frame.reset_index(drop=True)))
        own = metric or ("dice" if "dice" in table.metrics else next(iter(table.metrics)))
        sources.append(Source(path, str(task), own, None, table))
    return sources, found.description


def combine(
    sources: Sequence[Source], metric: str | None = None, reference: str | None = None
) -> tuple[DataSetsAnalysis, Metric]:
    """Analyse several data sets together.

    Args:
        sources: two or more.
        metric: the metric; None: the primary metric that all share.
        reference: the reference loss, or `NO_REFERENCE`; None: the one that all share, or else `DEFAULT_REFERENCE`.

    Raises:
        UserError: the data sets have different metrics or references, and none was named; two are the same.
    """
    names = _names(sources)
    for i, source in enumerate(sources):
        for j in range(i):
            if source.title == sources[j].title and source.cases == sources[j].cases:
                raise UserError(
                    f"{sources[j].path} and {source.path} are of the same cases of {source.title}; expected different "
                    "data sets: runs on the same cases are one comparison, with several seeds"
                )
    if metric is None:
        own = {name: source.metric for name, source in zip(names, sources, strict=True)}
        if len(set(own.values())) > 1:
            listed = ", ".join(f"{name} {of}" for name, of in own.items())
            raise UserError(f"--metric: got none, and the primary metrics differ ({listed}); expected one for all")
        metric = sources[0].metric
    if metric not in METRICS or METRICS[metric].target is not None:
        raise UserError(f"--metric: got {metric}; expected a metric that losses can be compared by, such as dice")
    if reference is None:
        found = dict.fromkeys(source.reference for source in sources if source.reference is not None)
        if len(found) > 1:
            raise UserError(f"--reference: got none, and the references differ ({', '.join(found)}); expected one, or "
                            f"{NO_REFERENCE}")  # fmt: skip
        reference = next(iter(found), DEFAULT_REFERENCE)
        if not found and not any(DEFAULT_REFERENCE in _losses(source) for source in sources):
            reference = NO_REFERENCE
    every = list(dict.fromkeys(loss for source in sources for loss in _losses(source)))
    if reference not in (NO_REFERENCE, *every):
        raise UserError(
            f"--reference: got {reference}, which no data set has; expected {NO_REFERENCE} or one of {', '.join(every)}"
        )
    chosen = None if reference == NO_REFERENCE else reference
    results = [_result(name, source, metric, chosen) for name, source in zip(names, sources, strict=True)]
    return analyse_data_sets(results, METRICS[metric], chosen), METRICS[metric]


def _losses(source: Source) -> list[str]:
    if source.table is not None:
        return list(source.table.losses)
    assert source.stored is not None
    return [str(ranked["loss"]) for ranked in source.stored["primary"]["ranking"]]


def _names(sources: Sequence[Source]) -> list[str]:
    """Unique names: titles, with the folder where two are the same."""
    titles = [source.title for source in sources]
    named = [title if titles.count(title) == 1 else f"{title} ({source.path.resolve().name})"
             for title, source in zip(titles, sources, strict=True)]  # fmt: skip
    return [name if named.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(named)]


def _result(name: str, source: Source, metric: str, reference: str | None) -> DataSetResult:
    """The result of one data set: stored, if it has the metric with this reference, and else analysed."""
    table = source.table
    reference = reference if reference in _losses(source) else None
    if source.stored is not None:
        stored = source.stored
        same = reference is None or stored["reference"] == reference
        try:
            known = stored_metrics(stored)
            if same and metric in known:
                found = from_stored(name, stored, metric)
                return found if reference is not None else replace(found, differences={})
            if metric != source.metric:
                raise UserError(
                    f"{source.path}: its report has {', '.join(known)}, compared with {stored['reference']}; expected "
                    f"{metric}, compared with {reference}: make it again with --metric {metric} --reference {reference}"
                )
            if stored["trainings"] > 1:
                raise UserError(
                    f"{source.path}: its report compares with {stored['reference']}; expected {reference}: make it "
                    f"again with --reference {reference}"
                )
            rows = [(case, loss, value) for loss, values in stored["scores"].items()
                    for case, value in zip(stored["patients"], values, strict=True)]  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{source.path / NUMBERS}: cannot be read; make the report again") from None
        table = check_table(pd.DataFrame(rows, columns=["case", "loss", metric]), METRICS)
    assert table is not None
    if metric not in table.metrics:
        raise UserError(f"{source.path}: has no {metric}; it has {', '.join(table.metrics)}: name one by --metric")
    # Intervals of single means, for which the replicates are, are not used.
    analysis = analyse(
        table, metric=metric, reference=reference, margin=source.margin, empty=source.empty, bootstraps=1
    )
    return result_of(name, analysis)


# Plots.


def draw_heat_map(found: DataSetsAnalysis, metric: Metric) -> Figure:
    """Draw a loss per row and a data set per column: the difference from the reference, or else the rank."""
    losses = [one for one in found.losses if one.loss != found.reference]
    cells = np.full((len(losses), len(found.data_sets)), np.nan)
    texts = [["" for _ in found.data_sets] for _ in losses]
    for row, one in enumerate(losses):
        for column, result in enumerate(found.data_sets):
            if found.reference is not None and one.loss in result.differences:
                cells[row, column] = metric.sign * result.differences[one.loss][0]
                texts[row][column] = metric.shown(result.differences[one.loss][0], signed=True).removesuffix(
                    metric.unit
                )
            elif found.reference is None and result.name in one.ranks:
                cells[row, column] = -one.ranks[result.name]
                texts[row][column] = f"{one.ranks[result.name]:g}"
            elif one.loss in result.means:
                texts[row][column] = "no reference" if found.reference is not None else "no rank"
    drawn_ = figure(min(WIDTH, 3.6 + 1.15 * cells.shape[1]), 1.5 + 0.27 * len(losses))
    axes = drawn_.add_subplot()
    known = cells[np.isfinite(cells)]
    if found.reference is not None:
        # One extreme loss must not leave the others without colour.
        largest = float(np.quantile(np.abs(known), 0.75)) if known.size else 1.0
        low, high, colours = -(largest or 1.0), largest or 1.0, GRADIENT_COLOURS.reversed()
    else:
        # Up to a middle blue, on which black text can be read.
        low, high, colours = -float(len(losses)), float(len(losses)), matplotlib.colormaps["Blues"]
    axes.imshow(np.ma.masked_invalid(cells), aspect="auto", vmin=low, vmax=high, cmap=colours)
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            dark = found.reference is not None and abs(cells[row, column]) > 0.5 * high
            colour = "white" if dark else "black"
            axes.text(column, row, text or "–", ha="center", va="center", fontsize=7.5, color=colour)
    name_rows(axes, [one.loss for one in losses], None)
    axes.set_xticks(range(len(found.data_sets)), [short(result.name, 22) for result in found.data_sets], rotation=25,
                    ha="left")  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    plain(axes)
    return drawn_


def draw_pooled(found: DataSetsAnalysis, metric: Metric) -> Figure:
    """Draw a row per loss: the mean over data sets with its interval, the prediction interval, and each data set."""
    losses = [one for one in found.losses if one.pooled is not None]
    drawn_ = figure(WIDTH, 1.25 + 0.3 * len(losses))
    axes = drawn_.add_subplot()
    axes.axvline(0, color="black", linewidth=0.9)
    points = [result.differences[one.loss][0] for one in losses for result in found.data_sets
              if one.loss in result.differences]  # fmt: skip
    low, high = min(0.0, *points), max(0.0, *points)
    room = 0.15 * (high - low) or 0.01
    low, high = low - room, high + room
    for row, one in enumerate(losses):
        assert one.pooled is not None
        colour, marker = VERDICT_STYLE[one.verdict]
        for interval, width, alpha in ((one.pooled.prediction, 0.8, 0.7), (one.pooled.interval, 2.4, 1.0)):
            if interval is not None:
                ends = max(interval[0], low), min(interval[1], high)
                if ends[0] < ends[1]:
                    axes.plot(ends, [row, row], color=colour, linewidth=width, alpha=alpha, solid_capstyle="butt")
                for end, beyond, arrow in ((low, interval[0] < low, 4), (high, interval[1] > high, 5)):
                    if beyond:
                        axes.plot([end], [row], marker=arrow, color=colour, markersize=6, clip_on=False)
        each = [result.differences[one.loss][0] for result in found.data_sets if one.loss in result.differences]
        axes.plot(each, [row - 0.28] * len(each), "|", color=NEIGHBOUR_GREY, markersize=6)
        axes.plot([one.pooled.mean], [row], marker=marker, color=colour, markersize=7, linestyle="none")
        p = "" if one.p_adjusted is None or one.p_adjusted > 0.99 else f", p {p_text(one.p_adjusted)}"
        label = f" {one.verdict}{p}" + (f" ({one.pooled.data_sets})" if one.loss in found.lacking else "")
        axes.text(1.01, row, label, transform=axes.get_yaxis_transform(), va="center", color="#222222")
    name_rows(axes, [one.loss for one in losses], None)
    axes.set_xlim(low, high)
    better = "right" if metric.higher_is_better else "left"
    axes.set_xlabel(f"difference in {metric.heading} from {found.reference} ({better} is better)")
    return drawn_


def draw_ranks(found: DataSetsAnalysis, metric: Metric) -> Figure:
    """Draw a row per loss with a rank in all data sets: its ranks, and their mean."""
    losses = [one for one in found.losses if one.mean_rank is not None]
    drawn_ = figure(WIDTH, 1.1 + 0.27 * len(losses))
    axes = drawn_.add_subplot()
    for row, one in enumerate(losses):
        ranks = sorted(one.ranks.values())
        axes.plot([ranks[0], ranks[-1]], [row, row], color=NEIGHBOUR_GREY, linewidth=0.9)
        axes.plot(ranks, [row] * len(ranks), "|", color=NEIGHBOUR_GREY, markersize=10)
        axes.plot([one.mean_rank or 0.0], [row], "o", color=BLUE, markersize=7)
    name_rows(axes, [one.loss for one in losses], found.reference)
    axes.set_xlim(0.5, len(losses) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"rank by mean {metric.label} (1 is best): each data set, and mean")
    return drawn_


# The folder.


def write_data_sets(sources: Sequence[Source], out: Path, metric: str | None, reference: str | None) -> tuple[
    Path, DataSetsAnalysis
]:  # fmt: skip
    """Analyse several data sets, and write page, plots, tables and numbers; the page comes last.

    Raises:
        UserError: the data sets do not fit together, or the folder cannot be written.
    """
    found, of_metric = combine(sources, metric, reference)
    plots = {"heat_map": drawn("heat_map", partial(draw_heat_map, found, of_metric))}
    if any(one.mean_rank is not None for one in found.losses):
        plots["ranks"] = drawn("ranks", partial(draw_ranks, found, of_metric))
    if any(one.pooled is not None for one in found.losses):
        plots["pooled"] = drawn("pooled", partial(draw_pooled, found, of_metric))
    facts = [(result.name, f"{source.path}") for result, source in zip(found.data_sets, sources, strict=True)]
    facts.append(report_by())
    html = _page(found, of_metric, plots, facts)
    files = {f"plots/{name}.{kind}": content for name, plot in plots.items()
             for kind, content in (("svg", plot.svg.encode()), ("png", plot.png))}  # fmt: skip
    files["tables/data_sets.csv"] = _table(found).to_csv(index=False).encode()
    try:
        for name, content in files.items():
            write_atomically(out / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        remove_stale(out, set(files))
        stored = asdict(found) | {"title": "several data sets", "notes": list(found.caveats), "facts": dict(facts)}
        write_json(out / NUMBERS, stored)
        write_text(out / PAGE, html)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
    return out / PAGE, found


def _table(found: DataSetsAnalysis) -> pd.DataFrame:
    """A row per loss and data set."""
    rows = []
    for one in found.losses:
        for result in found.data_sets:
            difference, variance = result.differences.get(one.loss, (None, None))
            rows.append({
                "loss": one.loss, "data_set": result.name, "patients": result.patients,
                "mean": result.means.get(one.loss), "rank": one.ranks.get(result.name), "difference": difference,
                "standard_error": None if variance is None else variance**0.5,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _page(found: DataSetsAnalysis, metric: Metric, plots: Mapping[str, Plot], facts: Sequence[tuple[str, str]]) -> str:
    # Names come from untrusted tables.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip

    def span(interval: tuple[float, float] | None) -> str:
        if interval is None:
            return "–"
        return " to ".join(f"{end:+.{metric.decimals}f}" for end in interval)

    environment.filters |= {"span": span, "p": p_text}
    return environment.get_template("data_sets.html").render(
        found=found,
        metric=metric,
        plots={name: Markup(plot.inline()) for name, plot in plots.items()},
        facts=facts,
        not_controlled=NOT_CONTROLLED[:-1],
        friedman=_friedman(found),
    )


def _friedman(found: DataSetsAnalysis) -> str:
    if found.friedman is None or found.agreement is None:
        return ""
    p = p_text(found.friedman.p)
    return (
        f"Agreement of the data sets on the ranks: Kendall's W = {found.agreement:.2f} (1: all rank alike; 0: none "
        "does). Friedman's test with the data sets as blocks, in Iman and Davenport's form: p "
        f"{'' if p[0] in '<>' else '= '}{p}."
    )
