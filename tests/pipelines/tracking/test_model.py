"""The best network in MLflow: the registered model predicts as `medloss predict` does, and runs no code."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_call import call_medloss
from made_comparison import made_comparison
from tiny import tiny_manifest

from pipelines.comparison.compare import compare_losses
from pipelines.comparison.execution import Execution
from pipelines.data.manifest import load_manifest
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.runs.comparison_folder import read_plan, run_folder
from pipelines.runs.plan import Plan
from pipelines.tracking.mlflow_store import checked_model_name, local_uri, quiet_mlflow
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import NAME, save_model
from pipelines.utils import UserError
from pipelines.utils.files import read_json

#: Label values with gaps, some too large for a byte.
_CLASSES = {0: "background", 2: "organ", 7: "shell", 300: "lesion"}
_REGISTERED = "organ of the tiny set"


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def dims(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def comparison(dims: int, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, Plan]:
    """A finished comparison whose best network is registered; tests leave it as it is."""
    folder, plan = _finished(dims, tmp_path_factory.mktemp("model"), empty_store)
    assert compare_losses(folder, plan, Execution(register_model=_REGISTERED)) == 0
    return folder, plan


def _finished(dims: int, tmp_path: Path, empty_store: Path) -> tuple[Path, Plan]:
    """A finished comparison whose networks have random weights, with an empty store."""
    folder = tmp_path / "comparison"
    manifest = load_manifest(tiny_manifest(tmp_path, dims, classes=_CLASSES))
    plan = made_comparison(folder, ["dice"], seeds=(0, 1))
    for run in plan.runs:
        config = RunConfig(
            manifest="none", levels=2, base_channels=4, patch_size=(8,) * dims, precision="float32", flip_axes=(0,)
        )
        torch.manual_seed(run.config.seed)
        network = create_network(config, dims, 4)
        processed = Preprocessing(dimensions=dims, spacing=(2.0,) * dims)
        save_model(run_folder(folder, run).path / NAME, network, config, manifest, processed)
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder, plan


@pytest.fixture
def mlflow(comparison: tuple[Path, Plan]) -> Iterator[Any]:
    """MLflow with the store set, as for a user."""
    quiet_mlflow()
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(local_uri(comparison[0]))
    yield mlflow
    mlflow.set_tracking_uri(before)


@pytest.fixture
def image(dims: int, tmp_path: Path) -> tuple[Path, np.ndarray, tuple[float, ...]]:
    """An image in a file, its voxels and their size, which is not the network's."""
    spacing = (3.0, 1.25, 0.8)[:dims]
    voxels = np.random.default_rng(5).normal(100, 20, (9, 17, 14)[:dims]).astype(np.float32)
    path = tmp_path / "images" / "case.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, *[1.0] * (4 - dims)])), path)
    return path, voxels, spacing


def _best(comparison: tuple[Path, Plan]) -> Path:
    """The folder of the best run."""
    folder, plan = comparison
    runs = [run_folder(folder, run) for run in plan.runs]
    return max(runs, key=lambda run_dir: float((run_dir.result or {})["metrics"]["dice"])).path


@pytest.mark.parametrize("flips", [False, True], ids=["plain", "flips"])
def test_it_predicts_as_medloss_predict_does(
    comparison: tuple[Path, Plan],
    mlflow: Any,
    image: tuple[Path, np.ndarray, tuple[float, ...]],
    flips: bool,
    tmp_path: Path,
) -> None:
    path, voxels, spacing = image
    words = ["--model", _best(comparison) / NAME, "--device", "cpu", "--out", tmp_path / "out", *(["--flips"] * flips)]
    code, out, err = call_medloss("predict", path, *words)
    assert code == 0, out + err
    expected = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    model = mlflow.pyfunc.load_model(f"models:/{_REGISTERED}/1")
    found = model.predict(voxels, params={"spacing": list(spacing), "flips": flips})
    assert found.dtype == np.uint16  # the smallest that holds 300
    assert len(set(found.flat)) > 1
    np.testing.assert_array_equal(found, expected)


def test_what_mlflow_knows_of_it(comparison: tuple[Path, Plan], mlflow: Any, dims: int) -> None:
    folder, plan = comparison
    client = mlflow.MlflowClient()
    (registered,) = client.search_model_versions(f"name = '{_REGISTERED}'")
    runs = read_json(folder / "mlflow.json")["runs"]
    assert registered.run_id == runs[_best(comparison).name]["id"]
    (logged,) = client.search_logged_models([read_json(folder / "mlflow.json")["experiment"]])
    assert registered.source == logged.artifact_location
    assert logged.tags["medloss.loss"] == "dice"
    assert logged.tags["medloss.comparison"] == plan.id
    outputs = client.get_run(registered.run_id).outputs
    assert [output.model_id for output in outputs.model_outputs] == [logged.model_id]

    model = mlflow.pyfunc.load_model(f"models:/{_REGISTERED}/1")
    signature = model.metadata.signature
    (given,), (made,) = signature.inputs.inputs, signature.outputs.inputs
    assert (given.type, given.shape) == (np.float32, (-1,) * dims)
    assert (made.type, made.shape) == (np.uint16, (-1,) * dims)
    params = {param.name: param.default for param in signature.params.params}
    # An empty spacing is that of the network's grid, in the order of the axes given.
    assert params == {"spacing": [], "axes": "RAS"[:dims], "flips": False}
    assert model.metadata.metadata is None
    example, params = model.input_example, model.metadata.load_input_example_params(logged.artifact_location)
    assert example.shape == (16,) * dims
    predicted = model.predict(example, params=params)
    assert predicted.shape == example.shape
    assert set(predicted.flat) <= set(_CLASSES)


def test_channels_regions_and_axes(tmp_path: Path, empty_store: Path) -> None:
    import mlflow

    manifest = load_manifest(tiny_manifest(
        tmp_path, 3, modality=None, channels=[{"name": "PET"}, {"name": "CT"}], region_order=[1, 2],
        classes={0: "background", 1: "rim", 2: "core", 3: "centre"}, regions={"whole": [1, 2, 3], "core": [2, 3]},
        generator={"name": "phantom_regions"},
    ))  # fmt: skip
    folder = tmp_path / "comparison"
    (run,) = made_comparison(folder, ["dice"]).runs
    config = RunConfig(manifest="none", levels=2, base_channels=4, patch_size=(8, 8, 8), precision="float32")
    torch.manual_seed(2)
    processed = Preprocessing(dimensions=3, spacing=(2.0, 1.0, 3.0), orientation="canonical")
    file = run_folder(folder, run).path / NAME
    save_model(file, create_network(config, 3, 2, 2), config, manifest, processed)
    shutil.copy(empty_store, folder / "mlflow.db")
    plan = read_plan(folder)
    assert plan is not None
    assert compare_losses(folder, plan, Execution(register_model="tumour")) == 0
    (logged,) = mlflow.MlflowClient(tracking_uri=local_uri(folder)).search_logged_models(
        [read_json(folder / "mlflow.json")["experiment"]]
    )
    model = mlflow.pyfunc.load_model(logged.artifact_location)
    assert model.metadata.metadata == {"channels": ["PET", "CT"], "regions": {"whole": [1, 2, 3], "core": [2, 3]}}
    (given,), (made,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (given.shape, made.shape) == ((2, -1, -1, -1), (-1, -1, -1))
    params = model.metadata.load_input_example_params(logged.artifact_location)
    assert model.predict(model.input_example, params=params).shape == (16, 16, 16)
    with pytest.raises(mlflow.MlflowException, match="shape"):
        model.predict(np.ones((1, 8, 8, 8), np.float32))

    # A file whose axes run down, to the left and forwards.
    voxels = np.random.default_rng(5).normal(100, 20, (2, 9, 17, 14)).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -3.0, -1.5, 1.0, 1
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(np.moveaxis(voxels, 0, -1), affine), tmp_path / "images/case.nii.gz")
    out = tmp_path / "out"
    words = ["--model", file, "--device", "cpu", "--out", out]
    code, _, err = call_medloss("predict", tmp_path / "images/case.nii.gz", *words)
    assert code == 0, err
    expected = np.asarray(nib.load(out / "case.nii.gz").dataobj)
    found = model.predict(voxels, params={"spacing": [3.0, 1.5, 1.0], "axes": "ILA"})
    np.testing.assert_array_equal(found, expected)
    assert (found != model.predict(voxels, params={"spacing": [3.0, 1.5, 1.0]})).any()
    # Without a spacing it is that of the network's grid, (2, 1, 3), in the order of the array's axes.
    by_default = model.predict(voxels, params={"axes": "ILA"})
    np.testing.assert_array_equal(by_default, model.predict(voxels, params={"spacing": [3.0, 2.0, 1.0], "axes": "ILA"}))


def test_only_the_weights_are_pickled(comparison: tuple[Path, Plan], mlflow: Any, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{_REGISTERED}/1", dst_path=str(tmp_path)))
    assert {path.name for path in folder.rglob("*") if path.is_file()} - {"registered_model_meta"} == {
        "MLmodel", "model.pt", "input_example.json", "serving_input_example.json", "conda.yaml", "python_env.yaml",
        "requirements.txt",
    }  # fmt: skip
    assert next(folder.rglob("model.pt")).read_bytes() == (_best(comparison) / NAME).read_bytes()


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_its_place_is_refused(mlflow: Any, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{_REGISTERED}/1", dst_path=str(tmp_path / "got")))
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"format": 1, "network": _Code(tmp_path / "ran")}, next(folder.rglob("model.pt")))
        with pytest.raises(UserError, match=r"model\.pt: (refused|damaged, or no model)"):
            mlflow.pyfunc.load_model(str(folder))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": 4}, "expected . axes"),
        ({"value": np.nan}, "got NaN or Inf"),
        ({"params": {"spacing": [1.0]}}, "spacing: got"),
        ({"params": {"spacing": [1.0, 0.0, 1.0]}}, "spacing: got"),
        ({"params": {"axes": "RR"}}, "axes: got 'RR'; expected . directions, such as RA"),
        ({"params": {"axes": "LPSA"}}, "axes: got"),
    ],
)
def test_what_it_cannot_predict(comparison: tuple[Path, Plan], change: dict[str, Any], message: str) -> None:
    from pipelines.inference.predict import _load_pyfunc

    model = _load_pyfunc(str(_best(comparison) / NAME))
    dims = model.model.preprocessing.dimensions
    image = np.full((8,) * change.get("axes", dims), change.get("value", 1.0), np.float32)
    with pytest.raises(UserError, match=message):
        model.predict(image, change.get("params"))


def test_a_second_call_registers_nothing(
    comparison: tuple[Path, Plan], mlflow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plan = comparison
    assert compare_losses(folder, plan, Execution(register_model=_REGISTERED)) == 0
    assert f"model     {_REGISTERED} version 1, in MLflow's registry" in capsys.readouterr().out
    client = mlflow.MlflowClient()
    assert len(client.search_model_versions(f"name = '{_REGISTERED}'")) == 1
    assert len(client.search_logged_models([read_json(folder / "mlflow.json")["experiment"]])) == 1


@pytest.mark.parametrize("after", ["create_logged_model", "log_model_artifacts", "log_outputs", "create_model_version"])
def test_killed_in_the_middle(
    after: str,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever call was the last, the next command ends with one network and one version."""
    import mlflow

    folder, plan = _finished(2, tmp_path, empty_store)
    real = getattr(mlflow.MlflowClient, after)

    def killed(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, after, killed)
        assert compare_losses(folder, plan, Execution(register_model="organ")) == 130
    capsys.readouterr()
    assert compare_losses(folder, plan, Execution(register_model="organ")) == 0
    assert "organ version 1" in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=local_uri(folder))
    (version,) = client.search_model_versions("name = 'organ'")
    (model,) = client.search_logged_models([read_json(folder / "mlflow.json")["experiment"]])
    assert str(model.status) == "READY"
    assert version.source == model.artifact_location
    predictor = mlflow.pyfunc.load_model(model.artifact_location)
    assert predictor.predict(np.ones((8, 8), np.float32)).any()


@pytest.mark.parametrize("name", ["a/b", "a:b", "Bob's", ".", "..x", " ", ""])
def test_names_that_mlflow_would_refuse_hours_later(name: str) -> None:
    with pytest.raises(UserError, match="--register-model: got"):
        checked_model_name(name)
