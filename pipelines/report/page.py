"""The report's page, one HTML file, and its tables."""

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import Collected
from pipelines.report.overlays import Overlays
from pipelines.report.plots import PLOTS
from pipelines.report.plots.base import Plot, written
from pipelines.statistics.results import Analysis, MetricAnalysis
from pipelines.statistics.verdict_text import NOT_CONTROLLED

# The report's tables, as data frames: what the page shows, in full, and the plots' numbers.

#: Every table that a report can have.
NAMES = (
    "ranking", "comparisons", "pairs", "groups", "classes", "secondary", "claim_check", "costs", "failures",
    "learning_curves", "learning_rates", "overlays",
)  # fmt: skip


def every_table(analysis: Analysis, collected: Collected) -> dict[str, pd.DataFrame]:
    """What there is something to tell of: name -> table."""
    tables = {
        "ranking": _ranking(analysis.primary),
        "comparisons": _comparisons(analysis.primary),
        "pairs": _pairs(analysis.primary),
        "groups": pd.DataFrame(
            [
                {"group": number, "loss": loss}
                for number, group in enumerate(analysis.primary.omnibus.groups, 1)
                for loss in group
            ]
        ),
        "classes": _others(analysis.classes.values()),
        "secondary": _others(analysis.secondary.values()),
        "claim_check": claim_check(analysis),
        "costs": pd.DataFrame(
            [
                {"loss": loss, "epoch_s": own.epoch_s, "peak_mb": own.peak_mb, "seconds": own.seconds, "runs": own.runs}
                for loss, own in (collected.costs or {}).items()
            ]
        ),
        "failures": pd.DataFrame([vars(failure) for failure in collected.failures]),
        "learning_curves": pd.DataFrame(
            [
                {"loss": curve.loss, "fold": curve.fold, "seed": curve.seed, "failed": curve.failed, **row}
                for curve in collected.curves
                for row in curve.epochs
            ]
        ),
        "learning_rates": pd.DataFrame(
            [
                {**own.model_dump(), "chosen": tuning.chosen.get(own.loss) == own.rate}
                for tuning in (collected.tuning,)
                if tuning is not None
                for own in tuning.tried
            ]
        ),
    }
    return {name: table for name, table in tables.items() if len(table)}


def claim_check(analysis: Analysis) -> pd.DataFrame:
    """A row a patient, a column a loss, as public checkers of claims read it; a failure counts as the worst."""
    columns = {f"alg_{loss}": values for loss, values in analysis.scores.items()}
    return pd.DataFrame({"case_id": analysis.patients, **columns})


def _ranking(own: MetricAnalysis) -> pd.DataFrame:
    rows = []
    for ranked in own.ranking:
        resampled = own.bootstrap.losses[ranked.loss]
        rows.append(
            {
                "loss": ranked.loss,
                "rank": ranked.rank,
                "mean": ranked.mean,
                **_interval("mean", resampled.mean_interval),
                "median": ranked.median,
                "sd": ranked.sd,
                "average_rank": ranked.average_rank,
                **_interval("rank", ranked.rank_set),
                "p_first": resampled.p_first,
                "failed": ranked.failed,
                "lacking": len(ranked.lacking),
                "missed": ranked.missed,
                "false_alarms": ranked.false_alarms,
            }
        )
    return pd.DataFrame(rows)


def _comparisons(own: MetricAnalysis) -> pd.DataFrame:
    rows = []
    for comparison in own.comparisons:
        row = dict(vars(comparison))
        row |= _interval("difference", row.pop("interval"))
        variance = row.pop("variance")
        row |= {} if variance is None else {f"variance_{name}": value for name, value in vars(variance).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _pairs(own: MetricAnalysis) -> pd.DataFrame:
    matrix = own.omnibus
    return pd.DataFrame(
        [
            {"loss": first, "other": second, "p": matrix.p[i][j], "p_adjusted": matrix.p_adjusted[i][j]}
            for i, first in enumerate(matrix.losses)
            for j, second in enumerate(matrix.losses)
            if i < j
        ]
    )


def _others(analyses: Any) -> pd.DataFrame:
    blocks = []
    for own in analyses:
        compared = _comparisons(own)
        ranking = _ranking(own)
        if len(compared):
            columns = ["loss", "difference", "difference_low", "difference_high", "p", "p_adjusted", "verdict"]
            ranking = ranking.merge(compared[columns], on="loss", how="left")
        ranking.insert(0, "class", own.class_name or "")
        ranking.insert(0, "metric", own.metric)
        blocks.append(ranking)
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()


def _interval(name: str, interval: tuple[float, float] | tuple[int, int] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


# The report's page: one HTML file that needs nothing beside it, no network and no script.


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
