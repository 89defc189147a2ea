"""Our losses compared with MONAI's, torch's and kornia's: time and memory, in both of the allocator's regimes.

python -m benchmarks.losses                      # the goals' table
python -m benchmarks.losses --full               # all sizes, growth
python -m benchmarks.losses --group hausdorff    # one part again
python -m benchmarks.losses --report-only        # tables and figures from the results' file
"""

import time
from pathlib import Path

import click
import torch

from benchmarks.contenders import installed
from benchmarks.regimes import run_everywhere
from benchmarks.report import FOLDER, NAMES, write_report
from benchmarks.results import measured_now, read_results, write_results
from benchmarks.selections import FULL, GROUPS, QUICK


@click.command(help=__doc__)
@click.option("--quick/--full", default=True, show_default=True, help="The goals' table, or everything.")
@click.option("--group", "named", multiple=True, type=click.Choice(list(GROUPS)), help="These parts only.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU if there is one.")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Folder; default docs/benchmarks/losses.")
@click.option("--report-only", is_flag=True, help="Measure nothing.")
def main(quick: bool, named: tuple[str, ...], device: str | None, out: Path, report_only: bool) -> None:
    """Measure group by group, and write the report."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = out / f"{NAMES[device]}.json"
    if report_only:
        if not results.is_file():
            raise click.ClickException(f"{results} is not there: measure first")
        click.echo(f"written to {write_report(device, out)}")
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch sees no GPU here")
    if not installed("kornia"):
        click.echo("kornia is not installed, and does not take part: pip install kornia")
    for name in named or (QUICK if quick else FULL):
        rows = []
        for case in GROUPS[name](device):
            start = time.perf_counter()
            found = run_everywhere(case)
            click.echo(f"{case.title}: {time.perf_counter() - start:.0f} s")
            for note in dict.fromkeys(f"{row.side} {row.loss}: {row.note}" for row in found if row.note):
                click.echo(f"    {note}")
            rows += found
        if rows:
            # Written after each group: a long run that is stopped keeps what it has.
            write_results(results, read_results(results) | {name: measured_now(rows, device)})
            write_report(device, out)
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
