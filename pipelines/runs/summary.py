"""A comparison in words and as a table: what was planned, chosen and dropped, and one row per loss."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import StoodStill, run_folder, stood_still
from pipelines.runs.plan import NO_REFERENCE, Dropped, Matrix, Plan, PlannedRun, Tuning, survivors
from pipelines.statistics.table import having, in_report_order
from pipelines.training.run_folder import case_columns
from pipelines.utils.files import write_text
from pipelines.utils.text import counted, duration, item, listed

# What is planned, and what halving dropped, in words: before a comparison, at its end, and on its page.


def plan_lines(plan: Plan, matrix: Matrix, seconds: float | None = None) -> Iterator[str]:
    """What is planned, line by line.

    Args:
        plan: of the comparison.
        matrix: its runs; with halving, as if no loss were dropped.
        seconds: that all of it takes, if that is known.
    """
    halving = None if plan.halving is None or plan.halving.over else plan.halving
    tuning = None if plan.tuning is None or plan.tuning.over else plan.tuning
    count = len(matrix.losses) if halving is None else 1 + survivors(len(halving.losses))
    runs = count * len(matrix.folds) * len(matrix.seeds)
    losses = counted(count, "loss") if halving is None else f"{count} of {len(matrix.losses)} losses"
    shape = f"{losses} x {counted(len(matrix.folds), 'fold')} x {counted(len(matrix.seeds), 'seed')}"
    folds, seeds = listed("fold", matrix.folds), listed("seed", matrix.seeds)
    yield from item(
        "runs",
        f"{shape} = {counted(runs, 'run')} of {counted(matrix.epochs, 'epoch')} on {plan.manifest_name}; "
        f"{folds}; {seeds}",
    )
    metric = METRICS[plan.metric]
    named = "no reference, all with all" if plan.reference in (None, NO_REFERENCE) else f"reference {plan.reference}"
    margin = f"{plan.margin:g} {metric.unit or metric.label}"
    yield from item("verdict", f"{named}; primary measure {metric.label}; margin of equivalence {margin}")
    if tuning is not None:
        yield from item(
            "rates",
            f"before that, each of {counted(len(matrix.losses), 'loss')} is trained on fold {tuning.fold} at "
            f"{len(tuning.factors)} learning rates ({_factors(tuning)} of the recipe's) with "
            f"{counted(tuning.epochs, 'epoch')}, and then at its best",
        )
    if halving is not None:
        yield from item(
            "halving",
            f"before that, {counted(len(halving.losses), 'loss')} are screened on fold {halving.fold} with "
            f"{_rungs(plan)} epochs, the worse half being dropped each time; the reference is not",
        )
    for told in plan.told:
        yield from item("cut", told)
    if seconds is not None:
        yield from item("time", f"about {duration(seconds)} in all, what measuring took included")


def screening_notes(plan: Plan) -> tuple[str, ...]:
    """What was decided before the comparison: learning rates and dropped losses, a sentence each."""
    return (*tuning_notes(plan), *halving_notes(plan))


def tuning_notes(plan: Plan) -> tuple[str, ...]:
    """How the learning rates were chosen, and which; none without tuning."""
    tuning = plan.tuning
    if tuning is None:
        return ()
    what = f"{len(tuning.factors)} learning rates per loss ({_factors(tuning)} of the recipe's)"
    if not tuning.over:
        return (f"Tuning is under way: {what} are tried with {counted(tuning.epochs, 'epoch')}.",)
    failed = [loss for loss in tuning.chosen if all(own.score is None for own in tuning.tried if own.loss == loss)]
    note = (
        f"Learning rates: {what} were tried on fold {tuning.fold}, in one run each of "
        f"{counted(tuning.epochs, 'epoch')}, and each loss is trained at its best by {_label(plan)}. None of these "
        "cases is in the verdict. The choice is one run's: near-equal rates were decided by chance. Schedule and all "
        "else are common to all losses."
    )
    chosen = ", ".join(f"{loss} {rate:g}" for loss, rate in tuning.chosen.items())
    lost = f" Every run failed, so at the recipe's rate: {', '.join(failed)}." if failed else ""
    return (note, f"Chosen rates: {chosen}.{lost}")


def halving_notes(plan: Plan) -> tuple[str, ...]:
    """A sentence on the screening, and one a dropped loss; none without halving."""
    halving = plan.halving
    if halving is None:
        return ()
    if not halving.over:
        return (f"Halving is under way: {len(halving.losses)} losses are screened with {_rungs(plan)} epochs.",)
    told = (
        f"Successive halving: {len(halving.losses)} losses were screened on fold {halving.fold} "
        f"({counted(halving.cases, 'case')}) in one training each of {_rungs(plan)} epochs, with its whole schedule; "
        f"the worse half by {_label(plan)} was dropped each time. None of these cases is in the verdict, so the choice "
        "does not flatter the survivors. It is no test: near the bound chance decided, and a loss that learns slowly "
        "may have been dropped too early. Dropped losses are not ranked, and not counted as worst."
    )
    return (told, *(dropped_note(plan, dropped) for dropped in halving.dropped))


def dropped_note(plan: Plan, dropped: Dropped) -> str:
    """Why a loss was dropped."""
    when = f"{dropped.loss}: dropped after {counted(dropped.epochs, 'epoch')}"
    if dropped.score is None:
        return f"{when}: it failed ({dropped.error})."
    shown = METRICS[plan.metric].shown
    bound = "" if dropped.bound is None else f"; the last that was kept had {shown(dropped.bound)}"
    return f"{when}: {_label(plan)} {shown(dropped.score)}{bound}."


def _factors(tuning: Tuning) -> str:
    words = [f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}" for factor in sorted(tuning.factors)]
    return ", ".join(words)


def _rungs(plan: Plan) -> str:
    return "" if plan.halving is None else " and ".join(str(epochs) for epochs in plan.halving.rungs)


def _label(plan: Plan) -> str:
    return METRICS[plan.metric].label


def rung_title(plan: Plan) -> str:
    """What a rung, or a trial, is called by its plan."""
    if plan.factor is None:
        return f"screening, rung {plan.rung}"
    factor = f"{plan.factor:g}" if plan.factor >= 1 else f"1/{1 / plan.factor:g}"
    return f"tuning, learning rates x {factor}"


# The table at the end of a comparison: one row a loss.


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


# The network to use.


def best_mean(plan: Plan, table: Table) -> tuple[str, float] | None:
    """The loss with the best mean of the primary metric, and that mean; None when no run has finished.

    The mean of a loss with failed runs is perhaps over easier cases: it is the best only where every loss has failures.
    """
    finished = table.rows.dropna(subset=[plan.metric])
    whole = finished[~finished["loss"].isin(table.partial)]
    finished = whole if len(whole) else finished
    if not len(finished):
        return None
    row = finished.iloc[int((METRICS[plan.metric].sign * finished[plan.metric]).argmax())]
    return str(row["loss"]), float(row[plan.metric])


def best_run(folder: Path, plan: Plan, table: Table) -> PlannedRun | None:
    """The best run, by the primary metric, of the loss with the best mean; None when none has finished."""
    best = best_mean(plan, table)
    if best is None:
        return None
    scores: dict[str, float] = {}
    runs = [run for run in plan.runs if run.config.loss == best[0]]
    for run in runs:
        result = run_folder(folder, run).result
        # A metric that no case has (a distance, where all are empty) is null there.
        if result is not None and result["state"] == "done" and result["metrics"].get(plan.metric) is not None:
            scores[run.id] = METRICS[plan.metric].sign * result["metrics"][plan.metric]
    return max((run for run in runs if run.id in scores), key=lambda run: scores[run.id], default=None)
