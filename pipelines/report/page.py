"""The page of the report, one HTML file, and its tables."""

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines.evaluation.calibration import loss_rows
from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import Collected
from pipelines.report.first_screen import first_facts
from pipelines.report.hardest_cases import case_rows, pictured, shown_losses
from pipelines.report.overlays import Overlays
from pipelines.report.paper import Paper
from pipelines.report.plots import PLOTS
from pipelines.report.plots.base import Plot
from pipelines.report.several_metrics import agreement_rows, metric_rows, rank_table
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.results import Analysis, MetricAnalysis
from pipelines.statistics.verdict_text import NOT_CONTROLLED
from pipelines.utils.text import in_words

#: Every table that a report can have.
TABLES = (
    "ranking", "comparisons", "pairs", "groups", "classes", "secondary", "claim_check", "costs", "failures",
    "learning_curves", "learning_rates", "overlays", "metrics", "metric_agreement", "calibration", "subgroups",
)  # fmt: skip


def every_table(analysis: Analysis, collected: Collected) -> dict[str, pd.DataFrame]:
    """All tables of a report that are not empty, by name."""
    tuning, omnibus = collected.tuning, analysis.primary.omnibus
    rows: dict[str, list[dict[str, Any]]] = {
        "ranking": _ranking(analysis.primary),
        "comparisons": _comparisons(analysis.primary),
        "pairs": _pairs(analysis.primary),
        "groups": [{"group": i, "loss": loss} for i, group in enumerate(omnibus.groups, 1) for loss in group],
        "classes": _secondary(analysis.classes.values()),
        "secondary": _secondary(analysis.secondary.values()),
        "metrics": metric_rows(analysis),
        "metric_agreement": agreement_rows(analysis),
        "calibration": [row for loss, found in collected.calibration.items() for row in loss_rows(loss, found)],
        "subgroups": _subgroups(analysis),
        "costs": [{"loss": loss, **vars(cost)} for loss, cost in collected.costs.items()],
        "failures": [vars(failure) for failure in collected.failures],
        "learning_curves": [
            {"loss": curve.loss, "fold": curve.fold, "seed": curve.seed, "failed": curve.failed, **row}
            for curve in collected.curves
            for row in curve.epochs
        ],
        "learning_rates": [
            {**trial.model_dump(), "chosen": tuning.chosen.get(trial.loss) == trial.rate} for trial in tuning.tried
        ]
        if tuning is not None
        else [],
    }
    tables = {name: pd.DataFrame(of_table) for name, of_table in rows.items()} | {"claim_check": claim_check(analysis)}
    return {name: table for name, table in tables.items() if len(table)}


def claim_check(analysis: Analysis) -> pd.DataFrame:
    """The table that public claim checkers read: a row per patient, a column per loss; failures count as the worst."""
    columns = {f"alg_{loss}": values for loss, values in analysis.scores.items()}
    return pd.DataFrame({"case_id": analysis.patients, **columns})


def _ranking(analysed: MetricAnalysis) -> list[dict[str, Any]]:
    rows = []
    for ranked in analysed.ranking:
        resampled = analysed.bootstrap.losses[ranked.loss]
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
    return rows


def _comparisons(analysed: MetricAnalysis) -> list[dict[str, Any]]:
    rows = []
    for comparison in analysed.comparisons:
        row = dict(vars(comparison))
        row |= _interval("difference", row.pop("interval"))
        variance = row.pop("variance")
        if variance is not None:
            outlying = in_words(variance.outlying)
            row |= {f"variance_{name}": value for name, value in (vars(variance) | {"outlying": outlying}).items()}
        rows.append(row)
    return rows


def _pairs(analysed: MetricAnalysis) -> list[dict[str, Any]]:
    pairs = analysed.omnibus
    return [
        {"loss": pairs.losses[i], "other": pairs.losses[j], "p": pairs.p[i][j], "p_adjusted": pairs.p_adjusted[i][j]}
        for i, j in combinations(range(len(pairs.losses)), 2)
    ]


def _secondary(analyses: Iterable[MetricAnalysis]) -> list[dict[str, Any]]:
    columns = ("difference", "difference_low", "difference_high", "p", "p_adjusted", "verdict")
    rows = []
    for analysed in analyses:
        compared = {row["loss"]: row for row in _comparisons(analysed)}
        for row in _ranking(analysed):
            start = {"metric": analysed.metric, "class": analysed.class_name or ""}
            of_loss = compared.get(row["loss"], {})
            rows.append(start | row | {name: of_loss.get(name) for name in columns if compared})
    return rows


def _subgroups(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {"variable": of.variable, "loss": one.loss, "group": group.group, "patients": group.patients,
         "difference": group.difference, **_interval("difference", group.interval), "p_interaction": one.p,
         "p_interaction_adjusted": one.p_adjusted}
        for of in analysis.subgroups for one in of.interactions for group in one.groups
    ]  # fmt: skip


def _interval(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


# The page: one HTML file that needs no other file and no network, and works without its script.

#: Sorts tables, and opens what is closed for printing. The page runs no other script, whatever names contain.
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_SCRIPT_HASH = f"sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}"


def page(
    analysis: Analysis,
    collected: Collected,
    plots: dict[str, Plot],
    overlays: Overlays,
    paper: Paper,
    tables: Iterable[str],
    notes: tuple[str, ...],
) -> str:
    """The page as HTML.

    Args:
        analysis: the analysis that the page presents.
        collected: the results that were analysed.
        plots: the plots by name, in the order of the page.
        overlays: pictures of individual cases; without pictures and notes the section is left out.
        paper: paragraphs and tables for a paper.
        tables: names of the tables that are written next to the page.
        notes: notes that come before the caveats of the analysis.
    """
    # Names come from untrusted tables.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"p": _p, "interval": _span, "shown": _shown, "bare": _bare, "number": _number}
    environment.filters["name"] = _breakable
    primary = analysis.primary
    links = pictured(analysis, collected, overlays)
    shown = [
        # The SVG is made by matplotlib, which escapes all text.
        {"name": name, "svg": Markup(plot.inline(links))}
        | {kind: PLOTS[name].text(kind, analysis) for kind in ("title", "link", "note")}
        for name, plot in plots.items()
    ]
    return environment.get_template("template.html").render(
        analysis=analysis,
        collected=collected,
        metric=analysis.metric,
        notes=notes,
        not_controlled=NOT_CONTROLLED,
        script=Markup(SCRIPT),
        script_hash=_SCRIPT_HASH,
        facts=first_facts(analysis, collected),
        plots=shown,
        forest=next((plot for plot in shown if plot["name"] == "forest"), None),
        case_losses=shown_losses(analysis),
        case_rows=case_rows(analysis, links),
        paper=paper,
        tables=tables,
        pairs_note=_pairs_note(analysis),
        overlays=overlays,
        several=rank_table(analysis),
        ranks={ranked.loss: ranked.rank for ranked in primary.ranking},
        rows=_rows(analysis, collected),
        gaps=any(ranked.failed or ranked.lacking for ranked in primary.ranking),
        misses=any(ranked.missed or ranked.false_alarms for ranked in primary.ranking),
        detectable=_detectable(analysis),
        friedman=_friedman(primary),
        classes=_grid(primary, analysis.classes, analysis.classes),
        less_is_better=[METRICS[name].label for name in analysis.secondary if not METRICS[name].higher_is_better],
        secondary=_grid(primary, analysis.secondary, [_label(analysis, name) for name in analysis.secondary]),
    )


def _label(analysis: Analysis, name: str) -> str:
    """A metric's label, with its tolerance, if known."""
    metric = analysis.metrics[name]
    return metric.label if metric.tolerance is None else metric.heading


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _shown(value: float | None, metric: str, signed: bool = False) -> str:
    return "–" if value is None else METRICS[metric].shown(value, signed=signed)


def _span(pair: tuple[float, float] | None, metric: str, signed: bool = False) -> str:
    if pair is None:
        return "–"
    low, high = (f"{value:{'+' if signed else ''}.{METRICS[metric].decimals}f}" for value in pair)
    return f"{low} to {high}"


def _bare(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{value:.{METRICS[metric].decimals}f}"


def _breakable(name: str) -> Markup:
    """A loss's name that may break after `_` and `+`, and is copied as it is."""
    return Markup(re.sub(r"([_+])", r"\1<wbr>", str(escape(name))))


def _number(value: float | None, digits: int = 1) -> str:
    """A number as text; whole numbers, such as most ranks, without decimals."""
    if value is None:
        return "–"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.{digits}f}"


def _rows(analysis: Analysis, collected: Collected) -> list[dict[str, Any]]:
    """The rows of the ranking table."""
    comparisons = {compared.loss: compared for compared in analysis.primary.comparisons}
    return [
        {
            "ranked": ranked,
            "trained_as": trained if (trained := collected.names.get(ranked.loss)) != ranked.loss else None,
            "resampled": analysis.primary.bootstrap.losses[ranked.loss],
            "comparison": comparisons.get(ranked.loss),
            "cost": collected.costs.get(ranked.loss),
            "stood_still": [still for still in collected.still if still.run.config.loss == ranked.loss],
        }
        for ranked in analysis.primary.ranking
    ]


def _grid(primary: MetricAnalysis, analyses: dict[str, MetricAnalysis], heads: Iterable[str]) -> dict[str, Any]:
    """A table with a row per loss and a column per analysis."""
    rows: dict[str, list[dict[str, Any]]] = {ranked.loss: [] for ranked in primary.ranking}
    for analysed in analyses.values():
        compared = {comparison.loss: comparison for comparison in analysed.comparisons}
        for ranked in analysed.ranking:
            rows[ranked.loss].append(
                {
                    "metric": analysed.metric,
                    "mean": ranked.mean,
                    "interval": analysed.bootstrap.losses[ranked.loss].mean_interval,
                    "best": ranked.rank == analysed.ranking[0].rank,
                    "compared": compared.get(ranked.loss),
                }
            )
    patients = [analysed.patients for analysed in analyses.values()]
    return {"heads": list(zip(heads, patients, strict=True)), "rows": rows.items()}


def _detectable(analysis: Analysis) -> str | None:
    """The detectable differences as a sentence."""
    reach, metric = analysis.primary.reach, analysis.metric
    if reach.difference is None or reach.sd is None:
        return None
    text = (
        f"Detectable difference: with {reach.cases} {analysis.unit}s, a single comparison "
        f"{'with the reference' if analysis.reference else 'of two losses'} detects a true mean difference of "
        f"{metric.shown(reach.difference)} with 80 % power"
    )
    if reach.difference_family is not None and len(analysis.primary.comparisons) > 1:
        comparisons = len(analysis.primary.comparisons)
        text += f", and each of the {comparisons} comparisons one of {metric.shown(reach.difference_family)}"
    return f"{text} (standard deviation of the differences: {metric.shown(reach.sd)})."


def _pairs_note(analysis: Analysis) -> str | None:
    """What there is to say of all pairs if there is no matrix of them; of two losses, the only share of replicates."""
    pairs, first = analysis.primary.omnibus, analysis.primary.ranking[0]
    if len(pairs.losses) == 2:
        share = analysis.primary.bootstrap.losses[first.loss].p_first
        return f"{first.loss} has the better mean in {100 * share:.1f} % of the bootstrap replicates."
    least = min(p for row, of_row in enumerate(pairs.p_adjusted) for p in of_row[:row])
    return None if least <= ALPHA else f"No pair of losses differs significantly (smallest adjusted p: {_p(least)})."


def _friedman(primary: MetricAnalysis) -> str | None:
    test = primary.omnibus.friedman
    if test is None:
        return None
    f = f"F({test.freedom[0]}, {test.freedom[1]}) {'is infinite' if test.f is None else f'= {test.f:.2f}'}"
    p = _p(test.p)
    return f"Friedman's test in Iman and Davenport's form: {f}, p {p if p.startswith('<') else f'= {p}'}."
