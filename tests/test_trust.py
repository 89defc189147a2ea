"""Files from strangers: what could run something is refused before anything is evaluated or imported."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_manifest

from pipelines.comparison.executors.none import worker_command
from pipelines.comparison.plan import adopt_plan, make_plan, require_plan
from pipelines.comparison.worker import work
from pipelines.dataset.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.training.run_config import NnunetSettings, RunConfig
from pipelines.trust import refuse_code, refuse_foreign_losses

EVIL = "raise SystemExit('imported')\n"


@pytest.mark.parametrize(
    "content",
    [
        {"a": "$__import__('os').getcwd()"},
        {"a": ["x", {"b": "  $print(1)"}]},
        {"net": {"_target_": "torch.nn.Linear"}},
        {"imports": ["os"]},
    ],
)
def test_what_a_bundles_reader_would_evaluate_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match=r"^F: refused: .* could run anything"):
        refuse_code(content, "F")


def test_plain_values_pass() -> None:
    refuse_code({"a": "costs 5 $", "b": [1, 2.5, None, True], "c": {"target": "x"}}, "F")


def test_a_manifest_with_code_is_refused(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, description="$open('PWNED', 'w')")
    with pytest.raises(UserError, match=r"tiny_3d\.yaml: refused: description is an expression"):
        load_manifest(path)
    content = yaml.safe_load(path.read_text()) | {"description": "d", "task": {"_target_": "os.abort"}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"refused: task\._target_ is an import"):
        load_manifest(path)


@pytest.mark.parametrize("loss", ["evil.Loss", "dice+0.5*evil.Loss", "2*eval.Loss+dice", "torch_evil.Loss"])
def test_losses_of_unknown_packages_are_named(loss: str) -> None:
    with pytest.raises(UserError, match=r"F: refused: it names the loss '(torch_)?ev[ia]l\.Loss'.*pass --trust"):
        refuse_foreign_losses(["dice", loss], "F")
    refuse_foreign_losses(["dice", "dice+focal", "monai.losses.DiceCELoss", "torch.nn.CrossEntropyLoss"], "F")


def test_a_comparison_from_a_stranger_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    manifest = load_manifest(tiny_manifest(tmp_path, 2))
    config = RunConfig(manifest=str(tmp_path / "tiny_2d.yaml"), data_root=str(tmp_path), loss="evil.Loss")
    adopt_plan(tmp_path / "out", make_plan([config], [0], [0], manifest.name, manifest.sha256))
    with pytest.raises(UserError, match=r"it names the loss 'evil\.Loss'"):
        work(tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/*/*"))
    with pytest.raises(SystemExit, match="imported"):
        work(tmp_path / "out", trust=True)


def test_nnunet_does_not_unpickle_a_strangers_cases(tmp_path: Path) -> None:
    config = RunConfig(manifest="none", nnunet=NnunetSettings())
    adopt_plan(tmp_path, make_plan([config], [0], [0], "any", "0" * 64))
    with pytest.raises(UserError, match=r"refused: nnU-Net reads the folder's prepared cases as pickles.*--trust"):
        work(tmp_path)
    assert worker_command(tmp_path, require_plan(tmp_path))[-1] == "--trust"
