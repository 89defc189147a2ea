"""The mirror in MLflow: run folders written by hand, and the result as MLflow's own client shows it."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mirrored import (
    artifacts_of,
    client_of,
    finished,
    history_of,
    leave_run,
    mirror_of,
    small_plan,
    stored,
    synced,
)
from mlflow_server import free_port, mlflow_server
from waiting import wait_for

from pipelines.runs.comparison_folder import run_folder, run_states
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_store import checked_tracking_uri, local_uri, make_local_store, quiet_mlflow
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.locks import held_lock

#: Nothing listens there.
_NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def test_a_comparison_is_mirrored(folder: Path) -> None:
    plan = small_plan()
    uri = local_uri(folder)
    leave_run(folder, plan, 0, epochs=3, end="done")
    leave_run(folder, plan, 1, epochs=1, end="the loss is nan in epoch 2, on the cases [a, b]", attempts=2)
    synced(folder, plan)
    assert set(stored(uri)) == {"parent", "dice-fold1-seed5", "focal-fold1-seed5"}  # what waits is not there yet
    assert stored(uri)["parent"].info.status == "RUNNING"

    leave_run(folder, plan, 2, epochs=3, end="done")
    finished(folder, plan)
    runs = stored(uri)
    parent, dice, focal = runs["parent"], runs["dice-fold1-seed5"], runs["focal-fold1-seed5"]
    assert {name: run.info.status for name, run in runs.items()} == {
        "parent": "FAILED", "dice-fold1-seed5": "FINISHED", "focal-fold1-seed5": "FAILED",
        "tversky-fold1-seed5": "FINISHED",
    }  # fmt: skip
    assert re.fullmatch(r"3 losses · \d{4}-\d\d-\d\d \d\d:\d\d", parent.info.run_name)
    assert parent.data.tags["medloss.comparison"] == plan.id
    assert parent.data.tags["medloss.manifest_sha256"] == "a" * 64
    assert "mlflow.parentRunId" not in parent.data.tags
    assert artifacts_of(uri, parent) == {"table.csv", "cases.csv"}
    assert history_of(uri, parent) == {"best/dice": [(0, 0.3)]}

    assert dice.info.run_name == "dice"
    children = [run for name, run in runs.items() if name != "parent"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    expected = {"comparison": plan.id, "loss": "dice", "fold": "1", "seed": "5", "attempt": "1"}
    expected["trained_as"] = "dice"
    assert {name: dice.data.tags[f"medloss.{name}"] for name in expected} == expected
    assert dice.data.params["learning_rate"] == "0.01"
    assert dice.data.params["epochs"] == "3"
    assert dice.data.params["loss"] == "dice"
    assert history_of(uri, dice) == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))],
        "train/grad_norm": [(1, 0.5), (2, 0.25), (3, pytest.approx(1 / 6))],
        "train/update_ratio": [(1, 0.01), (2, 0.01), (3, 0.01)],
        "time/epoch_s": [(1, 2.5), (2, 2.5), (3, 2.5)],
        "time/data_share": [(1, 0.125), (2, 0.125), (3, 0.125)],
        "mem/peak_mb": [(1, 300.0), (2, 300.0), (3, 300.0)],
        "val/dice": [(2, 0.2), (3, pytest.approx(0.3))],  # only where it was validated
        "val/iou": [(2, 0.1), (3, pytest.approx(0.15))],
        "val/sensitivity": [(2, 0.5), (3, 0.5)],
        "val/specificity": [(2, 0.9), (3, 0.9)],
        "val/hd95_mm": [(2, 12.0), (3, 12.0)],
        "val/assd_mm": [(2, 4.0), (3, 4.0)],
        "val/nsd": [(2, 0.75), (3, 0.75)],
        "val/dice/organ": [(3, 0.3)],
    }
    assert artifacts_of(uri, dice) == {"config.json", "result.json", "epochs.csv", "cases.csv"}
    assert (folder / "mlartifacts").is_dir()
    assert "medloss.error" not in dice.data.tags

    assert focal.data.tags["medloss.error"] == "the loss is nan in epoch 2, on the cases [a, b]"
    assert focal.data.tags["medloss.attempt"] == "2"
    assert artifacts_of(uri, focal) == {"config.json", "result.json", "epochs.csv"}


def test_epochs_of_an_earlier_version_without_a_metric(folder: Path) -> None:
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=2)
    epochs = run_folder(folder, plan.runs[0]).path / "epochs.csv"
    epochs.write_text("epoch,train_loss,val_dice,epoch_s,val_s,peak_mb,time\n1,0.5,0.25,2.5,1.0,300.0,1700000000.0\n")
    synced(folder, plan)
    history = history_of(local_uri(folder), stored(local_uri(folder))["dice-fold1-seed5"])
    assert history["val/dice"] == [(1, 0.25)]
    assert "val/nsd" not in history


def test_a_second_sync_sends_nothing_twice(folder: Path) -> None:
    plan = small_plan(("dice",))
    uri = local_uri(folder)
    leave_run(folder, plan, 0, epochs=2)
    for _ in range(2):
        synced(folder, plan)
    leave_run(folder, plan, 0, epochs=3, end="done")
    mirror, _ = mirror_of(folder, plan)
    for _ in range(2):
        assert mirror.sync(run_states(folder, plan))
    finished(folder, plan)
    first = stored(uri)
    finished(folder, plan)
    # Without its record it finds its runs again, and sends every row a second time.
    (folder / "mlflow.json").unlink()
    finished(folder, plan)
    runs = stored(uri)
    assert {name: run.info.run_id for name, run in runs.items()} == {n: r.info.run_id for n, r in first.items()}
    history = history_of(uri, runs["dice-fold1-seed5"])
    assert [step for step, _ in history["train/loss"]] == [1, 2, 3]
    assert [step for step, _ in history["val/dice"]] == [2, 3]
    assert history_of(uri, runs["parent"]) == {"best/dice": [(0, 0.3)]}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_finished_comparison_keeps_its_time(folder: Path) -> None:
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=3, end="done")
    finished(folder, plan)
    ended = stored(local_uri(folder))["parent"].info.end_time
    time.sleep(0.01)
    finished(folder, plan)
    assert stored(local_uri(folder))["parent"].info.end_time == ended


@pytest.mark.parametrize("lost", ["parent", "child"])
def test_killed_between_making_a_run_and_noting_it(folder: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(("dice",))
    uri = local_uri(folder)
    leave_run(folder, plan, 0, epochs=2)
    mirror, _ = mirror_of(folder, plan)

    quiet_mlflow()
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def killed(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        run = create(self, *args, **kwargs)
        if (kwargs["tags"]["medloss.run"] == "parent") == (lost == "parent"):
            raise KeyboardInterrupt
        return run

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(MlflowClient, "create_run", killed)
        mirror.sync(run_states(folder, plan))
    before = {name: run.info.run_id for name, run in stored(uri).items()}
    assert ("dice-fold1-seed5" in before) == (lost == "child")
    synced(folder, plan)
    runs = stored(uri)
    assert {name: runs[name].info.run_id for name in before} == before
    assert runs["dice-fold1-seed5"].data.params["loss"] == "dice"  # the parameters came after the kill
    assert len(history_of(uri, runs["dice-fold1-seed5"])["train/loss"]) == 2


def test_statuses_of_a_run_that_is_interrupted_and_resumed(folder: Path) -> None:
    plan = small_plan(("dice", "focal"))
    uri = local_uri(folder)

    def statuses() -> tuple[str, ...]:
        runs = stored(uri)
        return tuple(runs[name].info.status for name in ("parent", "dice-fold1-seed5") if name in runs)

    leave_run(folder, plan, 0, epochs=1)
    lock = run_folder(folder, plan.runs[0]).path / "lock"
    with held_lock(lock):
        synced(folder, plan)
        assert statuses() == ("RUNNING", "RUNNING")
    finished(folder, plan)  # Ctrl-C: the worker is gone, the run is not finished
    assert statuses() == ("KILLED", "KILLED")
    assert artifacts_of(uri, stored(uri)["parent"]) == set()
    synced(folder, plan)  # the comparison is resumed; no worker has the run yet
    assert statuses() == ("RUNNING", "KILLED")
    with held_lock(lock):
        leave_run(folder, plan, 0, epochs=2, attempts=2)
        synced(folder, plan)
        assert statuses() == ("RUNNING", "RUNNING")
        leave_run(folder, plan, 0, epochs=3, end="done", attempts=2)
    leave_run(folder, plan, 1, epochs=3, end="done")
    finished(folder, plan)
    assert statuses() == ("FINISHED", "FINISHED")
    runs = stored(uri)
    assert runs["dice-fold1-seed5"].data.tags["medloss.attempt"] == "2"
    assert [step for step, _ in history_of(uri, runs["dice-fold1-seed5"])["train/loss"]] == [1, 2, 3]


def test_a_run_that_failed_and_was_tried_again(folder: Path) -> None:
    plan = small_plan(("dice",))
    uri = local_uri(folder)
    leave_run(folder, plan, 0, epochs=1, end="the loss is nan")
    finished(folder, plan)
    (run_folder(folder, plan.runs[0]).path / "result.json").unlink()
    synced(folder, plan)
    leave_run(folder, plan, 0, epochs=3, end="done", attempts=2)
    finished(folder, plan, dice=0.2)
    runs = stored(uri)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "medloss.error" not in runs["dice-fold1-seed5"].data.tags
    assert len(history_of(uri, runs["dice-fold1-seed5"])["train/loss"]) == 3
    assert runs["parent"].data.metrics == {"best/dice": 0.2}
    assert "cases.csv" in artifacts_of(uri, runs["dice-fold1-seed5"])  # not those of the first attempt


def test_a_database_that_is_not_there_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", slept.append)
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=1)
    mirror, warnings = mirror_of(folder, plan, "postgresql+psycopg2://me:s3/cret@127.0.0.1:9/x")
    assert not mirror.sync(run_states(folder, plan))
    assert slept == []
    (warning,) = warnings
    assert "s3/cret" not in warning


def test_a_run_deleted_during_the_comparison_is_sent_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._RETRY_S", 0.0)
    plan, uri = small_plan(("dice", "focal")), local_uri(folder)
    leave_run(folder, plan, 0, epochs=1)
    mirror, _ = mirror_of(folder, plan)
    assert mirror.sync(run_states(folder, plan))
    client_of(uri).delete_run(stored(uri)["dice-fold1-seed5"].info.run_id)
    for index in (0, 1):
        leave_run(folder, plan, index, epochs=3, end="done")
    states = run_states(folder, plan)
    assert not mirror.sync(states)
    assert mirror.sync(states)
    assert mirror.finish(states, Findings())
    runs = stored(uri)
    assert [step for step, _ in history_of(uri, runs["dice-fold1-seed5"])["train/loss"]] == [1, 2, 3]
    assert runs["focal-fold1-seed5"].info.status == "FINISHED"


def test_a_missing_server_stops_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(("dice",), epochs=200)
    leave_run(folder, plan, 0, epochs=200, end="done")
    states = run_states(folder, plan)
    mirror, warnings = mirror_of(folder, plan, _NOWHERE)
    assert not mirror.sync(states)
    with monkeypatch.context() as patch:
        asked: list[str] = []
        patch.setattr("pipelines.tracking.mlflow_mirror.open_client", asked.append)
        for _ in range(100):
            assert not mirror.sync(states)  # it is not asked again at once
        assert asked == []
    assert not mirror.finish(states, Findings())
    (warning,) = warnings
    assert warning.startswith(f"MLflow at {_NOWHERE} cannot be reached (")
    assert "\n" not in warning

    # Later everything is caught up with: more numbers than MLflow takes at once.
    finished(folder, plan)
    runs = stored(local_uri(folder))
    assert runs["parent"].info.status == "FINISHED"
    history = history_of(local_uri(folder), runs["dice-fold1-seed5"])
    assert [step for step, _ in history["train/loss"]] == list(range(1, 201))
    assert [step for step, _ in history["val/dice"]] == list(range(2, 201, 2))
    assert (read_json(folder / "mlflow.json"))["uri"] == local_uri(folder)


def test_a_failure_in_the_middle_is_made_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the client's calls fails once; after as many attempts the store has everything once."""
    from mlflow import MlflowClient

    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=3, end="done")
    mirror, warnings = mirror_of(folder, plan)
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._RETRY_S", 0.0)
    broken = ["create_experiment", "search_runs", "create_run", "log_batch", "log_artifact", "set_tag", "get_run"]
    broken += ["set_terminated", "log_inputs"]
    tries = 0
    for name in broken:
        real = getattr(MlflowClient, name)

        def fails_once(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            if name in broken:
                broken.remove(name)
                raise ConnectionError("the server was restarted")
            return real(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, fails_once)
    while not mirror.sync(run_states(folder, plan)):
        tries += 1
        assert tries < 20
    assert broken == []
    # One for numbers, one for files, however often.
    assert [warning.split(" (")[0].split("mlflow.db ")[1] for warning in warnings] == [
        "cannot be reached",
        "accepts no files",
    ]
    finished(folder, plan)
    runs = stored(local_uri(folder))
    assert set(runs) == {"parent", "dice-fold1-seed5"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in history_of(local_uri(folder), runs["dice-fold1-seed5"])["train/loss"]] == [1, 2, 3]
    assert "result.json" in artifacts_of(local_uri(folder), runs["dice-fold1-seed5"])


def test_a_deleted_store_is_created_again(folder: Path, empty_store: Path, tmp_path: Path) -> None:
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=3, end="done")
    finished(folder, plan)
    notes = read_json(folder / "mlflow.json")
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder / "runs", elsewhere / "runs")
    shutil.copy(empty_store, elsewhere / "mlflow.db")
    write_json(elsewhere / "mlflow.json", notes | {"uri": local_uri(elsewhere)})
    finished(elsewhere, plan)
    runs = stored(local_uri(elsewhere))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(history_of(local_uri(elsewhere), runs["dice-fold1-seed5"])["train/loss"]) == 3


@pytest.mark.parametrize("removed", ["parent", "dice-fold1-seed5"])
def test_a_run_deleted_by_hand_is_sent_again(folder: Path, removed: str) -> None:
    plan = small_plan(("dice", "focal"))
    uri = local_uri(folder)
    leave_run(folder, plan, 0, epochs=3, end="done")
    leave_run(folder, plan, 1, epochs=2)
    synced(folder, plan)
    client_of(uri).delete_run(stored(uri)[removed].info.run_id)
    leave_run(folder, plan, 1, epochs=3, end="done")
    finished(folder, plan)
    runs = stored(uri)
    parent = runs.pop("parent")
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert set(runs) == {"dice-fold1-seed5", "focal-fold1-seed5"}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [step for step, _ in history_of(uri, run)["train/loss"]] == [1, 2, 3]


def test_odd_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c"
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=3, end="done")
    finished(folder, plan)
    assert "result.json" in artifacts_of(local_uri(folder), stored(local_uri(folder))["dice-fold1-seed5"])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    for name in ("a?b", "a%20b"):
        with pytest.raises(UserError, match=r"has a \? or % in it"):
            checked_tracking_uri(None, tmp_path / name)
        assert checked_tracking_uri("http://server", tmp_path / name) == "http://server"


@pytest.mark.parametrize("uri", ["localhost:5000", "./mlruns", "file:///tmp/mlruns", "htp://server", "sqlite"])
def test_tracking_uris_that_cannot_work_are_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"--tracking-uri: got '{uri}'; expected a server"):
        checked_tracking_uri(uri, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI: got '{uri}'"):
        checked_tracking_uri(None, tmp_path)
    for good in ("http://localhost:5000", "https://x", "postgresql+psycopg2://u@h/db", "sqlite:////a.db", "databricks"):
        assert checked_tracking_uri(good, tmp_path) == good


def test_which_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mirror_of(tmp_path, small_plan())[0].uri == local_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://named:1")
    assert mirror_of(tmp_path, small_plan())[0].uri == "http://named:1"
    assert mirror_of(tmp_path, small_plan(), "http://given:2")[0].uri == "http://given:2"


@pytest.mark.slow
def test_a_real_server_restarted_in_the_middle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._RETRY_S", 0.0)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    store = ("--backend-store-uri", local_uri(folder), "--artifacts-destination", folder / "served")
    plan = small_plan(("dice", "focal"))
    mirror, warnings = mirror_of(folder, plan, uri)
    with mlflow_server(folder, port, *store):
        leave_run(folder, plan, 0, epochs=1)
        assert mirror.sync(run_states(folder, plan)), warnings
        assert warnings == []
    leave_run(folder, plan, 0, epochs=3, end="done")
    leave_run(folder, plan, 1, epochs=2)
    assert not mirror.sync(run_states(folder, plan))
    with mlflow_server(folder, port, *store):
        assert mirror.sync(run_states(folder, plan)), warnings
        assert len(warnings) == 1
        leave_run(folder, plan, 1, epochs=3, end="done")
        table = folder / "table.csv"
        table.write_text("loss,dice\n")
        assert mirror.finish(run_states(folder, plan), Findings([table], {"best/dice": 0.3})), warnings
        runs = stored(uri)
        assert set(runs) == {"parent", "dice-fold1-seed5", "focal-fold1-seed5"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        for name in ("dice-fold1-seed5", "focal-fold1-seed5"):
            assert [step for step, _ in history_of(uri, runs[name])["train/loss"]] == [1, 2, 3]
            assert artifacts_of(uri, runs[name]) == {"config.json", "result.json", "epochs.csv", "cases.csv"}
        assert artifacts_of(uri, runs["parent"]) == {"table.csv", "cases.csv"}


def test_a_store_that_was_begun_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def killed(uri: str) -> None:
        begun.append(Path(uri.removeprefix("sqlite:///")))
        begun[0].write_bytes(b"SQLite format 3")
        shutil.copytree(begun[0].parent, tmp_path / ".mlflow.db.left")  # a killed process cleans nothing up
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.tracking.mlflow_store.open_client", killed)
        make_local_store(tmp_path)
    assert begun[0].parent.parent == tmp_path and begun[0].parent.match(".mlflow.db.*")
    assert not (tmp_path / "mlflow.db").exists()
    plan = small_plan()
    leave_run(tmp_path, plan, 0, 3, "done")
    synced(tmp_path, plan)
    assert stored(local_uri(tmp_path))[plan.runs[0].id].info.status == "FINISHED"
    assert not list(tmp_path.glob(".mlflow*"))


@pytest.mark.slow
def test_a_store_that_a_killed_process_began_is_none(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from pipelines.tracking.mlflow_store import make_local_store
make_local_store(Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(
        lambda: any(path.stat().st_size for path in tmp_path.glob(".mlflow.db.*/mlflow.db")),
        process, "a store is begun", pause=0.001,
    )  # fmt: skip
    process.send_signal(signal.SIGSTOP)  # from here on it makes no table
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    plan = small_plan()
    leave_run(tmp_path, plan, 0, 3, "done")
    synced(tmp_path, plan)
    assert stored(local_uri(tmp_path))[plan.runs[0].id].info.status == "FINISHED"
    assert not list(tmp_path.glob(".mlflow*"))
