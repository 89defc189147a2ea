"""Runs trained elsewhere: what is asked of SLURM, command lines for other schedulers, and signals that end workers."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from odd_losses import write_odd_losses
from tiny import tiny_manifest
from waiting import PROCESS_S, wait_for

from pipelines import cli
from pipelines.cli.compare_options import chosen_executor
from pipelines.comparison.executors import local
from pipelines.comparison.executors.command_lines import CommandLines
from pipelines.comparison.executors.slurm import MOST_IN_VAIN, Slurm, Task
from pipelines.comparison.executors.slurm_options import minutes, sbatch_options
from pipelines.comparison.worker import ENDED_BY, work
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, run_folder
from pipelines.runs.plan import Plan, make_plan
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError, locks
from pipelines.utils.files import read_json
from pipelines.utils.locks import holder, is_held


def _plan(folder: Path, *losses: str, epochs: int = 3, **settings: Any) -> Plan:
    manifest = tiny_manifest(folder, dims=2)
    configs = [
        RunConfig(manifest=str(manifest), loss=loss, epochs=epochs, precision="float32", device="cpu", **settings)
        for loss in losses
    ]
    content = load_manifest(manifest)
    return adopt_plan(folder / "out put", make_plan(configs, [0], [0], content.name, content.sha256))


@pytest.mark.parametrize("named", [False, True])
def test_a_worker_reads_prepared_cases_where_they_are_kept(tmp_path: Path, named: bool) -> None:
    place = tmp_path / "kept" if named else tmp_path / "out put" / "cache"
    _plan(tmp_path, "dice", epochs=1, data_root=str(tmp_path), cache_dir=str(place) if named else None)
    work(tmp_path / "out put", threads=1)
    assert list(place.iterdir())
    assert (tmp_path / "out put" / "cache").exists() == (not named)


def _options(**given: Any) -> dict[str, Any]:
    names = ("partition", "time", "mem", "cpus", "gres", "account", "setup")
    return {"threads": None, "slurm_options": ()} | {f"slurm_{name}": None for name in names} | given


def test_what_is_asked_of_slurm() -> None:
    options = _options(
        slurm_partition="gpu,long", slurm_time="2-12", slurm_mem="16G", slurm_cpus=4, slurm_gres="gpu:a100:1",
        slurm_account="lab", slurm_setup="module load cuda", slurm_options=("qos=low", "exclusive", "mail_user=a@b"),
    )  # fmt: skip
    assert chosen_executor("slurm", 8, options) == Slurm(
        minutes=3600, partition="gpu,long", memory="16G", cpus=4, gres="gpu:a100:1", account="lab",
        setup="module load cuda", at_once=8, more={"qos": "low", "exclusive": True, "mail-user": "a@b"},
    )  # fmt: skip
    assert options == {}
    assert chosen_executor("slurm", None, _options()) == Slurm()
    assert chosen_executor("none", None, _options(threads=3)) == CommandLines(3)
    assert chosen_executor("local", 2, _options()) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("4:00:00", 240), ("30:00", 30), ("30:01", 31), ("2-12", 3600), ("1-00:30", 1470), ("0-1:0:1", 61)],
)
def test_times(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("executor", "jobs", "given", "message"),
    [
        ("slurm", None, {"slurm_time": "soon"}, "--slurm-time: got 'soon'; expected 5 minutes or more, such as "
         "90, 4:00:00 or 2-12:00:00"),
        ("slurm", None, {"slurm_time": "4"}, "--slurm-time: got '4'; expected 5 minutes or more, such as "
         "90, 4:00:00 or 2-12:00:00"),
        ("slurm", None, {"slurm_mem": "much"}, "--slurm-mem: got 'much'; expected a size such as 16G"),
        ("slurm", None, {"slurm_gres": "gpu 1"}, "--slurm-gres: got 'gpu 1'; expected generic resources such as "
         "gpu:1 or gpu:a100:1"),
        ("slurm", None, {"slurm_partition": ""}, "--slurm-partition: got ''; expected a partition's name"),
        ("slurm", None, {"slurm_setup": "a\nb"}, "--slurm-setup: got 'a\nb'; expected a shell command in one line"),
        ("slurm", None, {"threads": 2}, "--threads: a run has its job's cores; pass --slurm-cpus instead"),
        ("slurm", None, {"slurm_options": ("",)}, "--slurm-option: got ''; expected one of sbatch's, such as "
         "qos=low or exclusive"),
        ("slurm", None, {"slurm_options": ("qos=",)}, "--slurm-option: got 'qos='; expected one of sbatch's, such as "
         "qos=low or exclusive"),
        ("slurm", None, {"slurm_options": ("time=9",)}, "--slurm-option: got 'time=9'; pass --slurm-time instead"),
        ("slurm", None, {"slurm_options": ("--array=0-9",)}, "--slurm-option: got '--array=0-9'; --array is "
         "reserved for the array of runs"),
        ("local", None, {"slurm_mem": "16G"}, "--slurm-mem: it goes with --executor slurm, and got --executor local"),
        ("none", None, {"slurm_options": ("qos=low",)}, "--slurm-option: it goes with --executor slurm, and got "
         "--executor none"),
        ("none", 2, {}, "--jobs: with --executor none, whatever runs the lines decides how many run at a time"),
    ],
)  # fmt: skip
def test_refusals(executor: str, jobs: int | None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        chosen_executor(executor, jobs, _options(**given))
    assert str(refusal.value) == message


def test_other_options_of_sbatch() -> None:
    assert sbatch_options(("comment=a = b", "--nice")) == {"comment": "a = b", "nice": True}


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as refusal:
        Slurm().check()
    assert str(refusal.value) == (
        "--executor slurm: no sbatch, srun, squeue here; run it where jobs are submitted, or pass --executor none"
    )
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with monkeypatch.context() as context, pytest.raises(UserError) as refusal:
        context.setitem(sys.modules, "submitit", None)
        Slurm().check()
    assert str(refusal.value) == "--executor slurm: no submitit here; pip install submitit"
    plan = _plan(tmp_path, "dice")
    (tmp_path / "out put" / "slurm.json").write_text('{"submissions": [{"job": "1", "runs": ["dice-fold0-seed0"], '
                                                     '"array": false}]}')  # fmt: skip
    with pytest.raises(UserError) as refusal:
        Slurm().hand_over(tmp_path / "out put", plan, [0], print)
    assert str(refusal.value) == ("--executor slurm: squeue gives no answer, so the queue is not known; try again")


@pytest.mark.parametrize("options", [["--halving"], ["--budget", "5"]])
def test_what_only_this_machine_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    command = ["medloss", "compare", "phantom", "--out", str(tmp_path / "out"), "--executor", "none", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {options[0]}: goes with --executor local, whose machine it measures and trains on\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.parametrize("in_a_shell", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_lines_for_another_scheduler_do_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_shell: bool
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out put"
    command = (
        "compare", tiny_manifest(tmp_path, dims=2), "--losses", "dice,focal", "--reference", "none", "--epochs", 1,
        "--precision", "float32", "--out", out, "--executor", "none", "--threads", 1,
    )  # fmt: skip
    code, shown, err = call_medloss(*command)
    assert code == 0, err
    lines = [shlex.split(line) for line in shown.splitlines()]
    assert [line[-5:] for line in lines] == [[str(out), "--index", str(i), "--threads", "1"] for i in (0, 1)]
    assert err.splitlines()[:2] == ["2 command lines, one per run", f"status    medloss status '{out}'"]
    if in_a_shell:
        workers = [subprocess.Popen(line, shell=True, cwd="/") for line in shown.splitlines()]
        assert [worker.wait(PROCESS_S) for worker in workers] == [0, 0]
    else:
        monkeypatch.chdir("/")
        assert Path(lines[0][0]).is_file()
        assert [call_medloss(*line[line.index("worker") :])[0] for line in lines] == [0, 0]
    code, shown, err = call_medloss(*command)
    assert code == 0, err
    assert "Too few cases to tell" in shown and str(out / "table.csv") in shown


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.parametrize("given", [["--index", "1"], []])
def test_the_run_of_a_lost_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locks, "_BEAT_S", 0.1)
    monkeypatch.setattr(locks, "_STALE_S", 2.0)
    plan = _plan(tmp_path, "focal", "dice", epochs=1)
    out = tmp_path / "out put"
    run_folder(out, plan.runs[0]).write_result({"state": "failed", "error": "it diverged"})
    run_dir = run_folder(out, plan.runs[1])
    lock = run_dir.path / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("4711\nanother-boot\nnode7\n")
    os.utime(lock, (time.time() - 60,) * 2)
    code, _, err = call_medloss("worker", out, *given, "--threads", "1")
    assert code == 0
    assert f"{lock}: held by node7, which may be active: waiting for a heartbeat, at most two minutes\n" in err
    assert (run_dir.result or {})["state"] == "done"
    assert lock.read_text() == f"{os.getpid()}\n"


def test_a_folder_that_a_worker_cannot_write_to_is_named(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "dice")
    out = tmp_path / "out put"
    (run_folder(out, plan.runs[0]).path / "lock").mkdir(parents=True)
    code, _, err = call_medloss("worker", out, "--index", 0)
    assert (code, err) == (2, f"error: {out}: a worker cannot write there: Is a directory\n")


def test_losses_that_the_user_named_are_trusted_in_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_odd_losses(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = _plan(tmp_path, "odd.Gated")
    err: list[str] = []
    CommandLines().hand_over(tmp_path / "out put", plan, [0], err.append)
    assert shlex.split(capsys.readouterr().out)[-4:] == [str(tmp_path / "out put"), "--trust", "--index", "0"]
    assert err == ["1 command line, one per run"]


def test_a_run_whose_jobs_end_in_vain_is_failed(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    plan = _plan(tmp_path, "dice")
    out = tmp_path / "out put"
    run_dir = run_folder(out, plan.runs[0])
    task = Task(str(out), 0)
    for jobs in range(1, MOST_IN_VAIN):
        task = task.checkpoint().function
        assert (task.folder, task.index, task.in_vain) == (str(out), 0, jobs)
    row = {"epoch": 1, "train_loss": 0.5, "epoch_s": 1.0, "time": 1.0, "peak_mb": 1.0}
    run_dir.write_epochs([row])
    task = task.checkpoint().function  # this one got further
    assert task.in_vain == 0
    last = Task(str(out), 0, MOST_IN_VAIN - 1)
    last.epochs_before = 1
    assert last.checkpoint() is None
    assert (run_dir.result or {})["error"] == (
        "SLURM ended 3 jobs in a row before an epoch was finished, by time limit or preemption: "
        "raise --slurm-time, or name another partition"
    )
    assert Task(str(out), 0).checkpoint() is None  # finished


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.parametrize("number", ENDED_BY)
def test_a_signal_in_the_midst_of_a_training_ends_it_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "signalled.py").write_text(
        "import signal\n"
        "from torch import nn\n"
        "class Loss(nn.Module):\n"
        "    steps = 0\n"
        "    def forward(self, logits, target):\n"
        "        self.steps += 1\n"
        "        if self.steps > 1:\n"
        f"            signal.raise_signal({int(number)})\n"
        "        return nn.functional.cross_entropy(logits, target.squeeze(1).long())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "signalled", raising=False)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out put"
    run_dir = run_folder(out, _plan(tmp_path, "signalled.Loss").runs[0])
    before = signal.signal(number, signal.SIG_DFL)  # a background job of a script ignores Ctrl-C
    try:
        code, _, err = call_medloss("worker", out, "--trust", "--threads", 1)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert code == 128 + number, err
    assert len(run_dir.epochs) == 1
    assert run_dir.result is None  # it has not failed
    assert not is_held(run_dir.path / "lock")
    assert (run_dir.path / "lock").read_text() == f"{os.getpid()}\n"  # let go in order
    assert read_json(run_dir.path / "attempts.json") == {"attempts": 1}


@pytest.mark.slow
def test_a_signal_ends_a_worker_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | write_odd_losses(tmp_path) | {"MEDLOSS_CACHE": str(tmp_path / "cache")}
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = _plan(tmp_path, "odd.Gated", workers=2)
    out = tmp_path / "out put"
    run_dir = run_folder(out, plan.runs[0])
    lock = run_dir.path / "lock"
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "worker", str(out), "--trust"],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: len(run_dir.epochs) == 1 and is_held(lock), worker, "its second step")
        # Some schedulers signal all processes of a job, those of the loader, too.
        os.killpg(worker.pid, signal.SIGTERM)
        _, err = worker.communicate(timeout=PROCESS_S)
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == 128 + signal.SIGTERM, err
    assert run_dir.result is None  # it has not failed
    assert not is_held(lock)
    assert lock.read_text() == f"{worker.pid}\n"  # let go in order
    assert holder(lock) == worker.pid
    assert read_json(run_dir.path / "attempts.json") == {"attempts": 1}


@pytest.mark.parametrize(("jobs", "threads"), [(1, 8), (2, 4), (5, 2)])
def test_jobs_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, threads: int) -> None:
    configs = [RunConfig(manifest="phantom", loss=loss) for loss in ("dice", "focal", "tversky")]
    plan = make_plan(configs, [0], [0], "phantom", "0" * 64)

    def start(log: Path, folder: Path, given: int) -> None:
        assert given == threads  # of more jobs than runs, as many as there are runs
        raise InterruptedError

    monkeypatch.setattr(local, "start_worker", start)
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    with pytest.raises(InterruptedError):
        local.execute(tmp_path, plan, jobs, lambda: None, print)
