"""A comparison in words and as a table: the plan, chosen rates, dropped losses, and one row per loss."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import with_default
from pipelines.runs.comparison_folder import RunState, run_folder
from pipelines.runs.curve_checks import StoodStill, stood_still
from pipelines.runs.plan import Dropped, Halving, Plan, PlannedRun, RunGrid, Tuning, survivors
from pipelines.statistics.table import having, in_report_order
from pipelines.training.run_folder import case_columns
from pipelines.utils.files import write_text
from pipelines.utils.text import counted, duration, item, listed

if TYPE_CHECKING:  # the command imports this module, and does not wait for it
    import pandas as pd

# Sentences: the plan, before the comparison; tuning and halving, on the terminal and on the report's page.


def plan_lines(plan: Plan, grid: RunGrid, seconds: float | None = None) -> Iterator[str]:
    """The plan, line by line; `grid` has its runs as if halving dropped no loss, `seconds` are of everything."""
    halving = None if plan.halving is None or plan.halving.over else plan.halving
    tuning = None if plan.tuning is None or plan.tuning.over else plan.tuning
    count = len(grid.losses) if halving is None else 1 + survivors(len(halving.losses))
    runs = count * len(grid.folds) * len(grid.seeds)
    losses = counted(count, "loss") if halving is None else f"{count} of {len(grid.losses)} losses"
    shape = f"{losses} x {counted(len(grid.folds), 'fold')} x {counted(len(grid.seeds), 'seed')}"
    shape += f" = {counted(runs, 'run')} of {counted(grid.epochs, 'epoch')} on {plan.manifest_name}"
    yield from item("runs", f"{shape}; {listed('fold', grid.folds)}; {listed('seed', grid.seeds)}")
    metric = METRICS[plan.metric]
    named = f"reference {plan.reference}" if plan.has_reference else "no reference, every pair compared"
    margin = f"{plan.margin:g} {metric.unit or metric.label}"
    yield from item("verdict", f"{named}; primary metric {metric.label}; margin of equivalence {margin}")
    if plan.further_metrics:
        others = [f"{METRICS[name].label} ({'no margin' if own is None else f'margin {METRICS[name].shown(own)}'})"
                  for name, own in plan.further_metrics.items()]  # fmt: skip
        yield from item("", f"further primary metrics, in one family of tests with it: {', '.join(others)}")
    if tuning is not None:
        each = f"each of {counted(len(grid.losses), 'loss')} is trained on fold {tuning.fold} at {_rates(tuning)}"
        yield from item("rates", f"before that, {each} for {counted(tuning.epochs, 'epoch')}, and then at its best")
    if halving is not None:
        what = (
            f"{counted(len(halving.losses), 'loss')} are screened on fold {halving.fold} for {_rungs(halving)} epochs"
        )
        yield from item("halving", f"before that, {what}; the worse half is dropped each time, the reference never")
    for reason in plan.told:
        yield from item("budget", reason)
    if seconds is not None:
        used = used_of_budget(plan, seconds)
        yield from item("time", f"about {duration(seconds)} in all, including the measurement{used}")


#: Below this share of a budget, the plan says what would fill it.
_HALF_USED = 0.5


def used_of_budget(plan: Plan, seconds: float) -> str:
    """`, of a budget of 60 minutes`, and what would fill it; empty without a budget."""
    asked = plan.asked
    if asked is None or asked.budget_minutes is None:
        return ""
    text = f", of a budget of {asked.budget_minutes:g} minutes"
    if seconds > _HALF_USED * 60 * asked.budget_minutes or asked.epochs is None:
        return text
    return f"{text}: without --epochs, they would fill it"


def screening_notes(plan: Plan) -> tuple[str, ...]:
    """What was decided before the comparison: sentences on learning rates and dropped losses."""
    return (*tuning_notes(plan), *halving_notes(plan))


def tuning_notes(plan: Plan) -> tuple[str, ...]:
    """How the learning rates were chosen, and which; none without tuning."""
    tuning = plan.tuning
    if tuning is None:
        return ()
    what = _rates(tuning, " per loss")
    if not tuning.over:
        return (f"Tuning is under way: {what} are tried for {counted(tuning.epochs, 'epoch')}.",)
    label = METRICS[plan.metric].label
    scored = {trial.loss for trial in tuning.tried if trial.score is not None}
    failed = [loss for loss in tuning.chosen if loss not in scored]
    note = (
        f"Learning rates: {what} were tried on fold {tuning.fold}, in one run each of "
        f"{counted(tuning.epochs, 'epoch')}, and each loss is trained at its best by {label}. None of these "
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
        return (f"Halving is under way: {len(halving.losses)} losses are screened for {_rungs(halving)} epochs.",)
    label = METRICS[plan.metric].label
    note = (
        f"Successive halving: {len(halving.losses)} losses were screened on fold {halving.fold} "
        f"({counted(halving.cases, 'case')}) in one run each of {_rungs(halving)} epochs, with its whole schedule; "
        f"the worse half by {label} was dropped each time. None of these cases is in the verdict, so the choice "
        "does not favour the survivors. This is not a significance test: near the bound chance decided, and a loss "
        "that learns slowly may have been dropped too early. Dropped losses are not ranked, and not counted as worst."
    )
    return (note, *(dropped_note(plan, dropped) for dropped in halving.dropped))


def dropped_note(plan: Plan, dropped: Dropped) -> str:
    """Why a loss was dropped."""
    when = f"{dropped.loss}: dropped after {counted(dropped.epochs, 'epoch')}"
    if dropped.score is None:
        return f"{when}: it failed ({dropped.error})."
    metric = METRICS[plan.metric]
    bound = "" if dropped.bound is None else f"; the lowest kept had {metric.shown(dropped.bound)}"
    return f"{when}: {metric.label} {metric.shown(dropped.score)}{bound}."


def rung_title(plan: Plan) -> str:
    """The title of a rung or a trial: `screening, rung 1` or `tuning, learning rates x 3`."""
    return f"screening, rung {plan.rung}" if plan.factor is None else f"tuning, learning rates x {_shown(plan.factor)}"


def _rates(tuning: Tuning, of: str = "") -> str:
    return (
        f"{len(tuning.factors)} learning rates{of} ({', '.join(map(_shown, sorted(tuning.factors)))} of the recipe's)"
    )


def _shown(factor: float) -> str:
    return f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}"


def _rungs(halving: Halving) -> str:
    return " and ".join(map(str, halving.rungs))


def state_counts(states: Sequence[RunState], *, waiting: bool = True) -> str:
    """`3 done, 1 running`; without `waiting` runs, empty where none was begun."""
    count = Counter(state.state for state in states)
    words = ("done", "failed", "running", "interrupted", *(["waiting"] if waiting else []))
    return ", ".join(f"{count[word]} {word}" for word in words if count[word])


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
    tolerance: float | None = None  #: of the NSD, mm; None: unknown

    @property
    def trained(self) -> tuple[str, ...]:
        """What losses are trained as, where that is more than their names; a sentence, or none."""
        differing = self.rows[self.rows["trained_as"] != self.rows["loss"]]
        named = [f"{row['loss']} as {row['trained_as']}" for _, row in differing.iterrows()]
        return (f"Trained by their recipes: {'; '.join(named)}.",) if named else ()

    @property
    def caveat(self) -> str:
        """How far means over these cases and seeds can be trusted."""
        cases, seeds = ("one " + noun if count == 1 else counted(count, noun) for count, noun in
                        ((self.cases, "case"), (self.seeds, "seed")))  # fmt: skip
        note = f"means over {cases} and {seeds}: small differences may be chance"
        few = f"; {', '.join(self.partial)}: not all runs are finished, so on fewer cases or seeds than the others"
        return note + (few if self.partial else "")


def case_table(folder: Path, plan: Plan) -> "pd.DataFrame":
    """Every finished run's validation cases: loss, fold, seed, case, patient, class and the metrics."""
    import pandas as pd

    frames = []
    for run in plan.runs:
        run_dir = run_folder(folder, run)
        if run_dir.result is not None and run_dir.result["state"] == "done":
            # Runs of an earlier version may not have all metrics: these are NaN.
            frame = pd.DataFrame(run_dir.cases)
            frame = frame.reindex(columns=list(case_columns((*frame.columns, plan.metric, *plan.further_metrics))))
            metrics = having_values(frame)
            frame[metrics] = frame[metrics].apply(pd.to_numeric)
            config = run.config
            frames.append(frame.assign(loss=config.loss, fold=config.fold, seed=config.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def having_values(frame: "pd.DataFrame") -> list[str]:
    """The names of the metrics among the columns of a table, in the order of columns."""
    return [name for name in METRICS if name in frame.columns]


def with_empty(cases: "pd.DataFrame", empty: str) -> "pd.DataFrame":
    """Fill in the metrics of classes that a label does not have, as in the report: a false alarm never looks better.

    Where label and prediction are empty, all metrics but specificity are NaN; `empty` is `one`, `exclude` or `worst`.
    """
    if not len(cases):
        return cases
    metrics = {name: METRICS[name] for name in having_values(cases)}
    left_out = having(metrics, "left out")
    absent = cases[left_out].isna().all(axis=1) & cases[list(metrics)].notna().any(axis=1)
    filled = cases.copy()
    for name in having(metrics, "option"):
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
    metrics = having_values(cases) if len(cases) else list(with_default([plan.metric]))
    still = stood_still(folder, plan)
    rows, failed, partial = [], set(), []
    for loss in plan.losses:
        runs = [run for run in plan.runs if run.config.loss == loss]
        results = [run_folder(folder, run).result for run in runs]
        done = [result for result in results if result is not None and result["state"] == "done"]
        row: dict[str, object] = {"loss": loss, "runs": f"{len(done)}/{len(runs)}"}
        when = [found.when for found in still if found.run.config.loss == loss]
        some = f"{len(when)} of {len(runs)} runs" if when else ""
        row |= {"trained_as": runs[0].config.trained_as, "stood_still": when[0] if when and len(runs) == 1 else some}
        if 0 < len(done) < len(runs):
            partial.append(loss)
        if done:
            by_class = cases[cases["loss"] == loss].groupby(["case", "class"])[metrics].mean()
            row |= {str(name): mean for name, mean in by_class.groupby("case").mean().mean().items()}
            row["epoch_s"] = statistics.median(result["epoch_s"] for result in done)
        elif None not in results:
            failed.add(loss)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["loss", *metrics, "epoch_s", "runs", "trained_as", "stood_still"])
    frame = frame.sort_values("dice", ascending=False, na_position="last")
    # After those with all cases.
    frame = pd.concat([frame[~(behind := frame["loss"].isin(partial) | frame["dice"].isna())], frame[behind]])
    seeds = len({run.config.seed for run in plan.runs})
    count = cases["case"].nunique() if len(cases) else 0
    tolerance = tolerance_of(folder, plan)
    return Table(frame.reset_index(drop=True), frozenset(failed), count, seeds, tuple(partial), still, tolerance)


def tolerance_of(folder: Path, plan: Plan) -> float | None:
    """The tolerance of the NSD of a comparison's runs, mm; None if no run has begun, or if they differ."""
    found = set()
    for run in plan.runs:
        with suppress(ValueError):  # written by another version
            if (config := run_folder(folder, run).config) is not None:
                found.add(config.nsd_tolerance)
    return found.pop() if len(found) == 1 else None


def formatted_rows(table: Table) -> list[list[str]]:
    """The table as text, its headings first."""
    import pandas as pd

    shown = {
        name: metric.at_tolerance(table.tolerance)
        for name, metric in in_report_order(METRICS).items()
        if metric.in_table and name in table.rows.columns
    }
    headings = {"loss": "loss"} | {name: metric.heading for name, metric in shown.items()}
    headings |= {"epoch_s": "s/epoch", "runs": "runs"} | ({"stood_still": "stood still"} if table.still else {})
    cells = table.rows[list(headings)].astype(object)
    for name, decimals in {**{name: metric.decimals for name, metric in shown.items()}, "epoch_s": 1}.items():
        cells[name] = ["-" if pd.isna(value) else f"{value:.{decimals}f}" for value in cells[name]]
    cells.loc[table.rows["loss"].isin(table.failed), next(iter(shown))] = "failed"
    return [list(headings.values()), *cells.astype(str).to_numpy().tolist()]


def write_table(folder: Path, table: Table) -> list[Path]:
    """Write `table.csv` and `table.md`."""
    csv, markdown = folder / "table.csv", folder / "table.md"
    write_text(csv, table.rows.to_csv(index=False))
    head, *body = formatted_rows(table)
    rule = ["---", *(["---:"] * (len(head) - 1))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]
    notes = [line for note in (*table.trained, table.caveat) for line in ("", note)]
    write_text(markdown, "\n".join([*lines, *notes, ""]))
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
    results = [(run, run_folder(folder, run).result) for run in plan.runs if run.config.loss == best[0]]
    # A metric that no case has (a distance, where all are empty) is null there.
    scores = [
        (run, result["metrics"].get(plan.metric)) for run, result in results if result and result["state"] == "done"
    ]
    sign = METRICS[plan.metric].sign
    return max((pair for pair in scores if pair[1] is not None), key=lambda pair: sign * pair[1], default=(None,))[0]
