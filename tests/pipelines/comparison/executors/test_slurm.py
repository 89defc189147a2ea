"""Comparisons in a real SLURM of one node: submitted, killed, re-queued, and resumed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_call import call_medloss
from odd_losses import write_odd_losses
from slurm_node import SlurmMissing, slurm_node
from tiny import tiny_manifest
from waiting import PROCESS_S, wait_for

from pipelines.comparison.executors.slurm import Slurm, slurm_jobs
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, require_plan, run_folder
from pipelines.runs.plan import Plan, make_plan
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError
from pipelines.utils.files import read_json
from pipelines.utils.locks import holder, is_held

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node() -> Iterator[dict[str, str]]:
    """The environment for SLURM's commands."""
    try:
        with slurm_node() as environment:
            yield environment
    except SlurmMissing as missing:
        pytest.skip(f"no SLURM can be started here: {missing}")


@pytest.fixture
def environment(node: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same with odd losses, for this process, too."""
    made = node | write_odd_losses(tmp_path) | {"MEDLOSS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    return made


def _plan(folder: Path, *losses: str, epochs: int) -> Plan:
    manifest = tiny_manifest(folder, dims=2)
    configs = [
        RunConfig(manifest=str(manifest), loss=loss, epochs=epochs, precision="float32", device="cpu")
        for loss in losses
    ]
    content = load_manifest(manifest)
    return adopt_plan(folder / "out put", make_plan(configs, [0], [0], content.name, content.sha256))


def _state(out: Path, plan: Plan) -> str | None:
    jobs = slurm_jobs(out, plan)
    assert jobs is not None
    return jobs[plan.runs[0].id].state


def _attempts(run_dir: RunFolder) -> int:
    return int((read_json(run_dir.path / "attempts.json") or {"attempts": 0})["attempts"])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_an_array_is_submitted_once_and_reported_later(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out put"
    command = (
        "compare", tiny_manifest(tmp_path, dims=2), "--losses", "odd.Gated,dice", "--reference", "none", "--epochs", 2,
        "--precision", "float32", "--device", "cpu", "--out", out, "--executor", "slurm", "--slurm-partition", "short",
        "--slurm-time", "10", "--slurm-mem", "2G", "--slurm-cpus", 1, "--slurm-gres", "gpu:1", "--slurm-option",
        "comment=a b",
    )  # fmt: skip
    code, shown, err = call_medloss(*command)
    assert (code, err) == (0, "")
    first, *others = shown.splitlines()
    submitted = re.fullmatch(r"submitted 2 runs as SLURM's job (\d+)", first)
    assert submitted is not None
    assert others[:2] == [f"status    medloss status '{out}'", f"report    medloss report '{out}'"]
    plan = require_plan(out)
    shown = subprocess.run(
        ["scontrol", "show", "job", f"{submitted[1]}_0"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    for setting in ("TimeLimit=00:10:00", "MinMemoryNode=2G", "CPUs/Task=1", "TresPerNode=gres:gpu:1", "Comment=a b"):
        assert setting in shown
    run_dir = {run.config.loss: run_folder(out, run) for run in plan.runs}
    wait_for(lambda: (run_dir["dice"].result or {}).get("state") == "done" and len(run_dir["odd.Gated"].epochs) == 1)

    code, shown, err = call_medloss(*command)
    assert shown.startswith("2 runs: 1 done, 1 running\nstatus "), shown + err
    assert len(read_json(out / "slurm.json")["submissions"]) == 1
    assert not (out / "table.csv").exists()
    (tmp_path / "gate").touch()
    wait_for(lambda: run_dir["odd.Gated"].result is not None)
    code, shown, err = call_medloss("report", out)
    assert code == 0, err
    assert (out / "report" / "report.html").is_file()
    code, shown, err = call_medloss(*command)
    assert code == 0, err
    assert re.search(r"^dice +0\.\d{4} .* 1/1$", shown, re.MULTILINE)
    assert re.search(r"^odd\.Gated +0\.\d{4} .* 1/1$", shown, re.MULTILINE)
    assert err == "" and "not up to date" not in shown
    assert (out / "table.csv").is_file() and (out / "report" / "report.html").is_file()


def test_killed_and_requeued_it_goes_on_at_its_checkpoint(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out put"
    plan = _plan(tmp_path, "odd.Gated", epochs=3)
    messages: list[str] = []
    Slurm(minutes=10).hand_over(out, plan, [0], messages.append)
    job = messages[0].rpartition(" ")[2]
    assert messages == [f"submitted 1 run as SLURM's job {job}"]
    run_dir = run_folder(out, plan.runs[0])
    lock = run_dir.path / "lock"

    def under_way(attempt: int) -> bool:
        return _attempts(run_dir) == attempt and len(run_dir.epochs) == 1 and is_held(lock)

    wait_for(lambda: under_way(1))
    first_epoch = run_dir.epochs
    # Another worker leaves it alone, and so does a second submission.
    assert subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "worker", str(out), "--index", "0", "--trust"],
        env=environment, timeout=PROCESS_S, check=False,
    ).returncode == 0  # fmt: skip
    Slurm().hand_over(out, plan, [0], messages.append)
    assert messages[1:] == ["1 run remaining, in SLURM's queue"]
    assert _attempts(run_dir) == 1

    # The worker alone dies: its job starts it again.
    worker = psutil.Process(holder(lock))
    task = worker.parent()
    assert task is not None
    worker.kill()
    wait_for(lambda: under_way(2))
    # All of the job dies, as with its node, and an operator re-queues it.
    worker = psutil.Process(holder(lock))
    for process in (task, worker):
        process.kill()
    wait_for(lambda: _state(out, plan) == "FAILED")
    subprocess.run(["scontrol", "requeue", job], env=environment, check=True)
    wait_for(lambda: under_way(3))
    # Its time is nearly over, or it is preempted.
    subprocess.run(["scancel", "--signal", "USR2", job], env=environment, check=True)
    wait_for(lambda: _state(out, plan) == "PENDING")
    assert not is_held(lock) and run_dir.result is None
    assert lock.read_text().split()[1:] == []  # let go in order: a worker on another machine need not wait
    Slurm().hand_over(out, plan, [0], messages.append)
    assert messages[2:] == ["1 run remaining, in SLURM's queue"]
    (tmp_path / "gate").touch()
    wait_for(lambda: run_dir.result is not None)
    assert (run_dir.result or {})["state"] == "done"
    assert _attempts(run_dir) == 4
    assert [row["epoch"] for row in run_dir.epochs] == [1, 2, 3]
    assert run_dir.epochs[0] == first_epoch[0]  # its time of day, too: never trained again
    wait_for(lambda: _state(out, plan) == "COMPLETED")


def test_what_slurm_refuses_is_reported_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out put"
    plan = _plan(tmp_path, "dice", "focal", epochs=1)
    with pytest.raises(UserError) as refusal:
        Slurm(partition="night").hand_over(out, plan, [0, 1], print)
    message = str(refusal.value)
    assert message.startswith("--executor slurm: not submitted: ") and "invalid partition specified: night" in message
    assert "\n" not in message
    assert not (out / "slurm.json").exists()


def test_what_left_the_queue_is_submitted_again(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out put"
    plan = _plan(tmp_path, "dice", "focal", epochs=1)
    messages: list[str] = []
    held = Slurm(minutes=10, more={"hold": True})
    held.hand_over(out, plan, [0, 1], messages.append)
    array = messages[0].rpartition(" ")[2]
    assert (_state(out, plan), messages) == ("PENDING", [f"submitted 2 runs as SLURM's job {array}"])
    subprocess.run(["scancel", f"{array}_0"], env=environment, check=True)
    wait_for(lambda: _state(out, plan) is None)  # of an array that has not started nothing is kept
    held.hand_over(out, plan, [0, 1], messages.append)
    single = messages[1].partition("job ")[2].partition(";")[0]
    assert messages[1:] == [f"submitted 1 run as SLURM's job {single}; 1 more in its queue"]
    subprocess.run(["scancel", single], env=environment, check=True)
    wait_for(lambda: _state(out, plan) == "CANCELLED")
    held.hand_over(out, plan, [0, 1], messages.append)
    again = messages[3].partition("job ")[2].partition(";")[0]
    assert messages[2:] == [
        f"dice fold 0 seed 0: submitted again; its job {single} ended as CANCELLED, see {out / 'slurm'}",
        f"submitted 1 run as SLURM's job {again}; 1 more in its queue",
    ]
    shown = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "status", str(out)], env=environment, capture_output=True, text=True
    ).stdout
    assert f"\n2 of them were handed to SLURM: squeue --jobs {again},{array}\n" in shown
    subprocess.run(["scancel", again, array], env=environment, check=True)
