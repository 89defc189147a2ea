"""A training step with each loss: what the loss takes in it and adds to it, next to MONAI's and torch's.

python -m benchmarks.training_step --list            # the settings, and how long they take
python -m benchmarks.training_step --write           # all settings: five hours; writes docs/benchmarks/losses/step.md
python -m benchmarks.training_step --quick --write   # those that matter most: a quarter of an hour
python -m benchmarks.training_step --setting "unet, bfloat16, 2 x 4" --write   # those whose name starts so
python -m benchmarks.training_step --tiny            # tiny volumes, few rounds: shows that it runs
python -m benchmarks.training_step --report-only     # the page from the results' file

A loss's time is that of a step with it minus that of a step whose backward pass begins with a constant gradient of the
network's output; the steps alternate. Next to it stands the loss's time in place: from the network's output to its
value, and from there to the output's gradient. In the regime `exact`, memory is measured in the place of time.

With `--write` each setting's results are added to the results' file as soon as they are there, and those of other
settings stay: a run that was interrupted resumes, and measures again only what another version of the code or another
machine has measured, or what failed. `--quick` has fewer rounds of some settings, and keeps a record of more.

nnU-Net's networks take part where their package is installed, as in nnU-Net's environment. Elsewhere
`pip install --no-deps dynamic-network-architectures` brings them (50 kB): with torch they need nothing else.
"""

import dataclasses
import hashlib
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.cases import EXACT, FRESH, RECYCLED
from benchmarks.machine import machine, versions
from benchmarks.regimes import in_process
from benchmarks.step_page import page
from benchmarks.step_results import Group, Groups, found_from_json, not_measured, read_groups, write_groups
from benchmarks.step_run import missing_package
from benchmarks.step_settings import Setting, settings
from medloss.kernels import dispatch
from pipelines.utils.files import write_text
from pipelines.utils.text import counted, duration

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "docs" / "benchmarks" / "losses"
#: Besides medloss, the sources on which the numbers depend.
_SOURCES = ("contenders", "memory", "plain_torch", "scenes", "step_losses", "step_memory", "step_run", "step_timing")
#: What a process may take: compiling is slow.
_SECONDS = 3600.0


@click.command(help=__doc__)
@click.option("--quick", "which", flag_value="quick", help="The settings that matter most.")
@click.option("--tiny", "which", flag_value="tiny", help="Tiny volumes, few rounds.")
@click.option("--setting", "names", multiple=True, help="The setting of this name, or those whose name starts so.")
@click.option("--regime", "regimes", multiple=True, type=click.Choice([FRESH, RECYCLED, EXACT]), help="Default: all.")
@click.option("--kernels", multiple=True, type=click.Choice(dispatch.NAMES), help="Default: the setting's.")
@click.option("--rounds", type=click.IntRange(min=2), help="Rounds that count.")
@click.option("--write", is_flag=True, help="Write step.md and step.json in docs/benchmarks/losses.")
@click.option("--out", type=click.Path(path_type=Path), default=_FOLDER, help="Another folder for --write.")
@click.option("--again", is_flag=True, help="Measure what has been measured, too.")
@click.option("--list", "only_list", is_flag=True, help="Measure nothing; list the settings.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write the page from step.json.")
def main(
    which: str | None,
    names: tuple[str, ...],
    regimes: tuple[str, ...],
    kernels: tuple[str, ...],
    rounds: int | None,
    write: bool,
    out: Path,
    again: bool,
    only_list: bool,
    report_only: bool,
) -> None:
    """Measure setting by setting, show the page or write it."""
    if write and (rounds or kernels):
        raise click.ClickException(
            f"--write: got {'--rounds' if rounds else '--kernels'}; expected measurements with all rounds and kernels, "
            "which a poorer one would replace; without --write the page is shown"
        )
    stored = out / "step.json"
    groups = read_groups(stored) if write or report_only or only_list else {}
    if report_only and not groups:
        raise click.ClickException(f"{stored}: no results; expected those of an earlier --write")
    if not report_only:
        chosen = [
            dataclasses.replace(s, rounds=rounds or s.rounds, kernels=kernels or s.kernels)
            for s in named(settings(which or ""), names)
        ]
        wanted = [(s, r) for s in chosen for r in s.regimes if not regimes or r in regimes]
        if only_list:
            _list(wanted, groups)
            return
        _measure_all(wanted, groups, stored if write else None, again)
    text = page(groups)
    if write or report_only:
        write_text(out / "step.md", text)
        click.echo(f"written to {out / 'step.md'}")
    else:
        click.echo(text)


def named(available: Sequence[Setting], names: Sequence[str]) -> list[Setting]:
    """The settings of these names; or where a name is none, those that start with it. All without names."""
    chosen: list[Setting] = []
    for name in names:
        found = [s for s in available if s.key == name] or [s for s in available if s.key.startswith(name)]
        if not found:
            raise click.ClickException(f"--setting {name}: no such setting; expected one that --list shows")
        chosen += [s for s in found if s not in chosen]
    return chosen if names else list(available)


def _list(wanted: Sequence[tuple[Setting, str]], groups: Groups) -> None:
    made_on = _made_on()
    for setting, regime in wanted:
        note = missing_package(setting)
        if known := groups.get((setting.key, regime)):
            note = "recorded" if _is_current(known, setting, made_on) else "recorded with other code or another machine"
        click.echo(f"{setting.key}; {regime}: about {duration(setting.seconds(regime))}{note and f'; {note}'}")
    seconds = sum(setting.seconds(regime) for setting, regime in wanted)
    click.echo(f"{counted(len(wanted), 'measurement')}, about {duration(seconds)} on two quiet cores")


def _measure_all(wanted: Sequence[tuple[Setting, str]], groups: Groups, stored: Path | None, again: bool) -> None:
    """Measure what the groups lack, and add it to them and, where one is given, to the file."""
    made_on = _made_on()
    notes = dict.fromkeys(f"{s.network}: skipped, {note}" for s, _ in wanted if (note := missing_package(s)))
    for note in notes:
        click.echo(note, err=True)
    left = []
    for setting, regime in wanted:
        known = groups.get((setting.key, regime))
        if known and _is_current(known, setting, made_on) and not again:
            click.echo(f"{setting.key}, {regime}: measured before", err=True)
        elif not missing_package(setting):
            left.append((setting, regime))
    expected, spent, passed = sum(s.seconds(r) for s, r in left), 0.0, 0.0
    click.echo(f"{counted(len(left), 'measurement')}, about {duration(expected)} on two quiet cores", err=True)
    for number, (setting, regime) in enumerate(left, 1):
        start, used = time.perf_counter(), _used()
        found, note = in_process(dataclasses.asdict(setting), regime, _SECONDS)
        rows = (not_measured(setting, regime, note),) if found is None else tuple(map(found_from_json, found))
        wall = time.perf_counter() - start
        groups[setting.key, regime] = Group(rows, _digest(setting), made_on, _share_of_others(used, wall))
        if stored is not None:
            write_groups(stored, groups)
        spent, passed = spent + wall, passed + setting.seconds(regime)
        rest = f"; {number} of {len(left)}, about {duration((expected - passed) * spent / passed)} left"
        click.echo(f"{setting.key}, {regime}: {duration(wall)}{note and f', {note}'}{rest}", err=True)


def _made_on() -> str:
    return f"{machine()}, MONAI {versions()['monai']}, numba {versions()['numba']}"


def _is_current(known: Group, setting: Setting, made_on: str) -> bool:
    """Whether it is of this code and machine, and of this setting or one of the same name with more rounds."""
    fuller = [s for s in settings() if s.key == setting.key and s.rounds > setting.rounds]
    codes = {_digest(s) for s in (setting, *fuller)}
    return known.complete and known.machine == made_on and known.code in codes


def _digest(setting: Setting) -> str:
    """Of the setting and of the sources that are measured."""
    digest = hashlib.sha256(repr(setting).encode())
    for path in [
        *sorted((_ROOT / "medloss").rglob("*.py")),
        *(_ROOT / "benchmarks" / f"{name}.py" for name in _SOURCES),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _used() -> tuple[float, float] | None:
    """Seconds of processor time: of all processes, and of this one with its children; None where it is unknown."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    numbers = [int(number) for number in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(numbers) - numbers[3] - numbers[4]  # less idle, and waiting for a disk
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK"), sum(usage.ru_utime + usage.ru_stime for usage in mine)


def _share_of_others(before: tuple[float, float] | None, wall: float) -> float | None:
    after = _used()
    if before is None or after is None:
        return None
    others = (after[0] - before[0]) - (after[1] - before[1])
    return round(min(1.0, max(0.0, others / (wall * (os.cpu_count() or 1)))), 3)


if __name__ == "__main__":
    main()
