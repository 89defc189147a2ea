"""What a comparison prints of its results: estimates while it runs, and at the end verdict, table and files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.comparison.execution import Comparison
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import RunState
from pipelines.runs.curve_checks import still_improving, still_improving_note, stood_still_notes
from pipelines.runs.plan import PlannedRun
from pipelines.runs.summary import Table, comparison_table, formatted_rows, screening_notes
from pipelines.utils.text import Column, counted, numbers, print_table

if TYPE_CHECKING:  # before a report is written, nothing waits for scipy
    from pipelines.statistics.paired import Comparison as Paired
    from pipelines.statistics.results import Analysis


@dataclass(frozen=True)
class Report:
    """The report of a comparison."""

    page: Path
    analysis: "Analysis"


@dataclass
class Estimates:
    """Means over the folds and seeds that all losses have finished, as a line each time another one has.

    They show where the comparison is heading. Nothing is tested: a verdict would be wrong too often if it could be read
    several times.
    """

    comparison: Comparison
    known: set[tuple[int, int]] | None = field(default=None)  #: folds with seeds that the lines so far are about

    def lines(self, states: list[RunState]) -> list[str]:
        """The line on what has finished since the last call; none at the first call, and none once all has finished."""
        blocks: dict[tuple[int, int], bool] = {}
        for state in states:
            block = (state.run.config.fold, state.run.config.seed)
            blocks[block] = blocks.get(block, True) and state.state == "done"
        finished = {block for block, ended in blocks.items() if ended}
        new, self.known = self.known is not None and finished - self.known, finished
        if not new or len(finished) == len(blocks):
            return []
        return self._line([s.run for s in states if (s.run.config.fold, s.run.config.seed) in finished], len(blocks))

    def _line(self, runs: list[PlannedRun], blocks: int) -> list[str]:
        plan = self.comparison.plan.model_copy(update={"runs": runs})
        table = comparison_table(self.comparison.folder, plan)
        metric = METRICS[plan.metric]
        known = table.rows.dropna(subset=[plan.metric])
        known = known.sort_values(plan.metric, ascending=not metric.higher_is_better)
        best = [f"{row['loss']} {metric.shown(row[plan.metric])}" for _, row in known.iterrows()]
        if not best:
            return []
        more = f" and {counted(len(best) - 6, 'loss')} more" if len(best) > 6 else ""
        done = len(runs) // len(plan.losses)
        return [
            f"so far ({done} of {blocks} folds x seeds, {counted(table.cases, 'case')}), mean {metric.label}: "
            f"{', '.join(best[:6])}{more}; no verdict before the end"
        ]


def print_results(comparison: Comparison, table: Table, report: Report | None) -> None:
    """Print the verdict, the table, what is to be known of it, and where the files are."""
    folder, plan = comparison.folder, comparison.plan
    title = f"{plan.manifest_name}: {len(plan.losses)} losses"
    if report is None:
        head, *body = formatted_rows(table)
    else:
        click.echo(f"\n{report.analysis.verdict}\n")
        head, *body = verdict_rows(table, report.analysis)
    print_table([Column(head[0]), *numbers(*head[1:])], body, title=title)
    for line in (*table.trained, table.caveat):
        click.echo(line)
    failed = [f"failed: {state.run.title}: {state.error}" for state in comparison.states if state.state == "failed"]
    improving = still_improving_note(plan, still_improving(folder, plan))
    for line in (*plan.told, *screening_notes(plan), *stood_still_notes(plan, table.still), *improving, *failed):
        click.echo(line)
    if report is not None:
        from pipelines.statistics.verdict_text import closing_notes

        for line in closing_notes(report.analysis):
            click.echo(line)
    click.echo("")
    if report is not None:
        click.echo(f"report    {report.page}  (open this in a browser)")
    click.echo(f"table     {folder / 'table.csv'}, {folder / 'table.md'}")
    click.echo(f"runs      {folder / 'runs'}")


def verdict_rows(table: Table, analysis: "Analysis") -> list[list[str]]:
    """The table with differences from the reference as text, its headings first; the primary metric's best mean first.

    Its columns: the primary metric, the difference with its 95 % interval and the word for it, the primary metric of
    the class that has the worst mean over all losses, HD95, and the cost. Losses that are not in the analysis, as no
    run has finished, come last.
    """
    metric, means = analysis.metric, table.rows.set_index("loss")
    compared = {one.loss: one for one in analysis.primary.comparisons}
    hardest = _hardest_class(analysis)
    of_class = {} if hardest is None else {one.loss: one.mean for one in analysis.classes[hardest].ranking}
    far = METRICS["hd95_mm"]
    distances = far.name in means.columns and analysis.primary.metric != far.name
    head = ["loss", metric.at_tolerance(table.tolerance).heading]
    head += ["difference (95 %)", "verdict"] if analysis.reference else ["ranks (95 %)"]
    head += [f"{metric.heading} {hardest}"] if hardest is not None else []
    head += [*([far.heading] if distances else []), "s/epoch", "runs"]
    ranked = {one.loss: one for one in analysis.primary.ranking}
    rows = []
    for loss in (*ranked, *(loss for loss in means.index if loss not in ranked)):
        row = means.loc[loss]
        cells = [loss]
        if loss in ranked:
            cells.append(f"{ranked[loss].mean:.{metric.decimals}f}")
        else:
            cells.append("failed" if loss in table.failed else "-")
        if analysis.reference:
            cells += (
                ["", "reference"] if loss == analysis.reference else _difference(compared.get(loss), metric.decimals)
            )
        else:
            low, high = ranked[loss].rank_set if loss in ranked else ("-", "-")
            cells.append(f"{low}" if low == high else f"{low} to {high}")
        if hardest is not None:
            cells.append(_number(of_class.get(loss), metric.decimals))
        if distances:
            cells.append(_number(row[far.name], far.decimals))
        rows.append([*cells, _number(row["epoch_s"], 1), row["runs"]])
    return [head, *rows]


def _difference(found: "Paired | None", decimals: int) -> list[str]:
    if found is None:
        return ["-", "-"]
    mean = f"{found.difference:+.{decimals}f}"
    if found.interval is None:
        return [mean, found.words]
    low, high = (f"{bound:+.{decimals}f}" for bound in found.interval)
    return [f"{mean} ({low} to {high})", found.words]


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None or value != value else f"{value:.{decimals}f}"


def _hardest_class(analysis: "Analysis") -> str | None:
    """The class with the worst mean of the primary metric over all losses; None if there is one class."""
    means = {
        name: sum(one.mean for one in found.ranking) / len(found.ranking) for name, found in analysis.classes.items()
    }
    return min(means, key=lambda name: analysis.metric.sign * means[name], default=None)
