"""The table at the end of a comparison: one row a loss."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.comparison.plan import Plan, run_folder
from pipelines.comparison.statistics.metrics import having, in_report_order
from pipelines.comparison.stood_still import StoodStill, stood_still
from pipelines.evaluation.registry import METRICS
from pipelines.files import write_text
from pipelines.training.run_folder import case_columns


@dataclass(frozen=True)
class Table:
    """The comparison's table.

    Attributes:
        rows: a row a loss with all measures, best Dice first, those of `partial` after the others; a loss without a
            finished run has NaN, and is last.
        failed: losses of which nothing came, and nothing will.
        cases: how many cases the finished runs validated.
        seeds: how many seeds.
        partial: losses of which some runs are finished, and some are not or failed: their means are over other cases.
        still: runs whose optimizer stood still.
    """

    rows: pd.DataFrame
    failed: frozenset[str]
    cases: int
    seeds: int
    partial: tuple[str, ...] = ()
    still: tuple[StoodStill, ...] = ()

    @property
    def caveat(self) -> str:
        """What so few cases and seeds can say."""
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        cases = "one case" if self.cases == 1 else f"{self.cases} cases"
        told = f"means over {cases} and {seeds}: small differences may be chance"
        if self.partial:
            told += (
                f"; {', '.join(self.partial)}: not all runs are finished, so on fewer cases or seeds than the others"
            )
        return told


def case_table(folder: Path, plan: Plan) -> pd.DataFrame:
    """Every finished run's validation cases: loss, fold, seed, case, patient, class and the measures."""
    frames = []
    for run in plan.runs:
        own = run_folder(folder, run)
        if own.result is not None and own.result["state"] == "done":
            # Runs that an earlier version finished lack a measure: it is NaN there.
            frame = pd.DataFrame(own.cases).reindex(columns=list(case_columns()))
            frame[list(METRICS)] = frame[list(METRICS)].apply(pd.to_numeric)
            config = run.config
            frames.append(frame.assign(loss=config.loss, fold=config.fold, seed=config.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def with_empty(cases: pd.DataFrame, empty: str) -> pd.DataFrame:
    """What counts where the label has nothing of a class, as in the report: a false alarm never looks better.

    Args:
        cases: as `case_table` makes it; there all measures but specificity are NaN of a rightly empty prediction.
        empty: `one`, `exclude` or `worst`.
    """
    if not len(cases):
        return cases
    left_out = having(METRICS, "left out")
    absent = cases[left_out].isna().all(axis=1) & cases[list(METRICS)].notna().any(axis=1)
    filled = cases.copy()
    for name in having(METRICS, "option"):
        best, worst = METRICS[name].best, METRICS[name].worst(cases[name].max())
        if empty == "exclude":
            filled.loc[absent, name] = float("nan")
        else:
            filled.loc[absent & cases[name].isna(), name] = best if empty == "one" else worst
    return filled


def comparison_table(folder: Path, plan: Plan) -> Table:
    """Average what the runs left: seeds within a case and class, then a case's classes, then cases."""
    cases = with_empty(case_table(folder, plan), plan.empty)
    metrics = list(METRICS)
    rows = []
    failed = set()
    partial = []
    still = stood_still(folder, plan)
    for loss in plan.losses:
        runs = [run for run in plan.runs if run.config.loss == loss]
        results = [run_folder(folder, run).result for run in runs]
        done = [result for result in results if result is not None and result["state"] == "done"]
        row: dict[str, object] = {"loss": loss, "runs": f"{len(done)}/{len(runs)}"}
        found = [one for one in still if one.run.config.loss == loss]
        row |= {"trained_as": runs[0].config.trained_as, "stood_still": _stood_still(found, len(runs))}
        if 0 < len(done) < len(runs):
            partial.append(loss)
        if done:
            own = cases[cases["loss"] == loss]
            by_class = own.groupby(["case", "class"])[metrics].mean()
            means = by_class.groupby("case").mean().mean()
            row |= {metric: float(means[metric]) for metric in metrics}
            row["epoch_s"] = statistics.median(result["epoch_s"] for result in done)
        elif None not in results:
            failed.add(loss)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["loss", *METRICS, "epoch_s", "runs", "trained_as", "stood_still"])
    frame = frame.sort_values("dice", ascending=False, na_position="last")
    # Behind those that were measured on all cases.
    frame = pd.concat([frame[~(behind := frame["loss"].isin(partial) | frame["dice"].isna())], frame[behind]])
    seeds = len({run.config.seed for run in plan.runs})
    count = cases["case"].nunique() if len(cases) else 0
    return Table(frame.reset_index(drop=True), frozenset(failed), count, seeds, tuple(partial), still)


def _stood_still(found: list[StoodStill], runs: int) -> str:
    """In which epochs; of several runs, in how many of them."""
    if not found:
        return ""
    return found[0].when if runs == 1 else f"{len(found)} of {runs} runs"


def formatted_rows(table: Table) -> list[list[str]]:
    """The table as text, its headings first."""
    shown = {name: metric for name, metric in in_report_order(METRICS).items() if METRICS[name].in_table}
    headings = {"trained_as": "loss"} | {name: metric.heading for name, metric in shown.items()}
    headings |= {"epoch_s": "s/epoch", "runs": "runs"} | ({"stood_still": "stood still"} if table.still else {})
    decimals = {name: metric.decimals for name, metric in shown.items()} | {"epoch_s": 1}
    rows = [list(headings.values())]
    for _, row in table.rows.iterrows():
        failed = row["loss"] in table.failed
        cells = []
        for name in headings:
            value = row[name]
            if name in decimals:
                nothing = "failed" if failed and name == next(iter(shown)) else "-"
                value = nothing if pd.isna(value) else f"{value:.{decimals[name]}f}"
            cells.append(str(value))
        rows.append(cells)
    return rows


def write_table(folder: Path, table: Table) -> list[Path]:
    """Write `table.csv` and `table.md`."""
    csv, markdown = folder / "table.csv", folder / "table.md"
    write_text(csv, table.rows.to_csv(index=False))
    head, *body = formatted_rows(table)
    rule = ["---", *(["---:"] * (len(head) - 1))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]
    write_text(markdown, "\n".join([*lines, "", table.caveat, ""]))
    return [csv, markdown]
