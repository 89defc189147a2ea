"""For a paper: a methods paragraph and tables, in LaTeX and Markdown, from what was done, with the works they cite."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.evaluation.metrics import METRICS
from pipelines.report.citations import METRIC_WORKS, WORKS, loss_work
from pipelines.report.collect import Collected
from pipelines.statistics.mean_difference import FLIPS
from pipelines.statistics.results import Analysis, MetricAnalysis, Ranked
from pipelines.utils.text import counted, in_words

#: Up to this number of losses, the paragraph names all.
_NAMED = 12
#: A citation in a text: `[[key]]`, or `[[key,key]]`.
_CITED = re.compile(r" ?\[\[([\w,]+)\]\]")


@dataclass(frozen=True)
class Paper:
    """The files for a paper, by name, and the methods paragraphs as text with `[@key]` for citations."""

    files: dict[str, str]
    paragraphs: tuple[str, ...]


def paper(analysis: Analysis, collected: Collected) -> Paper:
    """Write paragraphs and tables."""
    losses = _loss_works(collected)
    texts = [
        text
        for text in (_data(analysis, collected, losses), _metrics(analysis, collected), _tests(analysis, collected))
        if text
    ]
    keys = dict.fromkeys(key for text in texts for found in _CITED.findall(text) for key in found.split(","))
    entries = [losses[key] if key in losses else WORKS[key] for key in keys]
    markdown = "\n\n".join(
        _cited(text, _markdown, lambda cited: " [@" + "; @".join(cited.split(",")) + "]") for text in texts
    )
    latex = "\n\n".join(_cited(text, _latex, lambda cited: rf"~\cite{{{cited}}}") for text in texts)
    tables = _tables(analysis, collected)
    return Paper(
        files={
            "methods.md": markdown + "\n",
            "methods.tex": latex + "\n",
            "table.md": "\n".join(_markdown_table(*table) for table in tables),
            "table.tex": "% \\usepackage{booktabs}\n" + "\n".join(_latex_table(*table) for table in tables),
            "references.bib": "\n\n".join(entries) + "\n",
        },
        paragraphs=tuple(_cited(text, str, _on_page) for text in texts),
    )


def _on_page(cited: str) -> str:
    keys = cited.split(",")
    return f" [{', '.join(keys)}]" if len(keys) < 4 else f" [{len(keys)} works, see the references]"


def _cited(text: str, written: Callable[[str], str], cite: Callable[[str], str]) -> str:
    """A text with its citations in one format, and everything else in that of the file."""
    pieces = _CITED.split(text)  # text and citation in turn
    return "".join(cite(piece) if place % 2 else written(piece) for place, piece in enumerate(pieces))


def _loss_works(collected: Collected) -> dict[str, str]:
    """The papers of our losses among those that were compared, as BibTeX by key."""
    from medloss.names import loss_names

    known = set(loss_names())
    trained = [collected.names.get(loss) or loss for loss in collected.table.losses]
    used = [word for loss in trained for word in re.findall(r"[A-Za-z_]\w*", loss) if word in known]
    if not used:
        return {}
    from medloss import LOSSES  # not above: it imports torch

    return dict(loss_work(name, LOSSES[name].paper) for name in dict.fromkeys(used))


# The paragraphs.


def _data(analysis: Analysis, collected: Collected, works: dict[str, str]) -> str:
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    names = f" ({in_words(losses, _NAMED)})" if len(losses) <= _NAMED else ""
    cited = f" [[{','.join(works)}]]" if works else ""
    facts = dict(collected.facts)
    text = (
        f"We compared {counted(len(losses), 'loss function')}{names}{cited} on {_units(analysis)} of {collected.title}"
    )
    if analysis.trainings > 1 and analysis.folds > 1:
        text += (
            f"; each was trained {analysis.trainings} times, in {counted(analysis.folds, 'fold')} with "
            f"{counted(analysis.seeds, 'seed')} each, and evaluated on the {analysis.unit}s of the "
            "fold that was held out."
        )
    elif analysis.trainings > 1:
        text += f"; each was trained with {counted(analysis.seeds, 'seed')}."
    else:
        text += "; the results are those of one trained network per loss."
    if collected.costs:
        trainer = " with nnU-Net [[isensee2021]]" if "trainer" in facts else " with MONAI [[monai2022]]"
        known = ("network", "epochs", "optimizer", "learning rate", "batch size", "patch, voxels", "training grid, mm")
        recipe = [f"{name} {facts[name]}" for name in known if facts.get(name)]
        settings = f" ({'; '.join(recipe)})" if recipe else ""
        text += f" The networks were trained{trainer}{settings}."
        if collected.tuning is not None and collected.tuning.over:
            text += f" Learning rates were chosen per loss on fold {collected.tuning.fold}, outside the comparison."
    return text


def _units(analysis: Analysis) -> str:
    return counted(analysis.primary.patients, analysis.unit)


def _metrics(analysis: Analysis, collected: Collected) -> str:
    metric = analysis.metric
    named = ", named before training," if collected.reference is not None and collected.metric == metric.name else ""
    of_classes = f", averaged over the {len(analysis.classes)} foreground classes" if analysis.classes else ""
    text = f"The primary metric{named} was {_metric(analysis, metric.name)}{of_classes}"
    others = [_metric(analysis, name) for name in analysis.secondary]
    text += f"; secondary metrics were {in_words(others, 40)}." if others else "."
    shown = {metric.name, *analysis.secondary}
    if (collected.costs or "references" in dict(collected.facts)) and shown & {"hd95_mm", "assd_mm", "nsd"}:
        text += " Distances between surfaces are those between the voxels of both surfaces, in mm."
    if analysis.primary.empty:
        rule = {
            "one": "an empty prediction counted as perfect and any other as the worst value",
            "exclude": "the class was left out for all losses",
            "worst": "an empty prediction counted as the worst value",
        }[analysis.empty]
        cases = counted(len(analysis.primary.empty), "case")
        text += f" Where the reference contained nothing of a class ({cases}), {rule}."
    failed = sum(ranked.failed + len(ranked.lacking) for ranked in analysis.primary.ranking)
    text += " Failed and missing predictions counted as the worst value"
    text += f" ({failed} over all losses)." if failed else "; there were none."
    return text


def _metric(analysis: Analysis, name: str) -> str:
    """`NSD (1 mm) [[nikolov2021]]`."""
    metric = analysis.metrics[name]
    work = METRIC_WORKS.get(name)
    label = metric.heading
    if metric.by_tolerance and metric.tolerance is None:
        label += " (tolerance not recorded)"
    return label + (f" [[{work}]]" if work else "")


def _tests(analysis: Analysis, collected: Collected) -> str:
    primary, metric, n = analysis.primary, analysis.metric, analysis.primary.patients
    if n < 2:
        return f"With one {analysis.unit}, no test was possible."
    patterns = f"all {2 ** (n - 1):,}" if 2 ** (n - 1) <= FLIPS else f"{FLIPS:,} random"
    size = len(primary.omnibus.losses)
    compared, family = f"each loss with the reference, {analysis.base},", counted(len(primary.contrasts), "comparison")
    if analysis.reference is None:
        compared, family = "each pair of losses", f"all {counted(size * (size - 1) // 2, 'pair')}"
        if size == 2:
            compared, family = "the two losses", "the only comparison"
    text = (
        f"The {analysis.unit} was the statistical unit. We compared {compared} by the mean paired difference over "
        f"{analysis.unit}s, with Student's statistic corrected for skewness [[johnson1978,hall1992]] and p-values from "
        f"{patterns} joint sign flips, adjusted over {family} by step-down max-T [[westfall1993]]. "
    )
    if analysis.trainings > 1:
        text += (
            f"The variance of a mean difference was split into {analysis.unit}, retraining and fold, each with its own "
            "degrees of freedom [[howe1974]]; the adjusted p-value is the larger of that of the sign flips and that "
            "over runs, adjusted by Holm's method [[holm1979]]. "
        )
    text += (
        "The 95 % confidence intervals of differences are the wider of Student's and of the inverse of the corrected "
        "statistic. A loss was called better or worse if the adjusted p-value was at most 0.05 and the interval "
        "excluded 0"
    )
    if analysis.reference is not None:
        margin = metric.shown(analysis.margin)
        planned = collected.reference is not None and collected.margin == analysis.margin
        before = ", a margin named before training" if planned else ""
        text += (
            f", and non-inferior if a one-sided test at 2.5 % excluded a mean worse by {margin}{before}"
            if analysis.non_inferior
            else f", and equivalent if two one-sided tests at 2.5 % [[schuirmann1987]] showed the mean difference to "
            f"lie within {margin}{before}"
        )
    text += (
        f". Intervals of single means are expanded percentile intervals [[hesterberg2015]] of {analysis.bootstraps:,} "
        f"bootstrap replicates of {analysis.unit}s{' and seeds' if analysis.seeds > 1 else ''} (seed {analysis.seed})."
    )
    if size > 2:
        text += (
            " All pairs were tested in the same way as one family; sets of ranks [[mogstad2024]] and the groups of the "
            "critical-difference diagram [[demsar2006]] follow from them."
        )
    if primary.contrasts:
        text += (
            " Wilcoxon's signed-rank test [[wilcoxon1945,pratt1959]] with Holm's adjustment [[holm1979]] is reported "
            "in addition and decided nothing."
        )
    if size > 2 and primary.omnibus.friedman is not None:
        text += " Friedman's test in the form of Iman and Davenport [[iman1980]] is reported, too."
    reach = primary.reach
    detectable = reach.difference if len(primary.contrasts) == 1 else reach.difference_family
    if detectable is not None:
        text += (
            f" With {_units(analysis)}, a true mean difference of {metric.shown(detectable)} would be detected with "
            "80 % power."
        )
    return text


# The tables.

_Table = tuple[str, list[str], list[list[str]]]


def _tables(analysis: Analysis, collected: Collected) -> list[_Table]:
    """Title, headings and rows of the ranking, and of the other metrics."""
    primary, metric = analysis.primary, analysis.metric
    compared = {one.loss: one for one in primary.contrasts}
    heads = ["Loss", f"{metric.heading}, mean [95 % CI]", "Median", "SD"]
    heads += ["Difference [95 % CI]", "Adjusted p", "Verdict"] if compared else []
    heads += ["Ranks", "Misses"] + (["s/epoch"] if collected.costs else [])
    rows = []
    for ranked in primary.ranking:
        row = [ranked.loss, _mean(primary, ranked), f"{ranked.median:.{metric.decimals}f}"]
        row.append("" if ranked.sd is None else f"{ranked.sd:.{metric.decimals}f}")
        one = compared.get(ranked.loss)
        if one is not None:
            row += [_with_interval(one.difference, one.interval, metric.decimals, "+"), _p(one.p_adjusted), one.words]
        elif compared:
            row += ["reference" if analysis.reference else "compared with", "", ""]
        low, high = ranked.rank_set
        row += [f"{low}" if low == high else f"{low}-{high}", str(ranked.missed)]
        cost = collected.costs.get(ranked.loss)
        if collected.costs:
            row.append("" if cost is None or cost.epoch_s is None else f"{cost.epoch_s:.1f}")
        rows.append(row)
    title = f"{metric.label} of {counted(len(rows), 'loss')} on {_units(analysis)} of {collected.title}."
    tables = [(title, heads, rows)]
    if analysis.secondary:
        others = list(analysis.secondary.values())
        means = [{ranked.loss: _mean(other, ranked) for ranked in other.ranking} for other in others]
        headings = [analysis.metrics[other.metric].heading for other in others]
        tables.append(
            (
                "Other metrics (secondary), mean [95 % CI].",
                ["Loss", *headings],
                [[ranked.loss, *(mean[ranked.loss] for mean in means)] for ranked in primary.ranking],
            )
        )
    return tables


def _mean(analysed: MetricAnalysis, ranked: Ranked) -> str:
    interval = analysed.bootstrap.losses[ranked.loss].mean_interval
    return _with_interval(ranked.mean, interval, METRICS[analysed.metric].decimals)


def _with_interval(value: float, interval: tuple[float, float] | None, decimals: int, sign: str = "") -> str:
    text = f"{value:{sign}.{decimals}f}"
    return text if interval is None else f"{text} [{', '.join(f'{bound:{sign}.{decimals}f}' for bound in interval)}]"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _markdown_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    cells = [[_markdown(cell) if number != 1 else cell for cell in line] for number, line in enumerate(lines)]
    return f"{_markdown(title)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _latex_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = (" & ".join(map(_latex, line)) + r" \\" for line in (heads, *rows))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", head, r"\midrule", *body]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", " ".join(text.split()) if "\n" in text else text)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
} | {mark: f"\\{mark}" for mark in "&%$#_"}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in (" ".join(text.split()) if "\n" in text else text))
