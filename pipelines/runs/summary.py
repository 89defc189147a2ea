"""A comparison in words and as a table: the plan, chosen rates, dropped losses, and one row per loss."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import StoodStill, run_folder, stood_still
from pipelines.runs.plan import NO_REFERENCE, Dropped, Plan, PlannedRun, RunGrid, Tuning, survivors
from pipelines.statistics.table import having, in_report_order
from pipelines.training.run_folder import case_columns
from pipelines.utils.files import write_text
from pipelines.utils.text import counted, duration, item, listed

if TYPE_CHECKING:  # the command imports this module, and does not wait for it
    import pandas as pd

# Sentences: the plan, before the comparison; tuning and halving, on the terminal and on the report's page.


def plan_lines(plan: Plan, grid: RunGrid, seconds: float | None = None) -> Iterator[str]:
    """The plan, line by line.

    Args:
        plan: of the comparison.
        grid: its runs; with halving, as if no loss were dropped.
        seconds: that the whole comparison takes; None: not known.
    """
    halving = None if plan.halving is None or plan.halving.over else plan.halving
    tuning = None if plan.tuning is None or plan.tuning.over else plan.tuning
    count = len(grid.losses) if halving is None else 1 + survivors(len(halving.losses))
    runs = count * len(grid.folds) * len(grid.seeds)
    losses = counted(count, "loss") if halving is None else f"{count} of {len(grid.losses)} losses"
    shape = f"{losses} x {counted(len(grid.folds), 'fold')} x {counted(len(grid.seeds), 'seed')}"
    folds, seeds = listed("fold", grid.folds), listed("seed", grid.seeds)
    yield from item(
        "runs",
        f"{shape} = {counted(runs, 'run')} of {counted(grid.epochs, 'epoch')} on {plan.manifest_name}; "
        f"{folds}; {seeds}",
    )
    metric = METRICS[plan.metric]
    named = (
        "no reference, every pair compared" if plan.reference in (None, NO_REFERENCE) else f"reference {plan.reference}"
    )
    margin = f"{plan.margin:g} {metric.unit or metric.label}"
    yield from item("verdict", f"{named}; primary metric {metric.label}; margin of equivalence {margin}")
    if tuning is not None:
        yield from item(
            "rates",
            f"before that, each of {counted(len(grid.losses), 'loss')} is trained on fold {tuning.fold} at "
            f"{len(tuning.factors)} learning rates ({_factors(tuning)} of the recipe's) for "
            f"{counted(tuning.epochs, 'epoch')}, and then at its best",
        )
    if halving is not None:
        yield from item(
            "halving",
            f"before that, {counted(len(halving.losses), 'loss')} are screened on fold {halving.fold} for "
            f"{_rungs(plan)} epochs; the worse half is dropped each time, the reference never",
        )
    for reason in plan.told:
        yield from item("cut", reason)
    if seconds is not None:
        yield from item("time", f"about {duration(seconds)} in all, including the measurement")


def screening_notes(plan: Plan) -> tuple[str, ...]:
    """What was decided before the comparison: sentences on learning rates and dropped losses."""
    return (*tuning_notes(plan), *halving_notes(plan))


def tuning_notes(plan: Plan) -> tuple[str, ...]:
    """How the learning rates were chosen, and which; none without tuning."""
    tuning = plan.tuning
    if tuning is None:
        return ()
    what = f"{len(tuning.factors)} learning rates per loss ({_factors(tuning)} of the recipe's)"
    if not tuning.over:
        return (f"Tuning is under way: {what} are tried for {counted(tuning.epochs, 'epoch')}.",)
    failed = [
        loss for loss in tuning.chosen if all(trial.score is None for trial in tuning.tried if trial.loss == loss)
    ]
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
    """A sentence on the screening, and one per dropped loss; none without halving."""
    halving = plan.halving
    if halving is None:
        return ()
    if not halving.over:
        return (f"Halving is under way: {len(halving.losses)} losses are screened for {_rungs(plan)} epochs.",)
    note = (
        f"Successive halving: {len(halving.losses)} losses were screened on fold {halving.fold} "
        f"({counted(halving.cases, 'case')}) in one run each of {_rungs(plan)} epochs, with its whole schedule; "
        f"the worse half by {_label(plan)} was dropped each time. None of these cases is in the verdict, so the choice "
        "does not favour the survivors. This is not a significance test: near the bound chance decided, and a loss "
        "that learns slowly may have been dropped too early. Dropped losses are not ranked, and not counted as worst."
    )
    return (note, *(dropped_note(plan, dropped) for dropped in halving.dropped))


def dropped_note(plan: Plan, dropped: Dropped) -> str:
    """Why a loss was dropped."""
    when = f"{dropped.loss}: dropped after {counted(dropped.epochs, 'epoch')}"
    if dropped.score is None:
        return f"{when}: it failed ({dropped.error})."
    shown = METRICS[plan.metric].shown
    bound = "" if dropped.bound is None else f"; the lowest kept had {shown(dropped.bound)}"
    return f"{when}: {_label(plan)} {shown(dropped.score)}{bound}."


def _factors(tuning: Tuning) -> str:
    words = [f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}" for factor in sorted(tuning.factors)]
    return ", ".join(words)


def _rungs(plan: Plan) -> str:
    return "" if plan.halving is None else " and ".join(str(epochs) for epochs in plan.halving.rungs)


def _label(plan: Plan) -> str:
    return METRICS[plan.metric].label


def rung_title(plan: Plan) -> str:
    """The title of a rung or a trial: `screening, rung 1` or `tuning, learning rates x 3`."""
    if plan.factor is None:
        return f"screening, rung {plan.rung}"
    factor = f"{plan.factor:g}" if plan.factor >= 1 else f"1/{1 / plan.factor:g}"
    return f"tuning, learning rates x {factor}"


# The table of a comparison: one row per loss.


@dataclass(frozen=True)
class Table:
    """The comparison's table."""

    #: a row per loss with all metrics, best Dice first, those of `partial` after the others; a loss without a finished
    #: run has NaN, and is last
    rows: "pd.DataFrame"
    failed: frozenset[str]  #: losses whose runs all failed
    cases: int  #: how many cases the finished runs validated
    seeds: int  #: how many seeds
    #: losses with finished and unfinished or failed runs: their means are over other cases
    partial: tuple[str, ...] = ()
    still: tuple[StoodStill, ...] = ()  #: runs whose optimizer stood still

    @property
    def caveat(self) -> str:
        """How far means over these cases and seeds can be trusted."""
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        cases = "one case" if self.cases == 1 else f"{self.cases} cases"
        note = f"means over {cases} and {seeds}: small differences may be chance"
        if self.partial:
            note += (
                f"; {', '.join(self.partial)}: not all runs are finished, so on fewer cases or seeds than the others"
            )
        return note


def case_table(folder: Path, plan: Plan) -> "pd.DataFrame":
    """Every finished run's validation cases: loss, fold, seed, case, patient, class and the metrics."""
    import pandas as pd

    frames = []
    for run in plan.runs:
        run_dir = run_folder(folder, run)
        if run_dir.result is not None and run_dir.result["state"] == "done":
            # Runs of an earlier version may not have all metrics: these are NaN.
            frame = pd.DataFrame(run_dir.cases).reindex(columns=list(case_columns()))
            frame[list(METRICS)] = frame[list(METRICS)].apply(pd.to_numeric)
            config = run.config
            frames.append(frame.assign(loss=config.loss, fold=config.fold, seed=config.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def with_empty(cases: "pd.DataFrame", empty: str) -> "pd.DataFrame":
    """Fill in the metrics of classes that a label does not have, as in the report: a false alarm never looks better.

    Args:
        cases: as `case_table` makes it, where all metrics but specificity are NaN if label and prediction are empty.
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
    """Average the finished runs: seeds within a case and class, then a case's classes, then cases."""
    import pandas as pd

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
        found = [run for run in still if run.run.config.loss == loss]
        row |= {"trained_as": runs[0].config.trained_as, "stood_still": _stood_still(found, len(runs))}
        if 0 < len(done) < len(runs):
            partial.append(loss)
        if done:
            by_class = cases[cases["loss"] == loss].groupby(["case", "class"])[metrics].mean()
            means = by_class.groupby("case").mean().mean()
            row |= {metric: float(means[metric]) for metric in metrics}
            row["epoch_s"] = statistics.median(result["epoch_s"] for result in done)
        elif None not in results:
            failed.add(loss)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["loss", *METRICS, "epoch_s", "runs", "trained_as", "stood_still"])
    frame = frame.sort_values("dice", ascending=False, na_position="last")
    # After those with all cases.
    frame = pd.concat([frame[~(behind := frame["loss"].isin(partial) | frame["dice"].isna())], frame[behind]])
    seeds = len({run.config.seed for run in plan.runs})
    count = cases["case"].nunique() if len(cases) else 0
    return Table(frame.reset_index(drop=True), frozenset(failed), count, seeds, tuple(partial), still)


def _stood_still(found: list[StoodStill], runs: int) -> str:
    """In which epochs; of several runs, in how many."""
    if not found:
        return ""
    return found[0].when if runs == 1 else f"{len(found)} of {runs} runs"


def formatted_rows(table: Table) -> list[list[str]]:
    """The table as text, its headings first."""
    import pandas as pd

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
