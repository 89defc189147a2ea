"""Whole runs on tiny made data: what they leave, that they repeat themselves, and how they end badly."""

import csv
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_call import call_medloss
from forked import Forked
from tiny import TinySet, tiny_manifest, tiny_regions
from torch import Tensor, nn

import medloss
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.evaluation.calibration import from_rows
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.metrics.base import MetricSettings, default_metrics
from pipelines.evaluation.references import manifest_references, match
from pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.components import Training
from pipelines.training.run import Progress, train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder, case_columns, epoch_columns
from pipelines.training.saved_model import load_model
from pipelines.utils import TrainingError, UserError


@dataclass(frozen=True)
class _Set(TinySet):
    loaded: Manifest


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, _Set]:
    folder = tmp_path_factory.mktemp("sets")
    made = {}
    for dims in (2, 3):
        path = tiny_manifest(folder, dims)
        made[dims] = _Set(path, folder / "data", load_manifest(path))
    return made


def _weights(folder: Path) -> dict[str, Tensor]:
    state = load_checkpoint(folder)
    assert state is not None
    network: dict[str, Tensor] = state["training"]["network"]
    return network


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _check_folder(folder: Path, manifest: Manifest, epochs: int, validated: list[int]) -> None:
    with (folder / "epochs.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == epoch_columns()
        rows = list(reader)
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    for row in rows:
        assert (row["val_dice"] != "") == (row["val_s"] != "") == (int(row["epoch"]) in validated)
        assert math.isfinite(float(row["train_loss"]))
        assert float(row["grad_norm"]) > 0 and 0 < float(row["update_ratio"]) < 1
        assert float(row["epoch_s"]) > 0
        assert float(row["peak_mb"]) > 0
    with (folder / "cases.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == case_columns()
        cases = list(reader)
    held_out = [case for case in manifest.cases if case.fold == 0]
    assert [(row["case"], row["patient"], row["class"]) for row in cases] == [
        (case.id, case.patient, name) for case in held_out for name in manifest.scheme.names
    ]
    result = json.loads((folder / "result.json").read_text())
    assert (result["state"], result["error"]) == ("done", None)
    assert set(result["metrics"]) == set(default_metrics())
    assert set(result["per_class"]) == set(manifest.scheme.names)
    for name in manifest.scheme.names:
        values = [float(row["dice"]) for row in cases if row["class"] == name and row["dice"]]
        assert result["per_class"][name]["dice"] == pytest.approx(sum(values) / len(values))
    for metric in default_metrics():
        assert float(rows[-1]["val_" + metric]) == pytest.approx(result["metrics"][metric])
    assert result["epoch_s"] > 0
    assert {"torch", "monai", "python"} <= set(result["versions"])
    assert set(result["machine"]) >= {"processor", "cores", "memory", "system"}
    assert RunFolder(folder).config is not None
    assert json.loads((folder / "progress.json").read_text()) | {"updated": 0} == {
        "state": "running", "epoch": epochs, "epochs": epochs, "seconds_left": 0,
        "val_dice": pytest.approx(result["metrics"]["dice"]), "updated": 0,
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["checkpoint.pt", "checkpoint.pt.sha256", "config.json", "progress.json", "epochs.csv", "cases.csv"]
        + ["result.json", "model.pt", "predictions"]
        + ["checkpoint.previous.pt", "checkpoint.previous.pt.sha256"] * (epochs > 1)
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_a_run_leaves_a_folder(sets: dict[int, _Set], tmp_path: Path, dims: int) -> None:
    reports: list[Progress] = []
    config = sets[dims].config(epochs=3, val_interval=2, learning_rate=1e-2)
    result = train_run(config, tmp_path / "run", report=reports.append)
    _check_folder(tmp_path / "run", sets[dims].loaded, 3, validated=[2, 3])
    assert [progress.epoch for progress in reports] == [1, 2, 3]
    assert [progress.val_dice is None for progress in reports] == [True, False, False]
    assert reports[-1].val_dice == result["metrics"]["dice"]
    assert reports[-1].train_loss < reports[0].train_loss
    assert reports[0].seconds_left > reports[-1].seconds_left == 0
    kept = RunFolder(tmp_path / "run").config
    assert kept is not None
    filled = {name for name, value in config if value is None and getattr(kept, name) is not None}
    assert filled == {"patch_size", "spacing", "intensity", "memory_gb", "nsd_tolerance"}
    assert kept.model_copy(update=dict.fromkeys(filled)) == config


def test_metrics_that_manifest_and_config_name(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, 2, metrics=["lesion_f1"], nsd_tolerance=2.0, lesions={"overlap": 0.1})
    run = RunFolder(tmp_path / "run")
    config = TinySet(path, tmp_path).config(metrics=("volume_difference",))
    result = train_run(config, run.path)
    assert run.config is not None and run.config.nsd_tolerance == 2.0
    names = (*default_metrics(), "lesion_f1", "volume_difference")
    assert tuple(result["metrics"]) == names
    assert list(run.cases[0]) == ["case", "patient", "class", *names]
    assert run.epochs[-1]["val_lesion_f1"] == result["metrics"]["lesion_f1"]
    # The same numbers as of `medloss evaluate` on the kept predictions.
    table = tmp_path / "all.csv"
    code, _, err = call_medloss(
        "evaluate", run.path / "predictions", "--manifest", path, "--data-root", tmp_path, "--fold", 0,
        "--metrics", "all", "--out", table,
    )  # fmt: skip
    assert code == 0, err
    with table.open(newline="") as file:
        for row, noted in zip(csv.DictReader(file), run.cases, strict=True):
            values = [float(row[name] or "nan") for name in names]
            assert values == pytest.approx([float(noted[name] or "nan") for name in names], rel=1e-6, nan_ok=True)
    with pytest.raises(UserError, match=r"^metrics: no metric 'lesion'; did you mean"):
        train_run(config.model_copy(update={"metrics": ("lesion",)}), tmp_path / "other")
    with pytest.raises(UserError, match="its checkpoint was made with another metrics"):
        train_run(config.model_copy(update={"metrics": ()}), run.path, resume=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_kept_predictions_are_those_measured(tmp_path: Path, dims: int) -> None:
    path = tiny_manifest(tmp_path, dims, classes={0: "background", 2: "organ", 5: "shell", 9: "lesion"})
    run = RunFolder(tmp_path / "run")
    train_run(TinySet(path, tmp_path).config(epochs=2, learning_rate=1e-2), run.path)
    references = manifest_references(str(path), tmp_path, fold=0)
    matched = match(references, run.path / "predictions")
    assert (len(matched.pairs), matched.unlabelled, matched.unpredicted) == (2, [], [])
    # Of the same grid, with the same values, else they would be refused.
    rows = evaluate(run.path / "predictions", references, matched).rows
    with (run.path / "cases.csv").open(newline="") as file:
        noted = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [(row["case"], row["class"]) for row in noted]
    for row, other in zip(rows, noted, strict=True):
        values = [float(other[name] or "nan") for name in default_metrics()]
        assert values == pytest.approx([row[name] for name in default_metrics()], rel=1e-6, nan_ok=True)
    files = (run.path / "predictions").iterdir()
    assert len({value for file in files for value in np.unique(nib.load(file).dataobj)}) > 1


def test_predictions_need_not_be_kept(sets: dict[int, _Set], tmp_path: Path) -> None:
    train_run(sets[2].config(epochs=1, keep_predictions=False), tmp_path / "run")
    assert not (tmp_path / "run" / "predictions").exists()


def test_predictions_that_cannot_be_kept_are_told(sets: dict[int, _Set], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions").write_text("in the way")
    with pytest.raises(TrainingError, match=r"the prediction of case 'phantom_000' cannot be written: .*exists"):
        train_run(sets[2].config(epochs=1), tmp_path / "run")


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_vnet(tmp_path: Path, dims: int) -> None:
    manifest = tiny_manifest(tmp_path, dims, cases=3, generator={"shape": [16] * dims})
    config = RunConfig(manifest=str(manifest), data_root=str(tmp_path), network="vnet", epochs=1, threads=1)
    result = train_run(config, tmp_path / "run")
    assert result["patch_size"] == [16] * dims
    _check_folder(tmp_path / "run", load_manifest(manifest), 1, validated=[1])


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_as_the_plain_one(
    sets: dict[int, _Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    compiled_networks = []
    compiler = torch.compile

    def compile(network: nn.Module) -> Any:
        compiled_networks.append(network)
        return compiler(network, backend=backend)

    monkeypatch.setattr(torch, "compile", compile)
    settings = {"network": "dynunet", "deep_supervision": 1, "base_channels": 4, "ema": 0.9, "epochs": 2}
    losses = []
    for compiled in (False, True):
        train_run(sets[2].config(compile=compiled, **settings), tmp_path / str(compiled))
        assert len(compiled_networks) == compiled
        losses.append([row["train_loss"] for row in RunFolder(tmp_path / str(compiled)).epochs])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert load_model(tmp_path / "True", torch.device("cpu")).config.compile


def test_bfloat16(sets: dict[int, _Set], tmp_path: Path) -> None:
    result = train_run(sets[2].config(precision="bfloat16", epochs=1), tmp_path)
    assert result["precision"] == "bfloat16"
    assert all(weight.dtype == torch.float32 for weight in _weights(tmp_path).values())
    assert all(0 <= result["metrics"][name] <= 1 for name in ("dice", "iou", "sensitivity"))


def test_the_seed_decides_the_weights(sets: dict[int, _Set], tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(len(name))  # what went on before must not matter
        train_run(sets[3].config(flip_axes=(0, 2), **changes), tmp_path / name)
        return _weights(tmp_path / name)

    first = weights("first")
    assert _equal(first, weights("again"))
    assert _equal(first, weights("workers", workers=2))
    assert _equal(first, weights("cold", cache_dir=str(tmp_path / "cache")))
    assert _equal(first, weights("warm", cache_dir=str(tmp_path / "cache")))
    assert _equal(first, weights("validated once", val_interval=2))
    assert not _equal(first, weights("other seed", seed=1))


def test_losses_start_from_the_same_weights(sets: dict[int, _Set]) -> None:
    def start(**changes: Any) -> dict[str, Tensor]:
        return Training(sets[3].config(**changes)).network.state_dict()

    dice = start(loss="dice")
    assert all(_equal(dice, start(loss=loss)) for loss in ("hausdorff_dt", "focal", "0.5*dice+0.5*focal"))
    assert _equal(dice, start(fold=1))
    assert not _equal(dice, start(seed=1))


def test_each_epoch_has_random_numbers_of_its_own(sets: dict[int, _Set]) -> None:
    training = Training(sets[2].config())
    drawn = []
    for epoch in (1, 2, 1):
        training.start_epoch(epoch)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def _killed_run(config: RunConfig, folder: Path, where: str) -> None:
    """Train, and end as by the kernel in the middle of the second epoch: in a step, or as its checkpoint is written."""

    def killed_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    # In a process that ends here.
    if where == "step":
        torch.optim.AdamW.step = killed_at(4, torch.optim.AdamW.step)  # type: ignore[method-assign]
    else:
        torch.save = killed_at(2, torch.save)
    train_run(config, folder, resume=False)


@pytest.mark.parametrize(("loss", "where"), [("dice", "step"), ("hausdorff_dt", "step"), ("dice", "save")])
def test_killed_and_resumed_is_as_never_killed(sets: dict[int, _Set], tmp_path: Path, loss: str, where: str) -> None:
    config = sets[3].config(loss=loss, epochs=3)
    assert Forked(_killed_run, config, tmp_path / "killed", where).join() == -signal.SIGKILL
    assert RunFolder(tmp_path / "killed").result is None
    before = RunFolder(tmp_path / "killed").epochs
    assert before[0]["epoch"] == 1
    state = load_checkpoint(tmp_path / "killed")
    assert state is not None
    assert state["epoch"] == 1
    resumed = train_run(config, tmp_path / "killed", resume=True)
    whole = train_run(config, tmp_path / "whole")
    assert _equal(_weights(tmp_path / "killed"), _weights(tmp_path / "whole"))
    assert resumed["metrics"] == pytest.approx(whole["metrics"], abs=0, nan_ok=True)
    rows = [RunFolder(tmp_path / name).epochs for name in ("killed", "whole")]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    assert rows[0][0] == before[0]
    _check_folder(tmp_path / "killed", sets[3].loaded, 3, validated=[1, 2, 3])


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(sets: dict[int, _Set], tmp_path: Path) -> None:
    whole = train_run(sets[2].config(), tmp_path)
    weights = _weights(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:-100])
    epochs: list[int] = []
    with pytest.warns(UserWarning, match="is damaged"):
        again = train_run(
            sets[2].config(), tmp_path, resume=True, report=lambda progress: epochs.append(progress.epoch)
        )
    assert epochs == [2]
    assert _equal(weights, _weights(tmp_path))
    assert again["metrics"] == whole["metrics"]


def test_a_finished_run_is_not_trained_again(sets: dict[int, _Set], tmp_path: Path) -> None:
    first = train_run(sets[2].config(), tmp_path)
    (tmp_path / "result.json").unlink()
    again = train_run(sets[2].config(), tmp_path, resume=True, report=lambda _: pytest.fail("trained again"))
    assert again == first


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 1e-4}, {"seed": 1}, {"loss": "focal"}, {"epochs": 3}, {"fold": 1}]
)
def test_resume_with_another_config_is_refused(sets: dict[int, _Set], tmp_path: Path, changes: dict[str, Any]) -> None:
    config = sets[2].config(epochs=1)
    train_run(config, tmp_path)
    before = _files(tmp_path)
    with pytest.raises(UserError, match=f"made with another {next(iter(changes))}"):
        train_run(sets[2].config(**({"epochs": 1} | changes)), tmp_path, resume=True)
    assert _files(tmp_path) == before
    elsewhere = sets[2].config(epochs=1, workers=1, threads=2, cache_dir=str(tmp_path / "cache"))
    assert train_run(elsewhere, tmp_path, resume=True)["state"] == "done"  # what does not change the weights may change


def test_resume_in_another_precision_is_refused(sets: dict[int, _Set], tmp_path: Path) -> None:
    config = sets[2].config(epochs=1, precision="bfloat16")
    train_run(config, tmp_path)
    changed = config.model_copy(update={"precision": "float32"})
    with pytest.raises(UserError, match=r"made in bfloat16, .* resume in float32; pass --precision bfloat16"):
        train_run(changed, tmp_path, resume=True)
    assert train_run(config, tmp_path, resume=True)["precision"] == "bfloat16"


def test_a_checkpoint_without_what_came_since_is_resumed(sets: dict[int, _Set], tmp_path: Path) -> None:
    """Its rows have no gradient norm and no ratio, and its config no schedule of the loss."""
    config = sets[2].config(keep_predictions=False)
    train_run(config.model_copy(update={"epochs": 1}), tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    for row in state["rows"]:
        del row["grad_norm"], row["update_ratio"]
    del state["config"]["loss_schedule"]
    state["config"]["epochs"] = 2
    save_checkpoint(tmp_path, state)
    assert train_run(config, tmp_path, resume=True)["state"] == "done"
    ratios = [row["update_ratio"] for row in RunFolder(tmp_path).epochs]
    assert math.isnan(ratios[0]) and ratios[1] > 0


def test_a_checkpoint_of_another_version_is_refused(sets: dict[int, _Set], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"epoch": 1, "network": {}})
    with pytest.raises(UserError, match="made by another version of medloss"):
        train_run(sets[2].config(), tmp_path, resume=True)


def test_a_folder_with_a_run_is_not_trained_over(sets: dict[int, _Set], tmp_path: Path) -> None:
    train_run(sets[2].config(epochs=1), tmp_path)
    before = _files(tmp_path)
    with pytest.raises(UserError, match="holds another run"):
        train_run(sets[2].config(epochs=1, seed=1), tmp_path)
    assert _files(tmp_path) == before


def test_an_earlier_failure_is_not_left_standing(sets: dict[int, _Set], tmp_path: Path) -> None:
    seen = []
    config = sets[2].config(epochs=2)
    RunFolder(tmp_path).write_result({"state": "failed", "error": "of before"})
    result = train_run(config, tmp_path, report=lambda _: seen.append((tmp_path / "result.json").exists()))
    assert seen == [False, False]
    assert RunFolder(tmp_path).result == result | {"finished": RunFolder(tmp_path).result["finished"]}  # type: ignore[index]


def test_resume_with_another_manifest_is_refused(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 2, cases=3)
    config = RunConfig(manifest=str(manifest), data_root=str(tmp_path), epochs=1, threads=1)
    train_run(config, tmp_path / "run")
    tiny_manifest(tmp_path, 2, cases=4)
    with pytest.raises(UserError, match="the manifest has changed"):
        train_run(config, tmp_path / "run", resume=True)


class ProbeLoss(nn.Module):
    """Says what it was called with; a module from elsewhere, by dotted path."""

    seen: ClassVar[list[tuple[Tensor, Tensor, Tensor]]] = []
    nan_at: ClassVar[int] = -1

    def forward(self, logits: Tensor, target: Tensor, *, spacing: Tensor) -> Tensor:
        self.seen.append((logits.detach(), target, spacing))
        return logits.square().mean() * (math.nan if len(self.seen) == self.nan_at else 1)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[ProbeLoss]:
    ProbeLoss.seen.clear()
    monkeypatch.setattr(ProbeLoss, "nan_at", -1)
    return ProbeLoss


@pytest.mark.parametrize("dims", [2, 3])
def test_what_reaches_the_loss(sets: dict[int, _Set], tmp_path: Path, probe: type[ProbeLoss], dims: int) -> None:
    config = sets[dims].config(loss=f"{__name__}.ProbeLoss", epochs=1, precision="bfloat16")
    patch = tuple(train_run(config, tmp_path)["patch_size"])
    assert len(probe.seen) == 2
    spacing = {2: [0.8, 1.5], 3: [2.0, 1.0, 3.0]}[dims]  # along the canonical axes
    for logits, target, spacings in probe.seen:
        assert torch.as_tensor(spacings) == pytest.approx(torch.tensor([spacing] * 2), abs=1e-6)
        assert logits.shape == (2, 4, *patch)
        assert target.shape == (2, 1, *patch)
        assert logits.dtype == torch.float32
        assert target.max() <= 3


def test_each_epoch_has_patches_of_its_own(sets: dict[int, _Set], tmp_path: Path, probe: type[ProbeLoss]) -> None:
    train_run(sets[3].config(loss=f"{__name__}.ProbeLoss", patch_size=(8, 16, 16)), tmp_path)
    targets = [sorted(target.flatten(1).sum(1).tolist()) for _, target, _ in probe.seen]
    assert len(targets) == 4
    assert sorted(targets[0] + targets[1]) != sorted(targets[2] + targets[3])


class NoisyLoss(nn.Module):
    """Draws from torch's generator, as dropout does."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits * torch.rand(logits.shape)).square().mean()


def test_what_is_random_in_torch_repeats_after_a_resume(sets: dict[int, _Set], tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise InterruptedError

    config = sets[2].config(loss=f"{__name__}.NoisyLoss")
    with pytest.raises(InterruptedError):
        train_run(config, tmp_path / "interrupted", report=interrupt)
    train_run(config, tmp_path / "interrupted", resume=True)
    train_run(config, tmp_path / "whole")
    assert _equal(_weights(tmp_path / "interrupted"), _weights(tmp_path / "whole"))


def test_a_run_of_an_older_version_resumes_along_the_files_axes(sets: dict[int, _Set], tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise InterruptedError

    config, run = sets[3].config(orientation="file"), tmp_path / "run"
    train_run(config, tmp_path / "whole")
    train_run(sets[3].config(), tmp_path / "canonical")
    with pytest.raises(InterruptedError):
        train_run(config, run, report=interrupt)
    # Older versions had no such setting.
    content = json.loads((run / "config.json").read_text())
    del content["orientation"], content["resample_channels"]
    (run / "config.json").write_text(json.dumps(content))
    state = load_checkpoint(run)
    assert state is not None
    del state["config"]["orientation"], state["config"]["resample_channels"]
    save_checkpoint(run, state)
    train_run(sets[3].config(), run, resume=True)
    assert _equal(_weights(run), _weights(tmp_path / "whole"))
    assert not _equal(_weights(run), _weights(tmp_path / "canonical"))
    kept = RunFolder(run).config
    assert kept is not None and kept.orientation == "file"


@pytest.mark.parametrize("resume", [False, True])
def test_nan_stops_before_the_step(
    sets: dict[int, _Set], tmp_path: Path, probe: type[ProbeLoss], monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    steps = []
    step: Callable[..., Any] = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        steps.append(all(p.isfinite().all() for group in self.param_groups for p in group["params"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    monkeypatch.setattr(probe, "nan_at", 3)
    config = sets[2].config(loss=f"{__name__}.ProbeLoss")
    with pytest.raises(TrainingError, match="the loss is nan in epoch 2, on the cases phantom_") as error:
        train_run(config, tmp_path)
    assert len(steps) == 2
    assert "\n" not in str(error.value)
    named = str(error.value).split("on the cases ")[1].split(";")[0].split(", ")
    assert len(named) == 2
    assert set(named) <= {case.id for case in sets[2].loaded.cases if case.fold != 0}
    result = RunFolder(tmp_path).result
    assert result is not None
    assert (result["state"], result["error"]) == ("failed", str(error.value))
    assert all(weight.isfinite().all() for weight in _weights(tmp_path).values())
    if resume:
        done = train_run(config, tmp_path, resume=True)
        assert done["state"] == "done"
        assert [row["epoch"] for row in RunFolder(tmp_path).epochs] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 9}, r"fold: got 9; 'tiny_3d' has folds 0, 1, 2"),
        ({"patch_size": (10, 24, 24)}, r"patch size: got \(10, 24, 24\).* 3 numbers divisible by 4"),
        ({"patch_size": (24, 24)}, r"patch size: got \(24, 24\)"),
        ({"network": "vnet", "patch_size": (24, 24, 24)}, "divisible by 16"),
        ({"flip_axes": (0, 3)}, r"flip axes: got \(0, 3\); 'tiny_3d' has axes 0 to 2"),
        ({"flip_axes": (-1,)}, r"flip axes: got \(-1,\)"),
        ({"device": "toaster"}, "device: got 'toaster'; expected cpu, cuda or auto"),
        ({"manifest": "phantm"}, "no manifest 'phantm'.*did you mean 'phantom"),
    ],
)
def test_bad_configs_leave_nothing(
    sets: dict[int, _Set], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_run(sets[3].config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_loss(sets: dict[int, _Set], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'dice'"):
        train_run(sets[3].config(loss="dise"), tmp_path / "run")
    with pytest.raises(ValueError, match="unknown argument 'gama'"):
        train_run(sets[3].config(loss="focal", loss_arguments={"gama": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_is_told_each_epoch(sets: dict[int, _Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    start = medloss.CombinedLoss.start_epoch
    monkeypatch.setattr(
        medloss.CombinedLoss, "start_epoch", lambda self, epoch: (epochs.append(epoch), start(self, epoch))[1]
    )
    train_run(sets[2].config(loss="hausdorff_dt", epochs=3), tmp_path)
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("regions", [False, True])
def test_kept_probabilities_give_the_metrics_of_the_validation(tmp_path: Path, regions: bool) -> None:
    """Read back by `medloss evaluate`, in the manifest's values and on the labels' grid."""
    path = tiny_regions(tmp_path) if regions else tiny_manifest(tmp_path, 2)
    made = TinySet(path, tmp_path / "data").config(epochs=1, metrics=("ece", "brier"), keep_probabilities=True)
    result = train_run(made, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    rows = folder.cases
    references = manifest_references(str(path), tmp_path / "data", 0)
    predictions = tmp_path / "run" / "predictions"
    settings = MetricSettings(("dice", "ece", "brier"))
    found = evaluate(predictions, references, match(references, predictions), settings)
    assert [(row["case"], row["class"]) for row in rows] == [(row["case"], row["class"]) for row in found.rows]
    for row, again in zip(rows, found.rows, strict=True):
        for name in ("ece", "brier"):
            assert row[name] == ("" if math.isnan(again[name]) else str(again[name])), (row["case"], name)
    assert 0 < result["metrics"]["brier"] < 1
    bins = folder.calibration
    assert {row["case"] for row in bins} == {row["case"] for row in rows if row["ece"]}
    per_class = [from_rows(row for row in bins if (row["case"], row["class"]) == (rows[0]["case"], name))
                 for name in dict.fromkeys(row["class"] for row in rows)]  # fmt: skip
    for of_class, row in zip(per_class, rows, strict=False):
        assert of_class is None if not row["ece"] else of_class is not None
        assert of_class is None or of_class.ece == pytest.approx(float(row["ece"]))


def test_probabilities_are_kept_only_if_asked_for(sets: dict[int, _Set], tmp_path: Path) -> None:
    train_run(sets[2].config(epochs=1), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.npz")) and RunFolder(tmp_path / "run").calibration == []
