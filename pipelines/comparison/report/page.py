"""The report's page: one HTML file that needs nothing beside it, no network and no script."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.overlays.every import Overlays
from pipelines.comparison.report.plots import PLOTS, Plot
from pipelines.comparison.report.plots.entry import written
from pipelines.comparison.statistics import NOT_CONTROLLED, Analysis, MetricAnalysis
from pipelines.evaluation.registry import METRICS


def page(
    analysis: Analysis, collected: Collected, plots: dict[str, Plot], overlays: Overlays, notes: tuple[str, ...]
) -> str:
    """The page as HTML.

    Args:
        analysis: what it tells.
        collected: of what.
        plots: by name; those that are not there are left out.
        overlays: pictures of single cases; with neither pictures nor notes the section is left out.
        notes: what has to be told before the analysis's own caveats.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Names come from tables of strangers.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"p": p_value, "interval": interval, "shown": shown, "number": number}
    environment.filters["trained"] = lambda loss: collected.names.get(loss, loss)
    primary = analysis.primary
    return environment.get_template("template.html").render(
        analysis=analysis,
        collected=collected,
        metric=analysis.metric,
        notes=notes,
        not_controlled=NOT_CONTROLLED,
        plots=_sections(analysis, plots),
        overlays=overlays,
        ranks={ranked.loss: ranked.rank for ranked in primary.ranking},
        rows=_rows(analysis, collected),
        gaps=any(ranked.failed or ranked.lacking for ranked in primary.ranking),
        misses=any(ranked.missed or ranked.false_alarms for ranked in primary.ranking),
        reach=_reach(analysis),
        friedman=_friedman(primary),
        classes=_grid(primary, analysis.classes, list(analysis.classes)),
        less_is_better=[METRICS[name].label for name in analysis.secondary if not METRICS[name].higher_is_better],
        secondary=_grid(primary, analysis.secondary, [METRICS[name].label for name in analysis.secondary]),
    )


def _sections(analysis: Analysis, plots: dict[str, Plot]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "title": written(PLOTS[name].title, analysis),
            "link": written(PLOTS[name].link, analysis),
            "note": written(PLOTS[name].note, analysis),
            # The SVG is made here, of text that matplotlib has escaped.
            "svg": Markup(plot.inline),
        }
        for name, plot in plots.items()
    ]


def p_value(p: float) -> str:
    """A p-value as text."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def shown(value: float | None, metric: str, signed: bool = False) -> str:
    """A value of a measure, with its unit."""
    return "–" if value is None else METRICS[metric].shown(value, signed=signed)


def interval(pair: tuple[float, float] | None, metric: str, signed: bool = False) -> str:
    """An interval as text; the unit once."""
    if pair is None:
        return "–"
    low, high = (f"{value:{'+' if signed else ''}.{METRICS[metric].decimals}f}" for value in pair)
    return f"{low} to {high}"


def number(value: float | None, digits: int = 1) -> str:
    """A number as text; whole ones, as most ranks are, without digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.{digits}f}"


def _rows(analysis: Analysis, collected: Collected) -> list[dict[str, Any]]:
    """The ranking table."""
    words = {own.loss: own for own in analysis.primary.comparisons}
    return [
        {
            "ranked": ranked,
            "resampled": analysis.primary.bootstrap.losses[ranked.loss],
            "comparison": words.get(ranked.loss),
            "cost": (collected.costs or {}).get(ranked.loss),
            "still": [one for one in collected.still if one.run.config.loss == ranked.loss],
        }
        for ranked in analysis.primary.ranking
    ]


def _grid(primary: MetricAnalysis, analyses: dict[str, MetricAnalysis], heads: list[str]) -> dict[str, Any]:
    """A row a loss, a column an analysis."""
    rows = []
    for place in primary.ranking:
        cells = []
        for own in analyses.values():
            ranked = next(one for one in own.ranking if one.loss == place.loss)
            compared = next((one for one in own.comparisons if one.loss == place.loss), None)
            cells.append(
                {
                    "metric": own.metric,
                    "mean": ranked.mean,
                    "interval": own.bootstrap.losses[place.loss].mean_interval,
                    "best": ranked.rank == own.ranking[0].rank,
                    "compared": compared,
                }
            )
        rows.append((place.loss, cells))
    return {"heads": [(head, own.patients) for head, own in zip(heads, analyses.values(), strict=True)], "rows": rows}


def _reach(analysis: Analysis) -> str | None:
    """What could be seen at all, as a sentence."""
    reach, metric = analysis.primary.reach, analysis.metric
    if reach.difference is None or reach.sd is None:
        return None
    text = (
        f"What could be seen at all: with these {reach.cases} {analysis.unit}s a comparison with the reference finds, "
        f"with 80 % power, a true mean difference of {metric.shown(reach.difference)}"
    )
    if reach.difference_family is not None and len(analysis.primary.comparisons) > 1:
        text += f" alone, and of {metric.shown(reach.difference_family)} as one of {len(analysis.primary.comparisons)}"
    return f"{text} (the differences' standard deviation is {metric.shown(reach.sd)})."


def _friedman(primary: MetricAnalysis) -> str | None:
    test = primary.omnibus.friedman
    if test is None:
        return None
    f = f"F({test.freedom[0]}, {test.freedom[1]}) {'is infinite' if test.f is None else f'= {test.f:.2f}'}"
    p = p_value(test.p)
    return f"Friedman's test in Iman and Davenport's form: {f}, p {p if p.startswith('<') else f'= {p}'}."
