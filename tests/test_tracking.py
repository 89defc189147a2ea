"""The mirror in MLflow: hand-made run folders in, MLflow's own client looks at what came out."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.comparison.plan import Plan, make_plan, run_folder
from pipelines.comparison.state import run_states
from pipelines.comparison.tracking import Mirror, checked_tracking_uri, local_uri, quiet_mlflow
from pipelines.errors import UserError
from pipelines.files import read_json, write_json
from pipelines.locks import held_lock
from pipelines.training.run_config import RunConfig

pytestmark = pytest.mark.usefixtures("_no_server_named")

#: Nothing listens there.
_NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def _no_server_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite store: making one takes seconds, so it is made once."""
    folder = tmp_path_factory.mktemp("store")
    _client(local_uri(folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, _empty_store: Path) -> Path:
    shutil.copy(_empty_store, tmp_path / "mlflow.db")
    return tmp_path


def _client(uri: str) -> Any:
    quiet_mlflow()
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def _plan(losses: tuple[str, ...] = ("dice", "focal", "tversky"), epochs: int = 3) -> Plan:
    configs = [RunConfig(manifest="phantom", loss=loss, epochs=epochs, learning_rate=0.01) for loss in losses]
    return make_plan(configs, [1], [5], "phantom", "a" * 64)


def _train(folder: Path, plan: Plan, index: int, epochs: int, end: str | None = None, attempts: int = 1) -> None:
    """What a worker leaves after some epochs; validated in every second and in the last one."""
    run = plan.runs[index]
    own = run_folder(folder, run)
    own.write_config(run.config)
    write_json(own.path / "attempts.json", {"attempts": attempts})
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        row: dict[str, Any] = {"epoch": epoch, "train_loss": 1 / epoch, "epoch_s": 2.5, "peak_mb": 300.0}
        row |= {"time": 1_700_000_000.0 + 60 * epoch, "data_share": 0.125}
        if epoch % 2 == 0 or epoch == run.config.epochs:
            row |= {"val_dice": 0.1 * epoch, "val_iou": 0.05 * epoch, "val_sensitivity": 0.5, "val_specificity": 0.9}
            row |= {"val_hd95_mm": 12.0, "val_assd_mm": 4.0, "val_nsd": 0.75}
        rows.append(row)
    own.write_epochs(rows)
    own.write_progress(epochs, run.config.epochs, 1.0, None)
    if end == "done":
        own.write_cases([{"case": "a", "patient": "p", "class": "organ", "dice": 0.3}])
        own.write_result({"state": "done", "error": None, "metrics": {"dice": 0.3}, "epoch_s": 2.5})
    elif end is not None:
        own.write_result({"state": "failed", "error": end})


def _mirror(folder: Path, plan: Plan, uri: str | None = None) -> tuple[Mirror, list[str]]:
    warnings: list[str] = []
    return Mirror(folder, plan, uri, warnings.append), warnings


def _sync(folder: Path, plan: Plan, uri: str | None = None) -> None:
    mirror, warnings = _mirror(folder, plan, uri)
    assert mirror.sync(run_states(folder, plan)), warnings
    assert warnings == []


def _finish(folder: Path, plan: Plan, uri: str | None = None, dice: float = 0.3) -> None:
    mirror, warnings = _mirror(folder, plan, uri)
    table = folder / "table.csv"
    table.write_text("loss,dice\n")
    assert mirror.finish(run_states(folder, plan), [table], {"best/dice": dice}), warnings
    assert warnings == []


def _stored(uri: str) -> dict[str, Any]:
    """Every run of the store, by its tag `medloss.run`; each must be there once."""
    client = _client(uri)
    experiment = client.get_experiment_by_name("phantom")
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.data.tags["medloss.run"]: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def _history(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    client = _client(uri)
    names = run.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


def _artifacts(uri: str, run: Any) -> set[str]:
    return {item.path for item in _client(uri).list_artifacts(run.info.run_id)}


def test_a_comparison_is_mirrored(folder: Path) -> None:
    plan = _plan()
    uri = local_uri(folder)
    _train(folder, plan, 0, epochs=3, end="done")
    _train(folder, plan, 1, epochs=1, end="the loss is nan in epoch 2, on the cases [a, b]", attempts=2)
    _sync(folder, plan)
    assert set(_stored(uri)) == {"parent", "dice-fold1-seed5", "focal-fold1-seed5"}  # what waits is not there yet
    assert _stored(uri)["parent"].info.status == "RUNNING"

    _train(folder, plan, 2, epochs=3, end="done")
    _finish(folder, plan)
    runs = _stored(uri)
    parent, dice, focal = runs["parent"], runs["dice-fold1-seed5"], runs["focal-fold1-seed5"]
    assert {name: run.info.status for name, run in runs.items()} == {
        "parent": "FAILED", "dice-fold1-seed5": "FINISHED", "focal-fold1-seed5": "FAILED",
        "tversky-fold1-seed5": "FINISHED",
    }  # fmt: skip
    assert parent.info.run_name == "comparison of 3 losses"
    assert parent.data.tags["medloss.comparison"] == plan.id
    assert parent.data.tags["medloss.manifest_sha256"] == "a" * 64
    assert "mlflow.parentRunId" not in parent.data.tags
    assert _artifacts(uri, parent) == {"table.csv"}
    assert _history(uri, parent) == {"best/dice": [(0, 0.3)]}

    assert dice.info.run_name == "dice · fold 1 · seed 5"
    children = [run for name, run in runs.items() if name != "parent"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    expected = {"comparison": plan.id, "loss": "dice", "fold": "1", "seed": "5", "attempt": "1"}
    assert {name: dice.data.tags[f"medloss.{name}"] for name in expected} == expected
    assert dice.data.params["learning_rate"] == "0.01"
    assert dice.data.params["epochs"] == "3"
    assert dice.data.params["loss"] == "dice"
    assert _history(uri, dice) == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))],
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
    }
    assert _artifacts(uri, dice) == {"config.json", "result.json", "epochs.csv", "cases.csv"}
    assert (folder / "mlartifacts").is_dir()
    assert "medloss.error" not in dice.data.tags

    assert focal.data.tags["medloss.error"] == "the loss is nan in epoch 2, on the cases [a, b]"
    assert focal.data.tags["medloss.attempt"] == "2"
    assert _artifacts(uri, focal) == {"config.json", "result.json", "epochs.csv"}


def test_epochs_of_an_earlier_version_lack_a_measure(folder: Path) -> None:
    plan = _plan(("dice",))
    _train(folder, plan, 0, epochs=2)
    epochs = run_folder(folder, plan.runs[0]).path / "epochs.csv"
    epochs.write_text("epoch,train_loss,val_dice,epoch_s,val_s,peak_mb,time\n1,0.5,0.25,2.5,1.0,300.0,1700000000.0\n")
    _sync(folder, plan)
    history = _history(local_uri(folder), _stored(local_uri(folder))["dice-fold1-seed5"])
    assert history["val/dice"] == [(1, 0.25)]
    assert "val/nsd" not in history


def test_again_writes_nothing_double(folder: Path) -> None:
    plan = _plan(("dice",))
    uri = local_uri(folder)
    _train(folder, plan, 0, epochs=2)
    for _ in range(2):
        _sync(folder, plan)
    _train(folder, plan, 0, epochs=3, end="done")
    mirror, _ = _mirror(folder, plan)
    for _ in range(2):
        assert mirror.sync(run_states(folder, plan))
    _finish(folder, plan)
    first = _stored(uri)
    _finish(folder, plan)
    # Without its notes it finds its runs again, and sends every row a second time.
    (folder / "mlflow.json").unlink()
    _finish(folder, plan)
    runs = _stored(uri)
    assert {name: run.info.run_id for name, run in runs.items()} == {n: r.info.run_id for n, r in first.items()}
    history = _history(uri, runs["dice-fold1-seed5"])
    assert [step for step, _ in history["train/loss"]] == [1, 2, 3]
    assert [step for step, _ in history["val/dice"]] == [2, 3]
    assert _history(uri, runs["parent"]) == {"best/dice": [(0, 0.3)]}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_finished_comparison_keeps_its_time(folder: Path) -> None:
    plan = _plan(("dice",))
    _train(folder, plan, 0, epochs=3, end="done")
    _finish(folder, plan)
    ended = _stored(local_uri(folder))["parent"].info.end_time
    time.sleep(0.01)
    _finish(folder, plan)
    assert _stored(local_uri(folder))["parent"].info.end_time == ended


@pytest.mark.parametrize("lost", ["parent", "child"])
def test_killed_between_making_a_run_and_noting_it(folder: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(("dice",))
    uri = local_uri(folder)
    _train(folder, plan, 0, epochs=2)
    mirror, _ = _mirror(folder, plan)

    create = Mirror._create

    def killed(self: Mirror, client: Any, name: str, tags: dict[str, str]) -> str:
        run_id = create(self, client, name, tags)
        if (tags["medloss.run"] == "parent") == (lost == "parent"):
            raise KeyboardInterrupt
        return run_id

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Mirror, "_create", killed)
        mirror.sync(run_states(folder, plan))
    before = {name: run.info.run_id for name, run in _stored(uri).items()}
    assert ("dice-fold1-seed5" in before) == (lost == "child")
    _sync(folder, plan)
    runs = _stored(uri)
    assert {name: runs[name].info.run_id for name in before} == before
    assert runs["dice-fold1-seed5"].data.params["loss"] == "dice"  # the parameters came after the kill
    assert len(_history(uri, runs["dice-fold1-seed5"])["train/loss"]) == 2


def test_statuses_of_a_run_that_is_interrupted_and_goes_on(folder: Path) -> None:
    plan = _plan(("dice", "focal"))
    uri = local_uri(folder)

    def statuses() -> tuple[str, ...]:
        runs = _stored(uri)
        return tuple(runs[name].info.status for name in ("parent", "dice-fold1-seed5") if name in runs)

    _train(folder, plan, 0, epochs=1)
    lock = run_folder(folder, plan.runs[0]).path / "lock"
    with held_lock(lock):
        _sync(folder, plan)
        assert statuses() == ("RUNNING", "RUNNING")
    _finish(folder, plan)  # Ctrl-C: the worker is gone, the run is not finished
    assert statuses() == ("KILLED", "KILLED")
    assert _artifacts(uri, _stored(uri)["parent"]) == set()
    _sync(folder, plan)  # the comparison goes on; no worker has the run yet
    assert statuses() == ("RUNNING", "KILLED")
    with held_lock(lock):
        _train(folder, plan, 0, epochs=2, attempts=2)
        _sync(folder, plan)
        assert statuses() == ("RUNNING", "RUNNING")
        _train(folder, plan, 0, epochs=3, end="done", attempts=2)
    _train(folder, plan, 1, epochs=3, end="done")
    _finish(folder, plan)
    assert statuses() == ("FINISHED", "FINISHED")
    runs = _stored(uri)
    assert runs["dice-fold1-seed5"].data.tags["medloss.attempt"] == "2"
    assert [step for step, _ in _history(uri, runs["dice-fold1-seed5"])["train/loss"]] == [1, 2, 3]


def test_a_run_that_failed_and_was_tried_again(folder: Path) -> None:
    plan = _plan(("dice",))
    uri = local_uri(folder)
    _train(folder, plan, 0, epochs=1, end="the loss is nan")
    _finish(folder, plan)
    (run_folder(folder, plan.runs[0]).path / "result.json").unlink()
    _sync(folder, plan)
    _train(folder, plan, 0, epochs=3, end="done", attempts=2)
    _finish(folder, plan, dice=0.2)
    runs = _stored(uri)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "medloss.error" not in runs["dice-fold1-seed5"].data.tags
    assert len(_history(uri, runs["dice-fold1-seed5"])["train/loss"]) == 3
    assert runs["parent"].data.metrics == {"best/dice": 0.2}


def test_a_server_that_is_not_there_stops_nothing(folder: Path) -> None:
    plan = _plan(("dice",), epochs=200)
    _train(folder, plan, 0, epochs=200, end="done")
    states = run_states(folder, plan)
    mirror, warnings = _mirror(folder, plan, _NOWHERE)
    start = time.monotonic()
    assert not mirror.sync(states)
    first = time.monotonic() - start
    start = time.monotonic()
    for _ in range(100):
        assert not mirror.sync(states)  # it is not asked again at once
    assert time.monotonic() - start < 0.5
    assert not mirror.finish(states, [], {})
    assert first < 20
    (warning,) = warnings
    assert warning.startswith(f"MLflow at {_NOWHERE} cannot be reached (")
    assert "\n" not in warning

    # Later everything is caught up with: more numbers than MLflow takes at once.
    _finish(folder, plan)
    runs = _stored(local_uri(folder))
    assert runs["parent"].info.status == "FINISHED"
    history = _history(local_uri(folder), runs["dice-fold1-seed5"])
    assert [step for step, _ in history["train/loss"]] == list(range(1, 201))
    assert [step for step, _ in history["val/dice"]] == list(range(2, 201, 2))
    assert (read_json(folder / "mlflow.json"))["uri"] == local_uri(folder)


def test_a_failure_in_the_middle_is_made_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the client's calls fails once; after as many attempts the store holds all, and nothing double."""
    from mlflow import MlflowClient

    plan = _plan(("dice",))
    _train(folder, plan, 0, epochs=3, end="done")
    mirror, warnings = _mirror(folder, plan)
    monkeypatch.setattr("pipelines.comparison.tracking._RETRY_S", 0.0)
    broken = ["create_experiment", "search_runs", "create_run", "log_batch", "log_artifact", "set_tag", "get_run"]
    broken.append("set_terminated")
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
    assert len(warnings) == 1
    _finish(folder, plan)
    runs = _stored(local_uri(folder))
    assert set(runs) == {"parent", "dice-fold1-seed5"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in _history(local_uri(folder), runs["dice-fold1-seed5"])["train/loss"]] == [1, 2, 3]
    assert "result.json" in _artifacts(local_uri(folder), runs["dice-fold1-seed5"])


def test_a_store_that_was_removed_is_written_anew(folder: Path, _empty_store: Path, tmp_path: Path) -> None:
    plan = _plan(("dice",))
    _train(folder, plan, 0, epochs=3, end="done")
    _finish(folder, plan)
    notes = read_json(folder / "mlflow.json")
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder / "runs", elsewhere / "runs")
    shutil.copy(_empty_store, elsewhere / "mlflow.db")
    write_json(elsewhere / "mlflow.json", notes | {"uri": local_uri(elsewhere)})
    _finish(elsewhere, plan)
    runs = _stored(local_uri(elsewhere))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(_history(local_uri(elsewhere), runs["dice-fold1-seed5"])["train/loss"]) == 3


@pytest.mark.parametrize("removed", ["parent", "dice-fold1-seed5"])
def test_a_run_that_was_removed_by_hand_is_written_anew(folder: Path, removed: str) -> None:
    plan = _plan(("dice", "focal"))
    uri = local_uri(folder)
    _train(folder, plan, 0, epochs=3, end="done")
    _train(folder, plan, 1, epochs=2)
    _sync(folder, plan)
    _client(uri).delete_run(_stored(uri)[removed].info.run_id)
    _train(folder, plan, 1, epochs=3, end="done")
    _finish(folder, plan)
    runs = _stored(uri)
    parent = runs.pop("parent")
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert set(runs) == {"dice-fold1-seed5", "focal-fold1-seed5"}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [step for step, _ in _history(uri, run)["train/loss"]] == [1, 2, 3]


def test_odd_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c"
    plan = _plan(("dice",))
    _train(folder, plan, 0, epochs=3, end="done")
    _finish(folder, plan)
    assert "result.json" in _artifacts(local_uri(folder), _stored(local_uri(folder))["dice-fold1-seed5"])
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
    assert _mirror(tmp_path, _plan())[0].uri == local_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://named:1")
    assert _mirror(tmp_path, _plan())[0].uri == "http://named:1"
    assert _mirror(tmp_path, _plan(), "http://given:2")[0].uri == "http://given:2"


@contextlib.contextmanager
def _server(folder: Path, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", local_uri(folder), "--artifacts-destination", str(folder / "served")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_real_server_restarted_in_the_middle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.comparison.tracking._RETRY_S", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    plan = _plan(("dice", "focal"))
    mirror, warnings = _mirror(folder, plan, uri)
    with _server(folder, port):
        _train(folder, plan, 0, epochs=1)
        assert mirror.sync(run_states(folder, plan)), warnings
        assert warnings == []
    _train(folder, plan, 0, epochs=3, end="done")
    _train(folder, plan, 1, epochs=2)
    start = time.monotonic()
    assert not mirror.sync(run_states(folder, plan))
    assert time.monotonic() - start < 20
    with _server(folder, port):
        assert mirror.sync(run_states(folder, plan)), warnings
        assert len(warnings) == 1
        _train(folder, plan, 1, epochs=3, end="done")
        table = folder / "table.csv"
        table.write_text("loss,dice\n")
        assert mirror.finish(run_states(folder, plan), [table], {"best/dice": 0.3}), warnings
        runs = _stored(uri)
        assert set(runs) == {"parent", "dice-fold1-seed5", "focal-fold1-seed5"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        for name in ("dice-fold1-seed5", "focal-fold1-seed5"):
            assert [step for step, _ in _history(uri, runs[name])["train/loss"]] == [1, 2, 3]
            assert _artifacts(uri, runs[name]) == {"config.json", "result.json", "epochs.csv", "cases.csv"}
        assert _artifacts(uri, runs["parent"]) == {"table.csv"}
