"""What MLflow has of a comparison apart from its curves, also when it accepts no files."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

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
from small_disk import small_disk

from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import run_folder, run_states
from pipelines.runs.plan import Plan, make_plan
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_mirror import mirroring
from pipelines.tracking.mlflow_runs import child_name
from pipelines.tracking.mlflow_store import local_uri, without_password
from pipelines.training.run_config import RunConfig
from pipelines.utils.usage import NAME as SYSTEM


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path) -> Path:
    folder = tmp_path / "comparison"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def _files(uri: str, run: Any, below: str | None = None) -> set[str]:
    return {
        path
        for item in client_of(uri).list_artifacts(run.info.run_id, below)
        for path in (_files(uri, run, item.path) if item.is_dir else {item.path})
    }


def _end(folder: Path, plan: Plan) -> None:
    for index in range(len(plan.runs)):
        leave_run(folder, plan, index, epochs=3, end="done")


def test_the_data_set_is_an_input_of_every_run(folder: Path) -> None:
    manifest = load_manifest("phantom")
    configs = [RunConfig(manifest="phantom", loss="dice", epochs=3)]
    plan = make_plan(configs, [0, 1], [5], manifest.name, manifest.sha256)
    _end(folder, plan)
    finished(folder, plan)
    runs = stored(local_uri(folder))
    inputs = {
        name: [
            (given.dataset.name, {tag.key: tag.value for tag in given.tags}["mlflow.data.context"])
            for given in run.inputs.dataset_inputs
        ]
        for name, run in runs.items()
    }
    splits = {
        fold: [(f"phantom without fold {fold}", "training"), (f"phantom fold {fold}", "validation")] for fold in (0, 1)
    }
    children = {f"dice-fold{fold}-seed5": split for fold, split in splits.items()}
    assert inputs == {"parent": [("phantom", "training and validation")], **children}
    given = [entry.dataset for run in runs.values() for entry in run.inputs.dataset_inputs]
    assert {data.digest for data in given} == {manifest.sha256[:12]}
    profiles = {data.name: json.loads(data.profile) for data in given}
    assert profiles["phantom"]["manifest_sha256"] == manifest.sha256
    assert profiles["phantom"]["num_rows"] == len(manifest.cases)
    for fold in (0, 1):
        training, validation = manifest.split(fold)
        assert profiles[f"phantom without fold {fold}"]["num_rows"] == len(training)
        assert profiles[f"phantom fold {fold}"]["num_rows"] == len(validation)
        assert profiles[f"phantom fold {fold}"]["patients"] == len({case.patient for case in validation})


def test_channels_regions_and_the_ignored_label(folder: Path) -> None:
    manifest = load_manifest("phantom_regions")
    configs = [RunConfig(manifest="phantom_regions", loss="dice", epochs=3)]
    plan = make_plan(configs, [0], [5], manifest.name, manifest.sha256)
    _end(folder, plan)
    finished(folder, plan)
    runs = stored(local_uri(folder), manifest.name)
    about = {"channels": "PET, CT", "regions": "whole, core, centre", "ignore": "255"}
    for run in runs.values():
        assert {name: run.data.tags.get(f"medloss.{name}") for name in about} == about
        for given in run.inputs.dataset_inputs:
            assert about.items() <= json.loads(given.dataset.profile).items()
            schema = json.loads(given.dataset.schema)["mlflow_tensorspec"]
            (image,) = json.loads(schema["features"])
            assert image["tensor-spec"]["shape"] == [2, -1, -1, -1]


def test_a_changed_manifest_is_not_described(folder: Path) -> None:
    plan = small_plan(("dice",))
    _end(folder, plan)
    finished(folder, plan)
    for run in stored(local_uri(folder)).values():
        assert run.inputs.dataset_inputs
        for given in run.inputs.dataset_inputs:
            assert given.dataset.digest == "a" * 12
            assert not given.dataset.profile


def test_the_verdict_and_the_report_lie_at_the_parent(folder: Path) -> None:
    plan = small_plan(("dice", "focal"))
    _end(folder, plan)
    report = folder / "report"
    for name in ("report.html", "plots/forest.svg", "plots/overlay_dice_worst.png", "tables/ranking.csv"):
        (report / name).parent.mkdir(parents=True, exist_ok=True)
        (report / name).write_text(name)
    mirror, warnings = mirror_of(folder, plan)
    assert mirror.finish(run_states(folder, plan), Findings(verdict="dice was better.", report=report)), warnings
    uri = local_uri(folder)
    parent = stored(uri)["parent"]
    assert parent.data.tags["medloss.verdict"] == "dice was better."
    assert parent.data.tags["mlflow.note.content"].startswith("dice was better.\n")
    assert _files(uri, parent) == {
        "cases.csv", "report/report.html", "report/plots/forest.svg", "report/plots/overlay_dice_worst.png",
        "report/tables/ranking.csv",
    }  # fmt: skip
    cases = Path(client_of(uri).download_artifacts(parent.info.run_id, "cases.csv", str(folder))).read_text()
    head, *rows = cases.splitlines()
    assert {"case", "class", "dice", "loss", "fold", "seed"} <= set(head.split(","))
    assert len(rows) == 2


def test_samples_of_the_machine_become_system_metrics(folder: Path) -> None:
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=2)
    path = run_folder(folder, plan.runs[0]).path / SYSTEM
    lines = [{"time": 1_700_000_000.0 + 10 * n, "cpu_utilization_percentage": 10.0 * n} for n in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + json.dumps(lines[2])[:9])
    synced(folder, plan)
    # The last sample comes after the result, when the run is closed in MLflow already.
    leave_run(folder, plan, 0, epochs=3, end="done")
    synced(folder, plan)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):
        finished(folder, plan)
    uri = local_uri(folder)
    run = stored(uri)["dice-fold1-seed5"]
    history = history_of(uri, run)
    assert history["system/cpu_utilization_percentage"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert "system/time" not in history
    assert len(history["train/loss"]) == 3


def test_runs_have_the_times_at_which_they_ran(folder: Path) -> None:
    plan = small_plan(("dice",))
    _end(folder, plan)
    finished(folder, plan)
    runs = stored(local_uri(folder))
    ended = int(1000 * (run_folder(folder, plan.runs[0]).result or {})["finished"])
    first = int(1000 * (1_700_000_060.0 - 2.5))  # the first epoch's end, less what it took
    assert (runs["dice-fold1-seed5"].info.start_time, runs["dice-fold1-seed5"].info.end_time) == (first, ended)
    assert (runs["parent"].info.start_time, runs["parent"].info.end_time) == (int(1000 * plan.created), ended)


def test_a_loss_has_one_colour_and_no_other_has_it(folder: Path) -> None:
    losses = [f"{weight}*dice" for weight in range(1, 21)]
    configs = [RunConfig(manifest="phantom", loss=loss, epochs=3) for loss in losses]
    plan = make_plan(configs, [0, 1], [5], "phantom", "a" * 64)
    for index in (*range(20), 20, 39):
        leave_run(folder, plan, index, epochs=1)
    synced(folder, plan)
    tags = [run.data.tags for name, run in stored(local_uri(folder)).items() if name != "parent"]
    pairs = {(tag["medloss.loss"], tag["mlflow.runColor"]) for tag in tags}
    assert len(pairs) == len(losses) == len({colour for _, colour in pairs})


def test_runs_have_names_that_fit(folder: Path) -> None:
    long = "0.5*binary_cross_entropy+0.5*structural_similarity"
    configs = [RunConfig(manifest="phantom", loss=loss, epochs=3) for loss in (long, "dice")]

    def names(folds: list[int], seeds: list[int]) -> list[str]:
        plan = make_plan(configs, folds, seeds, "phantom", "a" * 64)
        return [child_name(plan, run) for run in plan.runs]

    assert names([0], [5])[1] == "dice"
    assert names([0, 1], [5])[-1] == "dice · fold 1"
    shortened, other, *_ = names([0, 1], [5, 6])
    assert other == "dice · fold 0 · seed 5"
    assert shortened == "0.5*binary_cro…tural_similarity · fold 0 · seed 5".replace("tural_similarity", long[-14:])
    assert len(set(names([0, 1], [5, 6]))) == 8


def test_planned_settings_are_params(folder: Path) -> None:
    configs = [RunConfig(manifest="phantom", loss="dice", epochs=3)]
    plan = make_plan(configs, [1], [5], "phantom", "a" * 64)
    leave_run(folder, plan, 0, epochs=3)
    synced(folder, plan)
    name = plan.runs[0].id
    assert "patch_size" not in stored(local_uri(folder))[name].data.params
    filled = {"learning_rate": 0.003, "patch_size": (40, 56, 40), "spacing": (1.0, 1.0, 2.0)}
    leave_run(folder, plan, 0, epochs=3, end="done")
    run_folder(folder, plan.runs[0]).write_config(plan.runs[0].config.model_copy(update=filled))
    for _ in range(2):
        finished(folder, plan)
    params = stored(local_uri(folder))[name].data.params
    assert {key: params[key] for key in filled} == {
        "learning_rate": "0.003", "patch_size": "[40, 56, 40]", "spacing": "[1.0, 1.0, 2.0]"
    }  # fmt: skip


def test_metrics_per_class(folder: Path) -> None:
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=3, end="done")
    rows = [("a", "left/right", 0.5, 3.0), ("b", "left/right", 0.7, None), ("a", "tumour", 0.2, None)]
    run_folder(folder, plan.runs[0]).write_cases(
        [{"case": case, "patient": case, "class": name, "dice": dice, "hd95_mm": hd} for case, name, dice, hd in rows]
    )
    finished(folder, plan)
    metrics = stored(local_uri(folder))["dice-fold1-seed5"].data.metrics
    of_classes = {name: value for name, value in metrics.items() if name.count("/") > 1}
    assert of_classes == pytest.approx(
        {"val/dice/left_right": 0.6, "val/dice/tumour": 0.2, "val/hd95_mm/left_right": 3.0}
    )


def test_runs_have_the_verdict_on_their_loss(folder: Path) -> None:
    plan = small_plan(("dice", "focal"))
    _end(folder, plan)
    mirror, warnings = mirror_of(folder, plan)
    verdicts = {"dice": "reference", "focal": "worse, -0.0145"}
    assert mirror.finish(run_states(folder, plan), Findings(verdict="so", verdicts=verdicts)), warnings
    tags = {name: run.data.tags.get("medloss.verdict") for name, run in stored(local_uri(folder)).items()}
    assert tags == {"parent": "so", "dice-fold1-seed5": "reference", "focal-fold1-seed5": "worse, -0.0145"}


def test_the_list_has_score_and_verdict(folder: Path) -> None:
    plan = small_plan(("dice",)).model_copy(update={"metric": "hd95_mm"})
    leave_run(folder, plan, 0, epochs=1)
    mirror, _ = mirror_of(folder, plan)
    assert mirror.runs_page("http://127.0.0.1:5000") is None
    assert mirror.sync(run_states(folder, plan))
    assert mirror.runs_page() is None  # the store is a file
    address = str(mirror.runs_page("http://127.0.0.1:5000/"))
    assert address.endswith(f"/#/experiments/{mirror.state['experiment']}/runs?viewStateShareKey=medloss-{plan.id}")
    client = client_of(local_uri(folder))
    experiment = client.get_experiment_by_name("phantom")
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.medloss-{plan.id}"])
    state = json.loads(view["state"])
    assert {"metrics.`val/hd95_mm`", "metrics.`val/dice`", "tags.`medloss.verdict`"} <= set(state["selectedColumns"])
    assert state["orderByAsc"] is True  # shorter is better
    found = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.data.tags["medloss.run"] for run in found} == {"parent", plan.runs[0].id}


def test_views_of_many_comparisons_leave_users_room_for_theirs(folder: Path) -> None:
    client = client_of(local_uri(folder))
    experiment = client.create_experiment("phantom")
    for number in range(30):
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{number}", "{}")
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=1)
    mirror, warnings = mirror_of(folder, plan)
    assert mirror.sync(run_states(folder, plan)), warnings
    assert len([name for name in client.get_experiment(experiment).tags if "sharedViewState" in name]) == 30
    assert mirror.runs_page("http://127.0.0.1:5000") is None


def test_where_its_page_is(folder: Path) -> None:
    plan = small_plan(("dice",)).model_copy(update={"metric": "hd95_mm"})
    leave_run(folder, plan, 0, epochs=1)
    mirror, _ = mirror_of(folder, plan)
    assert mirror.page("http://127.0.0.1:5000") is None  # it is in no experiment yet
    assert mirror.sync(run_states(folder, plan))
    assert mirror.page() is None  # the store is a file
    address, query = str(mirror.page("http://127.0.0.1:5000/")).split("?")
    experiment = mirror.state["experiment"]
    assert address == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs"
    asked = dict(parse_qsl(query))
    runs = client_of(local_uri(folder)).search_runs([experiment], asked.pop("searchFilter"))
    assert [run.data.tags["medloss.run"] for run in runs] == [plan.runs[0].id]  # not the parent
    by_score = {"orderByKey": "metrics.`val/hd95_mm`", "orderByAsc": "true"}  # shorter is better
    assert asked == by_score | {"compareRunsMode": "CHART"}


def test_an_experiment_that_was_removed_is_restored(folder: Path) -> None:
    plan = small_plan(("dice",))
    _end(folder, plan)
    finished(folder, plan)
    client = client_of(local_uri(folder))
    client.delete_experiment(client.get_experiment_by_name("phantom").experiment_id)
    finished(folder, plan)
    assert {run.info.status for run in stored(local_uri(folder)).values()} == {"FINISHED"}


def test_a_damaged_record_is_replaced(folder: Path) -> None:
    plan = small_plan(("dice",))
    _end(folder, plan)
    finished(folder, plan)
    before = {name: run.info.run_id for name, run in stored(local_uri(folder)).items()}
    (folder / "mlflow.json").write_text('{"uri": ')
    finished(folder, plan)
    runs = stored(local_uri(folder))
    assert {name: run.info.run_id for name, run in runs.items()} == before
    history = history_of(local_uri(folder), runs["dice-fold1-seed5"])
    assert [step for step, _ in history["train/loss"]] == [1, 2, 3]


def test_no_password_is_shown_or_written_down(folder: Path) -> None:
    assert without_password("postgresql+psycopg2://me:s3:cret@host:5/db") == "postgresql+psycopg2://me:***@host:5/db"
    assert (
        without_password("postgresql://me:p/w@h/db?x=1&password=s3cret") == "postgresql://me:***@h/db?x=1&password=***"
    )
    for uri in ("http://127.0.0.1:5000", "sqlite:////a:b@c.db", "https://me@host/a:b@c"):
        assert without_password(uri) == uri
    plan = small_plan(("dice",))
    mirror, warnings = mirror_of(folder, plan, "http://me:s3cret@127.0.0.1:9")
    assert not mirror.finish(run_states(folder, plan), Findings())
    mirror._save()
    assert warnings
    assert "s3cret" not in "".join(warnings) + (folder / "mlflow.json").read_text()


def _numbers_are_there(folder: Path, plan: Plan, warnings: list[str]) -> None:
    """All but the files, and one warning."""
    (warning,) = warnings
    assert warning.startswith(f"MLflow at {local_uri(folder)} accepts no files (")
    assert "\n" not in warning
    runs = stored(local_uri(folder))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for run in plan.runs:
        assert len(history_of(local_uri(folder), runs[run.id])["train/loss"]) == 3
    assert history_of(local_uri(folder), runs["parent"]) == {"best/dice": [(0, 0.3)]}
    assert runs["parent"].data.tags["medloss.verdict"] == "both are alike."


def test_a_place_for_files_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._RETRY_S", 0.0)
    plan = small_plan(("dice", "focal"))
    _end(folder, plan)
    (folder / "mlartifacts").write_text("a file, where a folder is wanted")
    mirror, warnings = mirror_of(folder, plan)
    findings = Findings(metrics={"best/dice": 0.3}, verdict="both are alike.")
    for _ in range(3):
        assert not mirror.sync(run_states(folder, plan))
    assert not mirror.finish(run_states(folder, plan), findings)
    _numbers_are_there(folder, plan, warnings)

    (folder / "mlartifacts").unlink()  # repaired; the same command then sends the files
    finished(folder, plan)
    for name, run in stored(local_uri(folder)).items():
        assert "cases.csv" in artifacts_of(local_uri(folder), run), name


@pytest.fixture
def full(folder: Path) -> Iterator[Path]:
    """MLflow's place for files, with room for hardly any."""
    with small_disk(folder / "mlartifacts", kilobytes=16) as place:
        yield place


def test_a_full_disk(folder: Path, full: Path) -> None:
    plan = small_plan(("dice", "focal"))
    _end(folder, plan)
    filler = full / "filler"
    filler.write_bytes(b"\0" * 16384)
    mirror, warnings = mirror_of(folder, plan)
    findings = Findings(metrics={"best/dice": 0.3}, verdict="both are alike.")
    assert not mirror.finish(run_states(folder, plan), findings)
    _numbers_are_there(folder, plan, warnings)
    assert "No space left on device" in warnings[0]


def test_a_server_that_hangs_delays_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and does not answer: the display of the runs continues."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("pipelines.tracking.mlflow_mirror._EVERY_S", 0.01)
    plan = small_plan(("dice",))
    leave_run(folder, plan, 0, epochs=2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        mirror, warnings = mirror_of(folder, plan, f"http://127.0.0.1:{port}")
        with mirroring(mirror) as hand_over:
            hand_over(run_states(folder, plan))
            connection, _ = server.accept()  # the mirror asks, and waits
            for _ in range(100):
                hand_over(run_states(folder, plan))
        connection.close()
    assert [warning.split(" (")[0] for warning in warnings] == [f"MLflow at http://127.0.0.1:{port} cannot be reached"]
    assert "MLflow" not in {thread.name for thread in threading.enumerate()}
    finished(folder, plan)
    assert len(history_of(local_uri(folder), stored(local_uri(folder))["dice-fold1-seed5"])["train/loss"]) == 2
