"""Comparisons end to end: real processes on a tiny synthetic data set; killed, interrupted, failing, and resumed."""

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mirrored import history_of, stored
from thread_workers import DIES, FAILS, FULL, WAITS, Workers, mirrored_status
from tiny import tiny_manifest
from waiting import PROCESS_S, wait_for

from pipelines import cli
from pipelines.comparison.executors.local import execute
from pipelines.comparison.worker import ending_in_order
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import (
    SUBGROUPS,
    RunState,
    adopt_plan,
    require_plan,
    run_folder,
    run_states,
    seconds_left,
)
from pipelines.runs.plan import Plan, PlannedRun, make_plan
from pipelines.tracking.mlflow_mirror import Mirror
from pipelines.tracking.mlflow_store import local_uri, quiet_mlflow
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import DiskFullError, UserError
from pipelines.utils.files import read_json
from pipelines.utils.locks import held_lock, holder, is_held

#: Losses that misbehave, for workers to import.
_ODD_LOSSES = '''
import os, signal, time
from pathlib import Path
from torch import nn
from torch.nn.functional import cross_entropy

_FIXED = "ODD_FIXED" in os.environ

class _Plain(nn.Module):
    def forward(self, logits, target):
        self.misbehave()
        value = cross_entropy(logits, target.squeeze(1).long())
        return value * self.factor()
    def misbehave(self):
        pass
    def factor(self):
        return 1.0

class Gated(_Plain):
    """The second step waits until a file is there."""
    steps = 0
    def misbehave(self):
        self.steps += 1
        for _ in range(30_000):  # half an hour: of a killed test nothing stays for ever
            if self.steps == 1 or Path(os.environ["ODD_GATE"]).exists():
                break
            time.sleep(0.06)

class Diverges(_Plain):
    def factor(self):
        return 1.0 if _FIXED else float("nan")

class Kills(_Plain):
    def misbehave(self):
        if not _FIXED:
            os.kill(os.getpid(), signal.SIGKILL)
'''
_EPOCHS = 3


class _Compare:
    """`medloss compare` in a folder, as separate processes."""

    def __init__(self, folder: Path, losses: str, *options: str) -> None:
        self.folder = folder
        self.out = folder / "out put"
        self.gate = folder / "gate"
        (folder / "odd.py").write_text(_ODD_LOSSES)
        manifest = tiny_manifest(folder, dims=2)
        self.arguments = [
            "compare",
            str(manifest),
            "--losses",
            losses,
            "--epochs",
            str(_EPOCHS),
            "--out",
            str(self.out),
        ]
        self.arguments += ["--precision", "float32", "--reference", "none", *options]
        self.environment = os.environ | {
            "PYTHONPATH": str(folder), "ODD_GATE": str(self.gate), "MEDLOSS_CACHE": str(folder / "cache"),
            "PYTHONWARNINGS": "error",
        }  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines.cli", *self.arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
            start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *self.arguments, *more]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment | environment, timeout=PROCESS_S
        )

    def clean_up(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run_dir(self, loss: str) -> RunFolder:
        return RunFolder(self.out / "runs" / f"{loss}-fold0-seed0")

    def under_way(self, loss: str, attempt: int = 1) -> bool:
        """Whether a worker has the run, at this attempt, an epoch after its start or later."""
        run_dir = self.run_dir(loss)
        begun = read_json(run_dir.path / "attempts.json") == {"attempts": attempt}
        return begun and len(run_dir.epochs) >= 1 and is_held(run_dir.path / "lock")

    def done(self, *losses: str) -> bool:
        return all((self.run_dir(loss).result or {}).get("state") == "done" for loss in losses)

    def files(self, loss: str) -> dict[str, tuple[int, bytes]]:
        names = ("result.json", "epochs.csv", "cases.csv", "checkpoint.pt", "attempts.json")
        paths = [path for name in names if (path := self.run_dir(loss).path / name).is_file()]
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    def stored(self) -> dict[str, Any]:
        """The runs in MLflow, by their tag `medloss.run`."""
        quiet_mlflow()
        import mlflow

        if not (self.out / "mlflow.db").exists():
            return {}
        client = mlflow.MlflowClient(tracking_uri=local_uri(self.out))
        experiment = client.get_experiment_by_name("tiny_2d")
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
        by_name = {run.data.tags["medloss.run"].removesuffix("-fold0-seed0"): run for run in runs}
        assert len(by_name) == len(runs)
        return by_name

    def steps(self, run: Any, metric: str) -> list[int]:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=local_uri(self.out))
        return [entry.step for entry in client.get_metric_history(run.info.run_id, metric)]

    def artifacts(self, run: Any) -> set[str]:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=local_uri(self.out))
        return {item.path for item in client.list_artifacts(run.info.run_id)}


@pytest.fixture
def signals() -> Iterator[None]:
    """Signals as a terminal's process has them, also where the tests are a background job, which ignores Ctrl-C.

    What is ignored stays so in every process that is started.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def comparison(tmp_path: Path, signals: None) -> Any:
    made: list[_Compare] = []

    def make(losses: str, *options: str) -> _Compare:
        made.append(_Compare(tmp_path, losses, *options))
        return made[0]

    yield make
    for one in made:
        one.clean_up()


@pytest.fixture
def medloss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medloss", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code or 0, printed.out, printed.err

    return call


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _only_our_lines(stderr: str) -> bool:
    ours = (
        r"\[\d/\d\] ", r"stopping \d workers?: each run resumes after its last epoch$", "warning: MLflow at ",
        "interrupted: ", r"\S+ fold \d seed \d: its process died ",
    )  # fmt: skip
    return all(re.match("|".join(ours), line) for line in stderr.splitlines())


# Once through the real command: two workers' processes, killed with it, and resumed.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_killed_as_a_whole_and_resumed(comparison: Any, medloss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = comparison("dice,odd.Gated", "--jobs", "2")
    process = compare.start()
    wait_for(lambda: compare.done("dice") and compare.under_way("odd.Gated"), process, "dice is done")
    plan = require_plan(compare.out)

    code, shown, _ = medloss("status", str(compare.out))
    assert code == 0
    assert "2 runs: 1 done, 1 running" in shown
    assert re.search(r"odd\.Gated +0 +0 +running +[01]/3", shown)
    # Another comparison, and another worker for the same run: both leave.
    for name in ("PYTHONPATH", "ODD_GATE", "MEDLOSS_CACHE"):
        monkeypatch.setenv(name, compare.environment[name])
    monkeypatch.syspath_prepend(str(compare.folder))
    code, shown, err = medloss(*compare.arguments)
    assert (code, shown) == (2, "")
    assert err == (
        f"error: --out: another process is running the comparison in {compare.out}; "
        f"see `medloss status {compare.out}`\n"
    )
    refused = medloss("worker", str(compare.out), "--index", "1")
    assert refused[0] == 2 and "it names the loss 'odd.Gated', whose import runs code" in refused[2]
    assert medloss("worker", str(compare.out), "--index", "1", "--trust")[0] == 0
    assert read_json(compare.run_dir("odd.Gated").path / "attempts.json") == {"attempts": 1}

    workers = {holder(run_folder(compare.out, run).path / "lock") for run in plan.runs}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(_alive(pid) for pid in workers if pid is not None), what="the workers are gone")
    wait_for(lambda: not is_held(compare.run_dir("odd.Gated").path / "lock"), what="the lock is free")
    assert compare.run_dir("odd.Gated").result is None
    before = compare.files("dice")
    assert "1 done, 1 interrupted" in medloss("status", str(compare.out))[1]

    compare.gate.touch()
    code, shown, err = medloss(*compare.arguments)
    assert code == 0, err
    assert compare.files("dice") == before
    assert read_json(compare.run_dir("odd.Gated").path / "attempts.json") == {"attempts": 2}
    assert require_plan(compare.out) == plan

    assert _only_our_lines(err)
    assert "dice" not in err.replace(", dice 0.", "").replace("odd.Gated", "")  # finished before: not reported again
    assert re.search(r"\[2/2\] odd\.Gated fold 0 seed 0: done, dice 0\.\d{3} \(0 s left in all\)", err)
    for loss in ("dice", "odd.Gated"):
        assert re.search(rf"^{re.escape(loss)} +0\.\d{{4}} .* 1/1$", shown, re.MULTILINE)
        assert [row["epoch"] for row in compare.run_dir(loss).epochs] == [1, 2, 3]
    assert "means over 2 cases and one seed: small differences may be chance" in shown
    assert "\nToo few cases to tell: with 2 cases " in shown
    report = compare.out / "report" / "report.html"
    for path in (compare.out / "runs", compare.out / "table.csv", compare.out / "table.md", report):
        assert str(path) in shown
        assert path.exists()
    (command,) = re.findall(r"^MLflow +(.*)$", shown, re.MULTILINE)
    assert shlex.split(command)[1:] == ["ui", "--backend-store-uri", local_uri(compare.out)]
    assert re.search(r"^\| odd\.Gated \| 0\.\d{4} ", (compare.out / "table.md").read_text(), re.MULTILINE)
    assert "2 runs: 2 done" in medloss("status", str(compare.out))[1]

    runs = compare.stored()
    assert set(runs) == {"parent", "dice", "odd.Gated"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop("parent")
    assert compare.artifacts(parent) == {"table.csv", "table.md", "cases.csv", "report"}
    for loss, run in runs.items():
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["medloss.loss"], tags["medloss.fold"], tags["medloss.seed"]) == (loss, "0", "0")
        assert tags["medloss.comparison"] == plan.id
        assert tags["medloss.attempt"] == ("2" if loss == "odd.Gated" else "1")
        assert run.data.params["epochs"] == str(_EPOCHS)
        assert compare.steps(run, "train/loss") == compare.steps(run, "val/dice") == [1, 2, 3]
        assert compare.artifacts(run) == {"config.json", "result.json", "epochs.csv", "cases.csv"}


@pytest.mark.slow
def test_killed_alone_then_interrupted_then_done(comparison: Any) -> None:
    compare = comparison("odd.Gated,dice", "--jobs", "1")
    process = compare.start()
    wait_for(lambda: compare.under_way("odd.Gated"), process, "the run is under way")
    worker = holder(compare.run_dir("odd.Gated").path / "lock")
    assert worker is not None
    process.kill()
    process.wait()
    wait_for(lambda: not _alive(worker), what="the worker has seen that its comparison is gone")

    process = compare.start()
    wait_for(lambda: compare.under_way("odd.Gated", attempt=2), process, "the run is under way")
    under_way = {"parent": "RUNNING", "odd.Gated": "RUNNING"}
    wait_for(
        lambda: {name: run.info.status for name, run in compare.stored().items()} == under_way, process, "MLflow has it"
    )
    worker = holder(compare.run_dir("odd.Gated").path / "lock")
    assert worker is not None
    os.killpg(process.pid, signal.SIGINT)
    shown, err = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 130
    assert err.endswith("interrupted: run the same command again to resume\n")
    assert _only_our_lines(err)
    assert not _alive(worker)
    assert not re.search("failed|Traceback", shown + err)  # what has not ended has not failed
    assert {name: run.info.status for name, run in compare.stored().items()} == {
        "parent": "KILLED", "odd.Gated": "KILLED",
    }  # fmt: skip

    compare.gate.touch()
    ended = compare.run()
    assert ended.returncode == 0, ended.stderr
    assert _only_our_lines(ended.stderr)
    runs = compare.stored()
    assert {name: run.info.status for name, run in runs.items()} == {
        "parent": "FINISHED", "odd.Gated": "FINISHED", "dice": "FINISHED",
    }  # fmt: skip
    assert [row["epoch"] for row in compare.run_dir("odd.Gated").epochs] == [1, 2, 3]
    assert compare.steps(runs["odd.Gated"], "train/loss") == [1, 2, 3]
    assert runs["odd.Gated"].data.tags["medloss.attempt"] == "3"


@pytest.mark.slow
def test_ended_by_a_scheduler(comparison: Any) -> None:
    compare = comparison("odd.Gated", "--jobs", "1")
    process = compare.start()
    wait_for(lambda: compare.under_way("odd.Gated"), process, "the run is under way")
    wait_for(lambda: mirrored_status(compare.out, "odd.Gated-fold0-seed0") == "RUNNING", process, "MLflow has the run")
    worker = holder(compare.run_dir("odd.Gated").path / "lock")
    process.terminate()
    _, err = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 130
    assert err.endswith("interrupted: run the same command again to resume\n")
    assert worker is not None and not _alive(worker)
    assert {run.info.status for run in compare.stored().values()} == {"KILLED"}


@pytest.mark.slow
def test_failing_runs_end_no_other(comparison: Any, medloss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = comparison("odd.Kills,odd.Diverges,dice", "--jobs", "1")
    ended = compare.run()
    assert ended.returncode == 1, ended.stderr
    assert compare.done("dice"), ended.stdout + ended.stderr
    died = (
        "its process died 2 times (signal 9); often a lack of memory: lower --batch-size or --patch, or run fewer jobs"
    )
    assert f"failed: odd.Kills fold 0 seed 0: {died}\n" in ended.stdout
    diverged = re.search(r"^failed: odd\.Diverges fold 0 seed 0: (the loss is nan in epoch 1.*)$", ended.stdout, re.M)
    assert diverged is not None and "tiny" not in diverged[1].split("on the cases")[0]
    assert re.search(r"on the cases phantom_\d{3}", diverged[1])
    assert f"odd.Diverges fold 0 seed 0: failed: {diverged[1]}" in ended.stderr
    assert "odd.Kills fold 0 seed 0: its process died (signal 9) and is started again\n" in ended.stderr
    assert _only_our_lines(ended.stderr)
    assert re.search(r"^odd\.Kills +failed .*0/1$", ended.stdout, re.MULTILINE)
    runs = compare.stored()
    assert {name: run.info.status for name, run in runs.items()} == {
        "parent": "FAILED", "odd.Kills": "FAILED", "odd.Diverges": "FAILED", "dice": "FINISHED",
    }  # fmt: skip
    assert runs["odd.Kills"].data.tags["medloss.error"] == died
    assert runs["odd.Kills"].data.tags["medloss.attempt"] == "2"

    before = {loss: compare.files(loss) for loss in ("odd.Kills", "odd.Diverges", "dice")}
    monkeypatch.syspath_prepend(str(compare.folder))
    assert medloss(*compare.arguments) == (1, ended.stdout, "")
    assert {loss: compare.files(loss) for loss in before} == before

    fixed = compare.run("--retry-failed", ODD_FIXED="1")
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr
    assert "failed" not in fixed.stdout
    assert compare.done("odd.Kills", "odd.Diverges")
    assert compare.files("dice") == before["dice"]
    runs = compare.stored()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert not any("medloss.error" in run.data.tags for run in runs.values())


def _tiny_comparison(folder: Path, empty_store: Path, losses: str) -> tuple[Path, list[str]]:
    """A comparison's folder, and the command for it."""
    out = folder / "out"
    out.mkdir()
    adopt_plan(out, _plan(tiny_manifest(folder, dims=2), *losses.split(",")))
    shutil.copy(empty_store, out / "mlflow.db")
    command = ["compare", str(folder / "tiny_2d.yaml"), "--losses", losses, "--epochs", str(_EPOCHS), "--jobs", "1"]
    return out, [*command, "--precision", "float32", "--reference", "none", "--out", str(out)]


def _statuses(out: Path) -> dict[str, str]:
    return {
        name.removesuffix("-fold0-seed0"): run.info.status for name, run in stored(local_uri(out), "tiny_2d").items()
    }


def _run_files(out: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "runs").rglob("*") if path.is_file()}


@pytest.mark.usefixtures("signals")
def test_a_worker_that_dies_and_a_run_that_fails_stop_no_other(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    out, command = _tiny_comparison(tmp_path, empty_store, "focal,tversky,dice")
    workers = Workers(monkeypatch)
    workers.behaviour = {"focal": DIES, "tversky": FAILS}
    code, shown, err = medloss(*command)
    assert code == 1, err
    died = (
        "its process died 2 times (signal 9); often a lack of memory: lower --batch-size or --patch, or run fewer jobs"
    )
    assert f"failed: focal fold 0 seed 0: {died}\n" in shown
    diverged = "the loss is nan in epoch 1, on the cases [a, b]"
    assert f"failed: tversky fold 0 seed 0: {diverged}\n" in shown
    assert f"tversky fold 0 seed 0: failed: {diverged}" in err
    assert "focal fold 0 seed 0: its process died (signal 9) and is started again\n" in err
    assert _only_our_lines(err)
    assert re.search(r"^focal +failed .*0/1$", shown, re.MULTILINE)
    assert re.search(r"^dice +0\.\d{4} .* 1/1$", shown, re.MULTILINE)
    assert workers.started == {"focal-fold0-seed0": 2, "tversky-fold0-seed0": 1, "dice-fold0-seed0": 1}
    assert _statuses(out) == {"parent": "FAILED", "focal": "FAILED", "tversky": "FAILED", "dice": "FINISHED"}
    tags = stored(local_uri(out), "tiny_2d")["focal-fold0-seed0"].data.tags
    assert (tags["medloss.error"], tags["medloss.attempt"]) == (died, "2")

    before = _run_files(out)
    assert medloss(*command) == (1, shown, "")
    assert _run_files(out) == before

    workers.behaviour = {}
    code, shown, err = medloss(*command, "--retry-failed")
    assert code == 0, err
    assert "failed" not in shown
    assert workers.started["dice-fold0-seed0"] == 1
    assert set(_statuses(out).values()) == {"FINISHED"}
    assert not any("medloss.error" in run.data.tags for run in stored(local_uri(out), "tiny_2d").values())


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_ends_its_workers_and_is_resumed(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, empty_store: Path, number: signal.Signals
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    for name in ("_FIRST_S", "_EVERY_S"):
        monkeypatch.setattr(f"pipelines.tracking.mlflow_mirror.{name}", 0.05)
    out, command = _tiny_comparison(tmp_path, empty_store, "focal,dice")
    workers = Workers(monkeypatch)
    workers.behaviour = {"focal": WAITS}

    def interrupt() -> None:
        wait_for(lambda: mirrored_status(out, "focal-fold0-seed0") == "RUNNING", what="MLflow has the run")
        os.kill(os.getpid(), number)

    workers.waits = interrupt
    code, shown, err = medloss(*command)
    assert (code, shown) == (130, "")  # no table of nothing
    assert err.splitlines()[-2:] == [
        "stopping 1 worker: each run resumes after its last epoch",
        "interrupted: run the same command again to resume",
    ]
    assert _only_our_lines(err)
    assert not re.search("failed|Traceback", err)  # what has not ended has not failed
    assert not any(worker.thread.is_alive() for worker in workers.all)
    assert _statuses(out) == {"parent": "KILLED", "focal": "KILLED"}

    workers.behaviour = {}
    code, shown, err = medloss(*command)
    assert code == 0, err
    assert _only_our_lines(err)
    assert _statuses(out) == {"parent": "FINISHED", "focal": "FINISHED", "dice": "FINISHED"}
    run = stored(local_uri(out), "tiny_2d")["focal-fold0-seed0"]
    assert [step for step, _ in history_of(local_uri(out), run)["train/loss"]] == [1, 2, 3]
    assert run.data.tags["medloss.attempt"] == "2"


@pytest.mark.usefixtures("signals")
def test_an_interrupted_comparison_waits_for_no_server(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    """What has ended is shown; a server that hangs is left alone after some seconds."""
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    for name in ("_FIRST_S", "_EVERY_S", "_PATIENCE_S"):
        monkeypatch.setattr(f"pipelines.tracking.mlflow_mirror.{name}", 0.05)
    out, command = _tiny_comparison(tmp_path, empty_store, "focal,dice")
    workers = Workers(monkeypatch)
    workers.behaviour = {"dice": WAITS}
    hangs, waited = threading.Event(), list[bool]()

    def interrupt() -> None:
        wait_for(lambda: mirrored_status(out, "dice-fold0-seed0") == "RUNNING", what="MLflow has the run")
        monkeypatch.setattr(Mirror, "_send_numbers", lambda *_: waited.append(hangs.wait(60)))
        os.kill(os.getpid(), signal.SIGINT)

    workers.waits = interrupt
    try:
        code, shown, err = medloss(*command)
        assert waited == []
    finally:
        hangs.set()
    assert code == 130
    assert err.endswith("interrupted: run the same command again to resume\n")
    assert re.search(r"^focal +0\.\d{4} .* 1/1$", shown, re.MULTILINE)


def test_a_full_disk_ends_a_comparison_and_fails_no_run(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    out, command = _tiny_comparison(tmp_path, empty_store, "focal,dice,tversky")
    workers = Workers(monkeypatch)
    workers.behaviour = {"dice": FULL}
    code, shown, err = medloss(*command)
    assert (code, shown) == (DiskFullError.exit_code, "")
    full = f"error: no space left in {out}: free some, and run the same command again to resume"
    assert err.splitlines()[-1] == full
    assert _states(out) == ["done", "interrupted", "waiting"]
    # So is one whose plan or table cannot be written.
    workers.behaviour = {}
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.comparison.compare.write_table", _no_space)
        code, _, err = medloss(*command)
    assert (code, err.splitlines()[-1]) == (DiskFullError.exit_code, full)

    assert medloss(*command)[0] == 0
    assert _states(out) == ["done"] * 3
    assert workers.started["focal-fold0-seed0"] == 1


def _states(out: Path) -> list[str]:
    return [state.state for state in run_states(out, require_plan(out))]


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "table.csv")


def test_a_worker_ends_with_its_comparison(tmp_path: Path) -> None:
    """As where the comparison alone is killed; what the worker has started ends, too."""
    worker = (
        "import os, subprocess, sys, time\n"
        "from pipelines.comparison.worker import exit_with\n"
        "exit_with(os.getppid())\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    comparison = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-c", comparison, worker], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            started = [int(word) for word in process.stdout.readline().split()]
            assert len(started) == 2 and all(map(_alive, started))
            process.kill()
            wait_for(lambda: not any(map(_alive, started)), what="the worker and its child are gone")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("signals")
def test_signals_that_are_ignored_end_no_worker() -> None:
    """The job of a script, in the background: Ctrl-C is not meant for it, and its comparison ignores it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ending_in_order():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_a_worker_trains_just_the_run_it_is_given(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    plan = _plan(tiny_manifest(tmp_path, dims=2), "dice", "focal", "tversky")
    adopt_plan(out, plan)
    assert medloss("worker", str(out), "--index", "1", "--threads", "1")[0] == 0
    states = [(run_folder(out, run).result or {}).get("state") for run in plan.runs]
    assert states == [None, "done", None]
    assert [path.name for path in (out / "runs").iterdir()] == ["focal-fold0-seed0"]
    # Where another worker has it, this one leaves it alone.
    with held_lock(run_folder(out, plan.runs[0]).path / "lock"):
        assert medloss("worker", str(out), "--index", "0")[0] == 0
    assert run_folder(out, plan.runs[0]).config is None
    code, _, err = medloss("worker", str(out), "--index", "3")
    assert (code, err) == (2, "error: --index: got 3; the comparison has runs 0 to 2\n")
    code, _, err = medloss("worker", str(tmp_path))
    assert code == 2 and "holds no comparison (no plan.json)" in err and err.count("\n") == 1


def test_workers_that_die_at_once_end_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no libcuda.so.99')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    plan = adopt_plan(out, _plan(tiny_manifest(tmp_path, dims=2), "dice"))
    with pytest.raises(UserError) as refusal:
        execute(out, plan, 2, lambda: None, print)
    assert str(refusal.value) == (
        f"workers die before they train anything (exit code 1): SystemExit: no libcuda.so.99; "
        f"see {out / 'logs' / 'worker-0.log'}"
    )


def test_a_run_that_someone_else_has_is_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = adopt_plan(out, _plan(tiny_manifest(tmp_path, dims=2), "dice"))
    run_dir = run_folder(out, plan.runs[0])
    looked: list[bool] = []
    with held_lock(run_dir.path / "lock"):

        def watch() -> None:
            looked.append(run_dir.result is None)
            if len(looked) == 3:
                run_dir.write_result({"state": "done", "error": None, "metrics": {"dice": 0.5}, "epoch_s": 1.0})

        execute(out, plan, 2, watch, print)
    assert looked == [True, True, True, False]
    assert not (out / "logs").exists()  # it started no worker


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--losses", "dicee"], "no loss 'dicee'; did you mean 'dice'? `medloss losses` lists all"),
        (["--losses", "focal,ce,dice+hd", "--reference", "zzz+ce"],
         "no losses 'zzz', 'ce' (did you mean 'binary_cross_entropy'?), 'hd' (did you mean 'hausdorff_dt'?); "
         "binary_cross_entropy is the softmax cross entropy where classes exclude each other, else a sigmoid per "
         "channel; `medloss losses` lists all"),
        (["--losses", "odd_module.Loss"], "loss: cannot import 'odd_module.Loss': No module named 'odd_module'"),
        (["--losses", ""], "--losses: got none; expected names by commas, or survey, more or all"),
        (["--losses", " , "], "--losses: got none; expected names by commas, or survey, more or all"),
        (["--losses", "dice, dice"], "--losses: one is repeated in dice, dice"),
        (["--losses", "dice + focal,dice+focal"], "--losses: one is repeated in dice+focal, dice+focal"),
        (["--folds", "9"], "fold: got 9; 'tiny_2d' has folds 0, 1, 2"),
        (["--folds", "0,9"], "fold: got 9; 'tiny_2d' has folds 0, 1, 2"),
        (["--folds", "one"], "--folds: got 'one'; expected whole numbers and commas, such as 0,1,2"),
        (["--seeds", "-1"], "--seeds: got -1; expected 0 or more"),
        (["--seeds", "0,0"], "--seeds: one is repeated in 0, 0"),
        (["--threads", "2"], "--threads: a comparison divides the cores among its jobs; pass --jobs instead"),
        (["--epochs", "0"], "epochs: got 0; expected at least 1"),
        (["--out", "tiny_2d.yaml"], "--out: tiny_2d.yaml is no folder; name another one"),
        (["--out", "."], "--out: . is not empty and holds no comparison; name another folder"),
        (["--out", "tiny_2d.yaml/out"], "--out: cannot write in tiny_2d.yaml/out: Not a directory; "
         "name another folder"),
        (["--out", "other"], "--out: other holds another comparison: it has the run focal-fold0-seed0; "
         "name another folder"),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    manifest = tiny_manifest(tmp_path, dims=2)
    adopt_plan(tmp_path / "other", _plan(manifest, "dice", "focal"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = ["compare", "tiny_2d.yaml", "--losses", "dice", "--reference", "none", "--out", "out", *changes]
    assert medloss(*arguments) == (2, "", f"error: {message}\n")
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "compare.lock"}
    assert left == before  # nothing was begun


def test_missing_files_are_refused_and_leave_no_folder(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(tiny_manifest(tmp_path, dims=2).read_text())
    made = load_manifest("tiny_2d.yaml")
    root = resolve_data(made, tmp_path)
    del content["generator"]  # which would draw the file again
    content["cases"] = [
        {"id": case.id, "patient": case.patient, "image": case.images[0], "label": case.label, "fold": case.fold}
        for case in made.cases
    ]
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    (root / content["cases"][0]["label"]).unlink()
    arguments = ["compare", "mine.yaml", "--data-root", str(root), "--losses", "dice", "--epochs", "1", "--out", "out"]
    code, _, err = medloss(*arguments)
    assert (code, Path("out").exists()) == (2, False)
    assert err == (
        f"{content['cases'][0]['label']}: missing\n"
        "error: 'tiny_2d' has 1 bad file: restore or repair it, or delete its case from "
        f"{Path('mine.yaml').resolve()}, or write the manifest again\n"
    )
    image = root / content["cases"][1]["image"]
    image.write_bytes(image.read_bytes()[:-50])
    Path("groups.csv").write_text("case,scanner\n" + "".join(f"{c.id},{i % 2}\n" for i, c in enumerate(made.cases)))
    err = medloss(*arguments, "--subgroups", "groups.csv")[2]
    assert "has 2 bad files, of which 1 is missing: restore or repair them" in err and "--no-check" not in err
    assert not Path("out").exists()


def test_groups_are_kept_once_the_comparison_begins(
    tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    cases = load_manifest(tiny_manifest(tmp_path, dims=2)).cases
    Path("groups.csv").write_text("case,scanner\n" + "".join(f"{c.id},{i % 2}\n" for i, c in enumerate(cases)))
    arguments = ["compare", "tiny_2d.yaml", "--losses", "dice", "--executor", "none", "--out", "out"]
    code, _, err = medloss(*arguments, "--subgroups", "groups.csv")
    assert code == 0, err
    assert Path("out", SUBGROUPS).read_bytes() == Path("groups.csv").read_bytes()
    # Another one that is refused, here since the folder is in use, adds no groups to it either.
    Path("out", SUBGROUPS).unlink()
    with held_lock(Path("out", "compare.lock")):
        assert medloss(*arguments, "--subgroups", "groups.csv")[0] == 2
    assert not Path("out", SUBGROUPS).exists()


def test_status_shows_every_state(tmp_path: Path, medloss: Any) -> None:
    out = tmp_path / "out"
    plan = adopt_plan(out, _plan(tiny_manifest(tmp_path, dims=2), "dice", "focal", "tversky", "combo", "cross_entropy"))
    code, shown, _ = medloss("status", str(out))
    assert code == 0 and "5 runs: all waiting" in shown
    done, failed, running, interrupted, _waiting = (run_folder(out, run) for run in plan.runs)
    done.write_result({"state": "done", "error": None, "metrics": {"dice": 0.8125}, "epoch_s": 1.0})
    failed.write_result({"state": "failed", "error": "it broke [/in] the [bold]middle[/bold]"})
    for run_dir in (running, interrupted):
        run_dir.write_config(plan.runs[0].config)
        run_dir.write_progress(2, _EPOCHS, 63.0, 0.5)
    with held_lock(running.path / "lock"):
        shown = medloss("status", str(out))[1]
    assert "5 runs: 1 done, 1 failed, 1 running, 1 interrupted" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert rows["dice"] == ["dice", "0", "0", "done", "3/3", "0.812"]
    assert rows["focal"][3:] == ["failed", "0/3", "it", "broke", "[/in]", "the", "[bold]middle[/bold]"]
    assert rows["tversky"] == ["tversky", "0", "0", "running", "2/3", "0.500", "1", "min", "3", "s"]
    assert rows["combo"] == ["combo", "0", "0", "interrupted", "2/3"]
    assert rows["cross_entropy"] == ["cross_entropy", "0", "0", "waiting", "0/3"]


def test_time_left() -> None:
    run = PlannedRun(id="dice", config=RunConfig(manifest="phantom"))

    def left(*states: tuple[str, int], elapsed: float, before: int) -> float | None:
        all_states = [RunState(run, word, epoch, 10, seconds_left=None) for word, epoch in states]
        return seconds_left(all_states, elapsed, before)

    assert left(("running", 0), ("waiting", 0), elapsed=5, before=0) is None
    assert left(("done", 10), ("running", 5), elapsed=30, before=0) == 10
    # What was over before, a failed run as a whole, is not counted as done since.
    assert left(("failed", 1), ("running", 5), elapsed=30, before=10) == 30
    assert left(("done", 10), ("failed", 3), elapsed=30, before=0) == 0


def _plan(manifest: Path, *losses: str) -> Plan:
    configs = [RunConfig(manifest=str(manifest), loss=loss, epochs=_EPOCHS, precision="float32") for loss in losses]
    content = load_manifest(manifest)
    return make_plan(configs, [0], [0], content.name, content.sha256)
