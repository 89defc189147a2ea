"""An executor is one file and one line: one that is added here has its line in the help, its options, and its runs."""

import importlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli_call import call_medloss
from tiny import tiny_manifest

from pipelines.cli import compare as compare_command
from pipelines.comparison import compare
from pipelines.comparison.executors import EXECUTORS
from pipelines.comparison.executors.base import ExecutorOption, register
from pipelines.comparison.executors.command_lines import worker_command
from pipelines.runs.plan import Plan


@dataclass(frozen=True)
class _Scripts:
    """Writes a script per run."""

    into: Path
    prefix: str
    jobs: int | None
    for_programs: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing can be missing."""

    def hand_over(self, folder: Path, plan: Plan, indices: list[int], message: Callable[[str], None]) -> None:
        """Write them."""
        self.into.mkdir()
        for index in indices:
            line = shlex.join([*worker_command(folder, plan), "--index", str(index)])
            (self.into / f"{self.prefix}{index}.sh").write_text(f"{line}\n")
        message(f"{len(indices)} scripts, {self.jobs} at a time")


@pytest.fixture
def scripts() -> Iterator[None]:
    """An executor with two options; `compare` is made once more, as if its file had been there at its import."""

    @register(
        "scripts",
        help="write a script for each",
        options=(
            ExecutorOption("--scripts-folder", "Where they are written.", "DIR", type=Path),
            ExecutorOption("--scripts-word", "What their names begin with.", multiple=True),
        ),
    )
    def scripts(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> _Scripts:
        return _Scripts(options["scripts_folder"], "-".join(options.get("scripts_word", ())), jobs)

    importlib.reload(compare_command)
    yield
    del EXECUTORS["scripts"]
    importlib.reload(compare_command)


def test_a_new_executor_is_found_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: None) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    code, shown, _ = call_medloss("compare", "--help-all")
    assert code == 0
    words = " ".join(shown.split())
    assert "; none: print one command line per run; scripts: write a script for each." in words
    assert "--scripts-folder DIR Where they are written." in words
    assert "scripts.folder" in call_medloss("compare", "phantom", "--out", "x", "--set", "scripts.foldr=y")[2]

    out, into = tmp_path / "out", tmp_path / "scripts"
    command = ("compare", tiny_manifest(tmp_path, dims=2), "--losses", "dice,focal", "--reference", "none", "--epochs",
               1, "--precision", "float32", "--out", out)  # fmt: skip
    options = ("--scripts-folder", into, "--scripts-word", "run", "--scripts-word", "")
    code, _, err = call_medloss(*command, *options)
    assert (code, err) == (
        2, "error: --scripts-folder: it goes with --executor scripts, and got --executor local\n"
    )  # fmt: skip
    assert not out.exists()

    handed: list[Any] = []
    monkeypatch.setattr(compare, "compare_losses", lambda *given: handed.append(given))
    code, _, err = call_medloss(*command, "--executor", "scripts", "--jobs", 3, *options)
    assert code == 0, err
    folder, plan, execution, _ = handed[0]
    lines: list[str] = []
    execution.handover.hand_over(folder, plan, [0, 1], lines.append)
    assert lines == ["2 scripts, 3 at a time"]
    assert sorted(path.name for path in into.iterdir()) == ["run-0.sh", "run-1.sh"]
    assert (into / "run-1.sh").read_text().split()[-4:] == ["worker", str(out), "--index", "1"]


def test_what_an_executor_may_be_called() -> None:
    def nothing(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> None:
        return None

    with pytest.raises(ValueError, match="an executor 'slurm' is registered already"):
        register("slurm", help="once more")(nothing)
    with pytest.raises(ValueError, match=r"executor 'other': got the option --jobs; expected --other-\.\.\."):
        register("other", help="takes another's flag", options=(ExecutorOption("--jobs", "Runs."),))(nothing)
    assert list(EXECUTORS) == ["local", "slurm", "none"]
