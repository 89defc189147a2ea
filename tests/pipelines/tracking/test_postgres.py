"""A real `mlflow server` on PostgreSQL, ten workers at once, and the server killed in the middle: nothing is lost."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mirrored import client_of, leave_run, mirror_of, small_plan
from mlflow_server import free_port, mlflow_server
from postgres import postgres
from tiny import tiny_manifest
from waiting import PROCESS_S, wait_for

from pipelines.comparison.compare import compare_losses
from pipelines.comparison.execution import Execution
from pipelines.data.manifest import load_manifest
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.runs.comparison_folder import adopt_plan, run_folder, run_states
from pipelines.runs.plan import Plan, make_plan
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import NAME as MODEL
from pipelines.training.saved_model import save_model
from pipelines.utils.usage import read_samples

pytestmark = pytest.mark.slow

_WORKERS = 10
#: Epochs before the server is killed, while it is gone, and after.
_EPOCHS = (8, 16, 24)


class _Service:
    """`mlflow server` on a database, which can be killed and started again."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database, self.port = folder, database, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.running = contextlib.ExitStack()

    def start(self) -> None:
        files = ("--artifacts-destination", self.folder / "served", "--workers", 2)
        self.running.enter_context(mlflow_server(self.folder, self.port, "--backend-store-uri", self.database, *files))

    def kill(self) -> None:
        self.running.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Service]:
    with postgres() as database:
        service = _Service(tmp_path_factory.mktemp("server"), database)
        service.start()
        yield service
        service.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._RETRY_S", 0.2)
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._EVERY_S", 0.05)


def _rows(service: _Service, query: str) -> list[tuple[Any, ...]]:
    import psycopg2

    with contextlib.closing(psycopg2.connect(service.database.replace("+psycopg2", ""))) as database:
        cursor = database.cursor()
        cursor.execute(query)
        return list(cursor.fetchall())


def test_ten_comparisons_begin_on_an_empty_server(service: _Service, tmp_path: Path) -> None:
    """On the same data set, in the same moment: each has its runs, in one experiment."""
    begin = threading.Barrier(_WORKERS)
    messages: list[str] = []
    ids = []

    def compare(folder: Path, plan: Plan) -> None:
        mirror, warnings = mirror_of(folder, plan, service.address)
        begin.wait()
        if not mirror.sync(run_states(folder, plan)):
            messages.extend(warnings)

    threads = []
    for number in range(_WORKERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = small_plan(("dice",))
        ids.append(plan.id)
        leave_run(folder, plan, 0, epochs=2)
        threads.append(threading.Thread(target=compare, args=(folder, plan)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages == []
    client = client_of(service.address)
    runs = client.search_runs([client.get_experiment_by_name("phantom").experiment_id])
    count = Counter((run.data.tags["medloss.comparison"], run.data.tags["medloss.run"]) for run in runs)
    assert count == {(plan_id, name): 1 for plan_id in ids for name in ("parent", "dice-fold1-seed5")}
    for run in runs:
        if run.data.tags["medloss.run"] != "parent":
            assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 2


def _ten_runs(tmp_path: Path) -> tuple[Path, Plan]:
    """A plan of ten runs, and a network in the folder of each."""
    folder = tmp_path / "comparison"
    folder.mkdir()
    path = tiny_manifest(tmp_path, 2)
    manifest = load_manifest(path)
    config = RunConfig(
        manifest=str(path), data_root=str(tmp_path / "data"), loss="dice", epochs=_EPOCHS[-1], levels=2,
        base_channels=2, patch_size=(8, 8), precision="float32",
    )  # fmt: skip
    plan = make_plan([config], [0], list(range(_WORKERS)), manifest.name, manifest.sha256)
    plan = adopt_plan(folder, plan)
    network = create_network(config, 2, manifest.scheme.channels)
    for run in plan.runs:
        run_dir = run_folder(folder, run).path
        run_dir.mkdir(parents=True)
        save_model(run_dir / MODEL, network, config, manifest, Preprocessing(dimensions=2, spacing=(1.5, 0.8)))
    return folder, plan


def test_the_server_is_killed_while_ten_workers_train(
    service: _Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plan = _ten_runs(tmp_path)
    allowed = folder / "allowed"

    def allow(epochs: int) -> None:
        allowed.with_suffix(".new").write_text(str(epochs))
        allowed.with_suffix(".new").replace(allowed)

    def epochs_over() -> int:
        return min(len(run_folder(folder, run).epochs) for run in plan.runs)

    allow(1)
    codes: list[int] = []
    execution = Execution(_WORKERS, check=False, tracking_uri=service.address, register_model="tiny")
    comparison = threading.Thread(target=lambda: codes.append(compare_losses(folder, plan, execution)))
    query = f"SELECT m.run_uuid FROM metrics m JOIN tags t USING (run_uuid) WHERE t.value = '{plan.id}'"
    script = Path(__file__).parents[2] / "support" / "folder_workers.py"
    workers = subprocess.Popen([sys.executable, str(script), str(folder)], start_new_session=True)
    try:
        wait_for(lambda: epochs_over() >= 1, what="ten workers begin")
        comparison.start()
        wait_for(lambda: len(set(_rows(service, query))) == _WORKERS, what="all ten runs are in MLflow")

        allow(_EPOCHS[0])
        wait_for(lambda: epochs_over() >= 2, what="they continue")
        service.kill()
        allow(_EPOCHS[1])
        wait_for(lambda: epochs_over() == _EPOCHS[1], what="they continue without MLflow")
        sent = len(_rows(service, query))
        service.start()
        wait_for(lambda: len(_rows(service, query)) > sent, what="MLflow gets more of them")
        allow(_EPOCHS[2])
        assert workers.wait(PROCESS_S) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()
    comparison.join(PROCESS_S)
    assert codes == [0]

    shown = capsys.readouterr()
    warnings = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
    assert [line.split(" (")[0] for line in warnings] == [f"warning: MLflow at {service.address} cannot be reached"]
    assert "\nmodel     tiny version 1, in MLflow's registry\n" in shown.out
    assert f"\ncharts    {service.address}/#/experiments/" in shown.out
    _all_is_there_once(service, folder, plan)
    _the_best_network_comes_back(service, folder, plan)


def _all_is_there_once(service: _Service, folder: Path, plan: Plan) -> None:
    client = client_of(service.address)
    runs = client.search_runs([client.get_experiment_by_name(plan.manifest_name).experiment_id])
    by_name = {run.data.tags["medloss.run"]: run for run in runs}
    assert len(runs) == len(by_name) == 1 + _WORKERS
    assert {run.info.status for run in runs} == {"FINISHED"}
    count: dict[str, Counter[tuple[str, int, float]]] = {run.info.run_id: Counter() for run in runs}
    for run_id, key, step, value in _rows(service, "SELECT run_uuid, key, step, value FROM metrics"):
        if run_id in count:
            count[run_id][key, step, value] += 1
    names = {"train_loss": "train/loss", "epoch_s": "time/epoch_s", "data_share": "time/data_share",
             "peak_mb": "mem/peak_mb"} | {f"val_{name}": f"val/{name}" for name in default_metrics()}  # fmt: skip
    for run in plan.runs:
        run_dir = run_folder(folder, run)
        assert len(run_dir.epochs) == _EPOCHS[-1]
        expected = {
            (name, int(row["epoch"]), row[column])
            for row in run_dir.epochs
            for column, name in names.items()
            if not math.isnan(row[column])
        }
        samples = read_samples(run_dir.path)
        assert samples
        expected |= {
            (f"system/{name}", number, value)
            for number, sample in samples
            for name, value in sample.items()
            if name != "time"
        }
        found = count[by_name[run.id].info.run_id]
        of_classes = {key for key in found if key[0].count("/") > 1}
        assert of_classes and found == dict.fromkeys(expected | of_classes, 1), run.id
        files = {item.path for item in client.list_artifacts(by_name[run.id].info.run_id)}
        assert files == {"config.json", "result.json", "epochs.csv", "cases.csv"}
    parent = by_name["parent"].info.run_id
    assert list(count[parent].values()) == [1]
    assert next(iter(count[parent])) == ("best/dice", 0, pytest.approx(_mean_dice(folder)))
    assert {item.path for item in client.list_artifacts(parent)} == {"table.csv", "table.md", "cases.csv"}


def _mean_dice(folder: Path) -> float:
    head, row = (folder / "table.csv").read_text().splitlines()
    return float(dict(zip(head.split(","), row.split(","), strict=True))["dice"])


def _the_best_network_comes_back(service: _Service, folder: Path, plan: Plan) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(service.address)
    try:
        (version,) = mlflow.MlflowClient().search_model_versions("name = 'tiny'")
        run = mlflow.MlflowClient().get_run(version.run_id)
        assert run.data.tags["medloss.run"] == plan.runs[-1].id  # made so that it is the best
        loaded = mlflow.pyfunc.load_model("models:/tiny/1")
    finally:
        mlflow.set_tracking_uri(before)
    image = np.random.default_rng(0).normal(size=(11, 9)).astype(np.float32)
    from pipelines.inference.predict import Predictor
    from pipelines.training.saved_model import load_model

    local = Predictor(load_model(run_folder(folder, plan.runs[-1]).path / MODEL, torch.device("cpu")))
    np.testing.assert_array_equal(loaded.predict(image), local.predict(image))
