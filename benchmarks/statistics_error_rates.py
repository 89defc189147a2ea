"""The table in `docs/statistics.md`: how often the statistics are wrong, by simulation.

`python -m benchmarks.statistics_error_rates --write` runs the full grid (some 15 minutes on one core) and writes the
table between the marks in `docs/statistics.md`; without `--write` it prints it. `--scale 0.1` runs a tenth of it.
`error_rate_simulations.py` has the simulations.
"""

import itertools
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.error_rate_simulations import (
    DEVIATIONS,
    SKEWED_DIFFERENCES,
    false_equivalence,
    false_pairs,
    false_verdicts,
    false_verdicts_over_metrics,
    power,
    power_of_trainings,
    rank_coverage,
    rare_collapse,
    unequal_trainings,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "statistics.md"
SEEDS, FOLDS, COMPARISONS, PATIENTS = (1, 2, 3, 5), (1, 2, 5), (1, 5, 17), (8, 20, 50, 104)


def _grid(count: int) -> list[str]:
    """False verdicts: a row per design, a column per number of patients; the highest of the four distributions."""
    lines = [
        "**False verdicts**: share of tables with any false *better* or *worse* when no loss differs; the mean over "
        f"{', '.join(DEVIATIONS)} deviations, and in brackets the highest of the four ({round(1.5 * count):,}, "
        f"{count:,} and {round(0.5 * count):,} tables of each for 1, 5 and 17 comparisons).",
        "",
        f"| seeds x folds | comparisons | {' | '.join(f'n = {n}' for n in PATIENTS)} |",
        f"| --- | ---: | {' | '.join('---' for _ in PATIENTS)} |",
    ]
    for seeds, folds, comparisons in itertools.product(SEEDS, FOLDS, COMPARISONS):
        cells = []
        # With many comparisons each table takes longer.
        tables_each = round(count * {1: 1.5, 5: 1.0, 17: 0.5}[comparisons])
        for n in PATIENTS:
            rates = {name: false_verdicts(tables_each, name, comparisons, n, seeds, folds) for name in DEVIATIONS}
            name = max(rates, key=lambda own: rates[own].share)
            mean = sum(rate.share for rate in rates.values()) / len(rates)
            cells.append(f"{mean:.3f} ({rates[name]} {name})")
        lines.append(f"| {seeds} x {folds} | {comparisons} | {' | '.join(cells)} |")
        click.echo(lines[-1], err=True)
    return lines


def _over_metrics(count: int) -> list[str]:
    """False verdicts over several metrics: a row per family, a column per distribution."""
    names = ("normal", "bounded", "skewed", "exponential")
    lines = [
        "**False verdicts over several primary metrics**, with a correlation of 0.6 between metrics (one fold and seed "
        f"unless said; {count:,} tables each): share of tables with any false verdict in any metric, and in brackets "
        "what it would be with each metric adjusted alone.",
        "",
        f"| metrics | comparisons | patients | {' | '.join(names)} |",
        f"| ---: | ---: | --- | {' | '.join('---' for _ in names)} |",
    ]
    for metrics, comparisons, n, seeds, folds in (
        (3, 1, 20, 1, 1), (3, 5, 20, 1, 1), (3, 5, 50, 1, 1), (3, 17, 50, 1, 1), (6, 5, 50, 1, 1), (3, 5, 20, 2, 5),
    ):  # fmt: skip
        cells = []
        for name in names:
            family, alone = false_verdicts_over_metrics(count, name, metrics, comparisons, n, seeds, folds, flips=1999)
            cells.append(f"{family} ({alone})")
        patients = str(n) if seeds * folds == 1 else f"{n}, {seeds} seeds x {folds} folds"
        lines.append(f"| {metrics} | {comparisons} | {patients} | {' | '.join(cells)} |")
        click.echo(lines[-1], err=True)
    return lines


def _sections(scale: float) -> Iterator[list[str]]:
    count = max(20, round(1000 * scale))
    many = max(20, round(4000 * scale))
    yield _grid(count)
    lines = ["**False verdicts, differences that are all skewed to one side** (one seed, one fold).", ""]
    lines += [
        "| differences | comparisons | n = 8 | n = 20 | n = 50 | n = 104 |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for name, comparisons in itertools.product(SKEWED_DIFFERENCES, COMPARISONS):
        rates = [false_verdicts(count, name, comparisons, n, 1, 1) for n in PATIENTS]
        lines.append(f"| {name} | {comparisons} | {' | '.join(map(str, rates))} |")
    for comparisons in (1, 5):
        rates = [rare_collapse(count, comparisons, n) for n in PATIENTS]
        lines.append(f"| +0.01 on 95 %, -0.19 on 5 % of cases | {comparisons} | {' | '.join(map(str, rates))} |")
    yield lines
    yield _over_metrics(count)
    lines = [
        "**False pairs, and sets of ranks** (50 patients): share of tables with any pair falsely called different, and "
        "with all rank sets true.",
        "",
    ]
    lines += [
        "| seeds x folds | losses | differences | any false pair | sets all true |",
        "| --- | ---: | --- | --- | --- |",
    ]
    few = max(20, round(400 * scale))
    for (seeds, folds), (losses, name) in itertools.product(
        ((1, 1), (1, 5), (2, 1), (3, 1), (5, 1), (2, 5)), ((6, "normal"), (6, "bounded"), (18, "normal"))
    ):
        wrong, covered = false_pairs(few, name, losses, 50, seeds, folds)
        lines.append(f"| {seeds} x {folds} | {losses} | {name} | {wrong} | {covered} |")
    yield lines
    lines = [
        "**Sets of ranks of 18 near-equal losses** (steps of 0.02 SD): share in which the set of the first "
        "loss contains 1, and in which all sets are true.",
        "",
    ]
    lines += ["| patients | first loss | all losses |", "| ---: | --- | --- |"]
    for n in (10, 20, 50):
        one, every = rank_coverage(few, n)
        lines.append(f"| {n} | {one} | {every} |")
    yield lines
    lines = [
        "**Power**, one seed and fold, normal differences, one loss better by the difference that a "
        "report names as detectable.",
        "",
    ]
    lines += [
        "| patients | comparisons | difference, SDs | found | by Holm over Wilcoxon |",
        "| ---: | ---: | --- | --- | --- |",
    ]
    for n, comparisons in itertools.product(PATIENTS, COMPARISONS):
        shift, here, there = power(count, comparisons, n)
        lines.append(f"| {n} | {comparisons} | {shift:.2f} | {here} | {there} |")
    yield lines
    lines = [
        "**Power with several runs per loss**, 104 patients, one loss better by 0.5 SD of one patient's difference.",
        "",
    ]
    lines += [f"| seeds x folds | {' | '.join(f'{k} comparisons' for k in COMPARISONS)} |", "| --- | --- | --- | --- |"]
    for seeds, folds in itertools.product(SEEDS, FOLDS):
        rates = [power_of_trainings(few, seeds, folds, k, 0.5) for k in COMPARISONS]
        lines.append(f"| {seeds} x {folds} | {' | '.join(map(str, rates))} |")
    yield lines
    lines = [
        "**A loss whose retraining varies three times as much** (17 comparisons, 104 patients): share of "
        "tables with any false verdict.",
        "",
    ]
    lines += ["| seeds x folds | false verdicts |", "| --- | --- |"]
    for seeds, folds in ((1, 2), (1, 5), (2, 1), (3, 1), (2, 5)):
        lines.append(f"| {seeds} x {folds} | {unequal_trainings(count, folds, seeds)} |")
    yield lines
    lines = ["**False *equivalent* and *non-inferior***: the true mean is at the margin.", ""]
    lines += ["| differences | patients | equivalent | non-inferior |", "| --- | ---: | --- | --- |"]
    for name, n in itertools.product(("normal", "exponential", "lognormal", "5 % collapse"), (10, 20, 50, 104)):
        one, other = false_equivalence(many, name, n)
        lines.append(f"| {name} | {n} | {one} | {other} |")
    yield lines


@click.command()
@click.option("--write", is_flag=True, help="Write the tables into docs/statistics.md.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Share of the simulations.")
def main(write: bool, scale: float) -> None:
    """Simulate, and show how often the statistics are wrong."""
    began = time.monotonic()
    sections = list(_sections(scale))
    count = round(1000 * scale)
    minutes = (time.monotonic() - began) / 60
    errors = [math.sqrt(0.05 * 0.95 / tables) for tables in (count, 0.5 * count)]
    head = (
        f"Monte Carlo error: over {count:,} tables a true share of 0.05 has the standard error {errors[0]:.3f}, over "
        f"{round(0.5 * count):,} {errors[1]:.3f}; the highest of four such shares lies one standard error above it on "
        f"average. `python -m benchmarks.statistics_error_rates --write --scale {scale:g}`, one core, "
        f"{minutes:.0f} minutes."
    )
    text = "\n\n".join([head, *("\n".join(lines) for lines in sections)])
    if not write:
        click.echo(text)
        return
    document = DOCUMENT.read_text()
    marked = re.sub(r"(<!-- error rates -->\n).*(\n<!-- end -->)", lambda found: found[1] + text + found[2], document,
                    flags=re.DOTALL)  # fmt: skip
    DOCUMENT.write_text(marked)
    click.echo(f"written to {DOCUMENT}")


if __name__ == "__main__":
    main()
