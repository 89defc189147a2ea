"""The time of preparing cases and cutting patches, next to an earlier version of this package, in one run.

Each round starts one process per version, in alternating order: it reads and prepares all cases of a fold, and then
draws the patches of some epochs. Reported are the medians over the rounds, the ratio with its quartiles, and each
process's peak memory.

    git worktree add /tmp/before REVISION
    python -m benchmarks.data_path --against /tmp/before --write
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.machine import machine
from pipelines.utils.files import write_text

_CHECKOUT = Path(__file__).resolve().parents[1]
_RESULT = _CHECKOUT / "docs" / "benchmarks" / "data_path.md"
#: Runs in either version, so it uses what both have.
_CHILD = """
import json, resource, sys, time
from pipelines.preprocessing.patches import PatchDataset, start_epoch, training_loader
from pipelines.training.components import prepared_data
from pipelines.training.run_config import RunConfig
manifest, root, epochs = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
config = RunConfig(manifest=manifest, data_root=root, threads=1, device="cpu", precision="float32")
start = time.perf_counter()
data = prepared_data(config)
prepared = time.perf_counter() - start
patches = PatchDataset(data.training, data.config.patch_size, 0, augmentation=data.config.augmentation)
loader = training_loader(patches, 2, 0)
start = time.perf_counter()
for epoch in range(1, epochs + 1):
    start_epoch(loader, epoch)
    for batch in loader:
        pass
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([prepared, time.perf_counter() - start, peak]))
"""


def measured(checkout: Path, manifest: str, root: str, epochs: int) -> tuple[float, float, float]:
    """Seconds of preparing, seconds of drawing patches, and peak memory (MB), in a separate process."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, manifest, root, str(epochs)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    prepared, drawn, peak = json.loads(done.stdout.splitlines()[-1])
    return prepared, drawn, peak


@click.command()
@click.option("--against", type=click.Path(path_type=Path, exists=True), required=True, help="An earlier checkout.")
@click.option("--manifest", default="phantom", show_default=True, help="A data set that both versions can read.")
@click.option("--data-root", default="", help="Folder of its data.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=2))
@click.option("--epochs", default=5, show_default=True)
@click.option("--write", is_flag=True, help=f"Write {_RESULT.relative_to(_CHECKOUT)}.")
def main(against: Path, manifest: str, data_root: str, rounds: int, epochs: int, write: bool) -> None:
    """Compare this checkout with an earlier one."""
    command = ["git", "-C", str(against), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(command, capture_output=True, text=True, check=True)
    versions = {"before": against.resolve(), "now": _CHECKOUT}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in versions}
    for number in range(rounds + 1):
        for name in list(versions)[:: 1 if number % 2 else -1]:
            numbers = measured(versions[name], manifest, data_root, epochs)
            if number:  # the first round fills caches of the disk
                found[name].append(numbers)
    lines = ["| | before | now | now / before (quartiles) |", "| --- | ---: | ---: | ---: |"]
    for column, what in enumerate(("preparing all cases (s)", "drawing patches (s)", "peak memory (MB)")):
        before, now = (statistics.median(row[column] for row in found[name]) for name in versions)
        ratios = [b[column] / a[column] for a, b in zip(found["before"], found["now"], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        lines.append(f"| {what} | {before:.3g} | {now:.3g} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")
    text = "\n".join(
        [
            "# Preparing cases and cutting patches, one channel",
            "",
            f"    git worktree add /tmp/before {revision.stdout.strip()}",
            f"    python -m benchmarks.data_path --against /tmp/before --manifest {manifest} "
            f"--rounds {rounds} --epochs {epochs}",
            "",
            f"Medians over {rounds} rounds, both versions in each round, one thread; the ratio is the median of those",
            "of single rounds, and not that of the medians.",
            f"{machine()}.",
            "",
            *lines,
            "",
        ]
    )
    click.echo(text)
    if write:
        write_text(_RESULT, text)


if __name__ == "__main__":
    main()
