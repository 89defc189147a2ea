"""Put faults into a copy of the code, one at a time, and report which tests notice.

`benchmarks/mutants.yaml` lists the faults. Each is tried with the test files that its row names; a survivor then with
all tests (`--whole`: those that are not slow; `--everything`: the slow ones, too).

    python -m benchmarks.mutants --only eager-mask-multiplied
    python -m benchmarks.mutants --whole --out results/mutants.csv
"""

import argparse
import contextlib
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("mutants.yaml")
#: The tests that are run unless others are selected.
NOT_SLOW = '-m "not slow"'
#: The test of the list itself, which would fail in every copy that has a fault in it.
_OWN_TEST = "tests/benchmarks/test_mutants.py"
_PYTEST = ("-x", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", f"--ignore={_OWN_TEST}")
#: Seconds for one run of the named test files, and of all.
_TIMEOUT_S, _WHOLE_TIMEOUT_S = 600.0, 4 * 3600.0
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        id: its name.
        file: the file that it is put into, relative to the checkout.
        broken: what is wrong then, in a phrase.
        old: a text that occurs once in the file.
        new: what takes its place.
        tests: the test files likely to notice, the likeliest first.
    """

    id: str
    file: str
    broken: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        id: the mutant's name.
        file: the file that was changed.
        outcome: `killed`, `survived`, or `not run` where pytest itself failed.
        by: which tests decided: `named`, `whole` or `everything`.
        test: the first test that failed; `timeout` or the signal where there is none.
        seconds: of all runs of pytest together.
        broken: the fault, in a phrase.
    """

    id: str
    file: str
    outcome: str
    by: str
    test: str
    seconds: float
    broken: str


def read_mutants(table: Path = TABLE) -> list[Mutant]:
    """The rows of the table."""
    rows = yaml.safe_load(table.read_text(encoding="utf-8"))
    return [Mutant(**(row | {"tests": tuple(row["tests"])})) for row in rows]


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """Why rows cannot be used: a line per reason; none if all is well."""
    found = [f"{name}: {count} rows of this id" for name, count in Counter(m.id for m in mutants).items() if count > 1]
    for mutant in mutants:
        path = root / mutant.file
        if not path.is_file():
            found.append(f"{mutant.id}: no file {mutant.file}")
            continue
        text = path.read_text(encoding="utf-8")
        if (count := text.count(mutant.old)) != 1:
            found.append(f"{mutant.id}: its old text occurs {count} times in {mutant.file}; expected once")
            continue
        if mutant.old == mutant.new:
            found.append(f"{mutant.id}: its new text is its old one")
        try:
            compile(text.replace(mutant.old, mutant.new), mutant.file, "exec", dont_inherit=True)
        except SyntaxError as error:
            found.append(f"{mutant.id}: {mutant.file} does not compile: {error}")
        if not mutant.tests:
            found.append(f"{mutant.id}: names no test file")
        found += [f"{mutant.id}: no test file {test}" for test in mutant.tests if not (root / test).is_file()]
    return found


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the checkout's files, those that git ignores apart, in a temporary folder."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0")
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name) / "tree"
        for file in filter(None, files):
            if (ROOT / file).is_file():
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, tree / file)
        # Tests look for real data next to the checkout.
        if (ROOT.parent / "shared").is_dir():
            (Path(name) / "shared").symlink_to(ROOT.parent / "shared")
        yield tree


@contextlib.contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    """The fault in the tree's file, until the end of the `with` statement."""
    path = tree / mutant.file
    before, times = path.read_bytes(), path.stat()
    path.write_text(before.decode().replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(before)
        # Bytecode and compiled kernels are kept by the time of their source.
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def try_mutant(
    mutant: Mutant,
    tree: Path,
    *,
    select: str = NOT_SLOW,
    whole: bool = False,
    everything: bool = False,
    timeout_s: float = _TIMEOUT_S,
) -> Outcome:
    """Run the tests on the tree with a fault, until one fails.

    Args:
        mutant: the fault.
        tree: a copy of the checkout.
        select: arguments of pytest for the named test files.
        whole: survivors of these are tried with all tests that are not slow.
        everything: those that survive until then with all tests.
        timeout_s: seconds for the named test files; a run that takes longer counts as a failure.
    """
    stages = [("named", [*mutant.tests, *shlex.split(select)], timeout_s)]
    stages += [("whole", ["tests", *shlex.split(NOT_SLOW)], _WHOLE_TIMEOUT_S)] if whole else []
    stages += [("everything", ["tests"], _WHOLE_TIMEOUT_S)] if everything else []
    outcome, by, test, seconds = "survived", "", "", 0.0
    with applied(mutant, tree):
        for stage, arguments, limit_s in stages:
            by = stage
            outcome, test, spent = _run_tests(tree, arguments, _environment(mutant, tree), limit_s)
            seconds += spent
            if outcome != "survived":
                break
    return Outcome(mutant.id, mutant.file, outcome, by, test, round(seconds, 1), mutant.broken)


def _environment(mutant: Mutant, tree: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(tree), "MEDLOSS_CACHE": str(tree.parent / "cache")}
    if mutant.file.startswith("medloss/kernels/numba/"):
        # numba looks at the file of the function that it has compiled, and not at those that were compiled into it.
        own["NUMBA_CACHE_DIR"] = str(tree.parent / "numba" / mutant.id)
    if mutant.file == "pipelines/data/data_root.py":
        own["MEDLOSS_CACHE"] = str(tree.parent / "made" / mutant.id)
    return os.environ | own


def _run_tests(
    tree: Path, arguments: Sequence[str], environment: dict[str, str], timeout_s: float
) -> tuple[str, str, float]:
    """Outcome, the first test that failed, and seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *_PYTEST, *arguments],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return "killed", "timeout", time.perf_counter() - began
        finally:
            # What the tests have started ends with them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        said = log.read()
    seconds = time.perf_counter() - began
    failed = _FAILURE.search(said)
    if code == 0:
        return "survived", "", seconds
    if code == 5:
        return "survived", "no test was selected", seconds
    if code in (1, 2):  # 2: a test file could not even be imported
        return "killed", failed[1] if failed else "a test that is not named", seconds
    if code < 0:
        return "killed", f"signal {-code}", seconds
    print(said[-3000:], file=sys.stderr)
    return "not run", f"pytest ended with {code}", seconds


def _write(path: Path, outcomes: Sequence[Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="ID", help="only these mutants")
    parser.add_argument("--select", default=NOT_SLOW, help="pytest's arguments for the named test files [%(default)s]")
    parser.add_argument("--whole", action="store_true", help="try survivors with all tests that are not slow")
    parser.add_argument("--everything", action="store_true", help="try survivors with all tests")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="seconds for the named files [%(default)g]")
    parser.add_argument("--out", type=Path, help="CSV with a row per mutant")
    asked = parser.parse_args(arguments)
    mutants = read_mutants()
    if bad := problems(mutants):
        parser.error("\n".join(bad))
    if unknown := set(asked.only or ()) - {mutant.id for mutant in mutants}:
        parser.error(f"--only: no mutant {', '.join(sorted(unknown))}; see {TABLE.relative_to(ROOT)}")
    chosen = [mutant for mutant in mutants if not asked.only or mutant.id in asked.only]
    outcomes: list[Outcome] = []
    with copied_tree() as tree:
        for number, mutant in enumerate(chosen, start=1):
            outcome = try_mutant(
                mutant,
                tree,
                select=asked.select,
                whole=asked.whole,
                everything=asked.everything,
                timeout_s=asked.timeout,
            )
            outcomes.append(outcome)
            what = f"{outcome.outcome} {outcome.test}".strip()
            print(f"[{number}/{len(chosen)}] {outcome.id}: {what} ({outcome.by}, {outcome.seconds:.0f} s)", flush=True)
            if asked.out is not None:
                _write(asked.out, outcomes)
    counts = Counter(outcome.outcome for outcome in outcomes)
    print(f"{len(outcomes)} mutants: {', '.join(f'{count} {word}' for word, count in counts.items())}")
    for outcome in outcomes:
        if outcome.outcome != "killed":
            print(f"{outcome.outcome}: {outcome.id}: {outcome.broken}")
    return 1 if counts["not run"] else 0


if __name__ == "__main__":
    sys.exit(main())
