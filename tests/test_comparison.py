"""Comparisons end to end: real processes on a tiny made data set; killed, interrupted, failing, and gone on with."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import tiny_manifest

from pipelines import cli
from pipelines.comparison.executors.local import execute
from pipelines.comparison.plan import Plan, PlannedRun, adopt_plan, make_plan, require_plan, run_folder
from pipelines.comparison.state import RunState, seconds_left
from pipelines.comparison.tracking import local_uri, quiet_mlflow
from pipelines.dataset.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.files import read_json
from pipelines.locks import held_lock, holder, is_held
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder

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
        while self.steps > 1 and not Path(os.environ["ODD_GATE"]).exists():
            time.sleep(0.05)

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
    """`medloss compare` in a folder, as processes of their own."""

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
        return subprocess.run(command, capture_output=True, text=True, env=self.environment | environment, timeout=240)

    def clean_up(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def own(self, loss: str) -> RunFolder:
        return RunFolder(self.out / "runs" / f"{loss}-fold0-seed0")

    def under_way(self, loss: str, attempt: int = 1) -> bool:
        """Whether a worker has the run, at this attempt, an epoch after its start or later."""
        own = self.own(loss)
        begun = read_json(own.path / "attempts.json") == {"attempts": attempt}
        return begun and len(own.epochs) >= 1 and is_held(own.path / "lock")

    def done(self, *losses: str) -> bool:
        return all((self.own(loss).result or {}).get("state") == "done" for loss in losses)

    def files(self, loss: str) -> dict[str, tuple[int, bytes]]:
        names = ("result.json", "epochs.csv", "cases.csv", "checkpoint.pt", "attempts.json")
        paths = [path for name in names if (path := self.own(loss).path / name).is_file()]
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
def comparison(tmp_path: Path) -> Any:
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


def _wait(until: Callable[[], bool], seconds: float, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()}")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _only_our_lines(stderr: str) -> bool:
    return all(
        re.match(r"\[\d/\d\] |warning: MLflow at |interrupted: |\S+ fold \d seed \d: its process died ", line)
        for line in stderr.splitlines()
    )


@pytest.mark.slow
def test_killed_as_a_whole_and_gone_on_with(comparison: Any, medloss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = comparison("dice,odd.Gated,focal", "--jobs", "2")
    process = compare.start()
    _wait(lambda: compare.done("dice", "focal") and compare.under_way("odd.Gated"), 120, process)
    plan = require_plan(compare.out)

    code, shown, _ = medloss("status", str(compare.out))
    assert code == 0
    assert "3 runs: 2 done, 1 running" in shown
    assert re.search(r"odd\.Gated +0 +0 +running +[01]/3", shown)
    # Another comparison, and another worker for the same run: both leave.
    monkeypatch.setenv("PYTHONPATH", str(compare.folder))
    monkeypatch.syspath_prepend(str(compare.folder))
    code, shown, told = medloss(*compare.arguments)
    assert (code, shown) == (2, "")
    assert told == (f"error: --out: a comparison is at work in {compare.out}; see `medloss status {compare.out}`\n")
    refused = medloss("worker", str(compare.out), "--index", "1")
    assert refused[0] == 2 and "it names the loss 'odd.Gated', whose import runs code" in refused[2]
    assert medloss("worker", str(compare.out), "--index", "1", "--trust")[0] == 0
    assert read_json(compare.own("odd.Gated").path / "attempts.json") == {"attempts": 1}

    workers = {holder(run_folder(compare.out, run).path / "lock") for run in plan.runs}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _wait(lambda: not any(_alive(pid) for pid in workers if pid is not None), 3)
    _wait(lambda: not is_held(compare.own("odd.Gated").path / "lock"), 3)
    assert compare.own("odd.Gated").result is None
    before = compare.files("dice"), compare.files("focal")
    assert "2 done, 1 interrupted" in medloss("status", str(compare.out))[1]

    compare.gate.touch()
    ended = compare.run()
    assert ended.returncode == 0, ended.stderr
    assert (compare.files("dice"), compare.files("focal")) == before
    assert read_json(compare.own("odd.Gated").path / "attempts.json") == {"attempts": 2}
    assert require_plan(compare.out) == plan

    assert _only_our_lines(ended.stderr)
    assert "dice" not in ended.stderr.replace(", dice 0.", "").replace(
        "odd.Gated", ""
    )  # finished before: not told again
    assert re.search(r"\[2/3\] odd\.Gated fold 0 seed 0: done, dice 0\.\d{3} \(0 s left in all\)", ended.stderr)
    for loss in ("dice", "odd.Gated", "focal"):
        assert re.search(rf"^{re.escape(loss)} +0\.\d{{4}} .* 1/1$", ended.stdout, re.MULTILINE)
        assert [row["epoch"] for row in compare.own(loss).epochs] == [1, 2, 3]
    assert "means over 2 cases and one seed: small differences may be chance" in ended.stdout
    assert "\nToo few cases to tell: with 2 patients " in ended.stdout
    report = compare.out / "report" / "report.html"
    for path in (compare.out / "runs", compare.out / "table.csv", compare.out / "table.md", report):
        assert str(path) in ended.stdout
        assert path.exists()
    (command,) = re.findall(r"^MLflow +(.*)$", ended.stdout, re.MULTILINE)
    assert shlex.split(command)[1:] == ["ui", "--backend-store-uri", local_uri(compare.out)]
    assert re.search(r"^\| odd\.Gated \| 0\.\d{4} ", (compare.out / "table.md").read_text(), re.MULTILINE)
    assert "3 runs: 3 done" in medloss("status", str(compare.out))[1]

    runs = compare.stored()
    assert set(runs) == {"parent", "dice", "odd.Gated", "focal"}
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
    _wait(lambda: compare.under_way("odd.Gated"), 120, process)
    worker = holder(compare.own("odd.Gated").path / "lock")
    assert worker is not None
    process.kill()
    process.wait()
    _wait(lambda: not _alive(worker), 4)  # it looks every half second

    process = compare.start()
    _wait(lambda: compare.under_way("odd.Gated", attempt=2), 120, process)
    under_way = {"parent": "RUNNING", "odd.Gated": "RUNNING"}
    _wait(lambda: {name: run.info.status for name, run in compare.stored().items()} == under_way, 60, process)
    worker = holder(compare.own("odd.Gated").path / "lock")
    assert worker is not None
    os.killpg(process.pid, signal.SIGINT)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.endswith("interrupted: the same command goes on where it stopped\n")
    assert _only_our_lines(told)
    assert not _alive(worker)
    assert not re.search("failed|Traceback", shown + told)  # what has not ended has not failed
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
    assert [row["epoch"] for row in compare.own("odd.Gated").epochs] == [1, 2, 3]
    assert compare.steps(runs["odd.Gated"], "train/loss") == [1, 2, 3]
    assert runs["odd.Gated"].data.tags["medloss.attempt"] == "3"


@pytest.mark.slow
def test_ended_by_a_scheduler(comparison: Any) -> None:
    compare = comparison("odd.Gated", "--jobs", "1")
    process = compare.start()
    _wait(lambda: compare.under_way("odd.Gated"), 120, process)
    worker = holder(compare.own("odd.Gated").path / "lock")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.endswith("interrupted: the same command goes on where it stopped\n")
    assert worker is not None and not _alive(worker)
    assert {run.info.status for run in compare.stored().values()} == {"KILLED"}


@pytest.mark.slow
def test_some_fail_and_the_others_go_on(comparison: Any, medloss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    code, _, told = medloss("worker", str(out), "--index", "3")
    assert (code, told) == (2, "error: --index: got 3; the comparison has runs 0 to 2\n")
    code, _, told = medloss("worker", str(tmp_path))
    assert code == 2 and "holds no comparison (no plan.json)" in told and told.count("\n") == 1


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
    own = run_folder(out, plan.runs[0])
    looked: list[bool] = []
    with held_lock(own.path / "lock"):

        def watch() -> None:
            looked.append(own.result is None)
            if len(looked) == 3:
                own.write_result({"state": "done", "error": None, "metrics": {"dice": 0.5}, "epoch_s": 1.0})

        execute(out, plan, 2, watch, print)
    assert looked == [True, True, True, False]
    assert not (out / "logs").exists()  # no worker of its own


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--losses", "dicee"], "loss: no loss 'dicee'; did you mean 'dice'?"),
        (["--losses", "odd_module.Loss"], "loss: cannot import 'odd_module.Loss': No module named 'odd_module'"),
        (["--losses", ""], "--losses: got none; expected names by commas, or all"),
        (["--losses", " , "], "--losses: got none; expected names by commas, or all"),
        (["--losses", "dice, dice"], "--losses: one of them stands twice in dice, dice"),
        (["--losses", "dice + focal,dice+focal"], "--losses: one of them stands twice in dice+focal, dice+focal"),
        (["--folds", "9"], "fold: got 9; 'tiny_2d' has folds 0, 1, 2"),
        (["--folds", "0,9"], "fold: got 9; 'tiny_2d' has folds 0, 1, 2"),
        (["--folds", "one"], "--folds: got 'one'; expected whole numbers and commas, as 0,1,2"),
        (["--seeds", "-1"], "--seeds: got -1; expected 0 or more"),
        (["--seeds", "0,0"], "--seeds: one of them stands twice in 0, 0"),
        (["--threads", "2"], "--threads: a comparison divides the cores among its jobs; pass --jobs instead"),
        (["--epochs", "0"], "epochs: got 0, Input should be greater than or equal to 1"),
        (["--out", "tiny_2d.yaml"], "--out: tiny_2d.yaml is no folder; name another one"),
        (["--out", "."], "--out: . is not empty and holds no comparison; name another folder"),
        (["--out", "tiny_2d.yaml/out"], "--out: cannot write in tiny_2d.yaml/out: Not a directory; "
         "name another folder"),
        (["--out", "other"], "--out: other holds another comparison: it has the run focal-fold0-seed0; "
         "name another folder"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, medloss: Any, monkeypatch: pytest.MonkeyPatch, changes: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    manifest = tiny_manifest(tmp_path, dims=2)
    adopt_plan(tmp_path / "other", _plan(manifest, "dice", "focal"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = ["compare", "tiny_2d.yaml", "--losses", "dice", "--reference", "none", "--out", "out", *changes]
    assert medloss(*arguments) == (2, "", f"error: {told}\n")
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "compare.lock"}
    assert left == before  # nothing was begun


def test_status_shows_every_state(tmp_path: Path, medloss: Any) -> None:
    out = tmp_path / "out"
    plan = adopt_plan(out, _plan(tiny_manifest(tmp_path, dims=2), "dice", "focal", "tversky", "combo", "cross_entropy"))
    code, shown, _ = medloss("status", str(out))
    assert code == 0 and "5 runs: all waiting" in shown
    done, failed, running, interrupted, _waiting = (run_folder(out, run) for run in plan.runs)
    done.write_result({"state": "done", "error": None, "metrics": {"dice": 0.8125}, "epoch_s": 1.0})
    failed.write_result({"state": "failed", "error": "it broke [/in] the [bold]middle[/bold]"})
    for own in (running, interrupted):
        own.write_config(plan.runs[0].config)
        own.write_progress(2, _EPOCHS, 63.0, 0.5)
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
