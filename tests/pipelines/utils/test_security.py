"""Untrusted files: what could run code is refused before anything is evaluated or imported."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_manifest

from pipelines.comparison.executors.command_lines import worker_command
from pipelines.comparison.worker import work
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, require_plan
from pipelines.runs.plan import make_plan
from pipelines.training.run_config import NnunetSettings, RunConfig, recipe_settings
from pipelines.utils import UserError
from pipelines.utils.security import parse_yaml, refuse_code, refuse_foreign_losses

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
def test_what_the_bundle_parser_would_evaluate_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match=r"^F: refused: .* could run any code"):
        refuse_code(content, "F")


def test_plain_values_pass() -> None:
    refuse_code({"a": "costs 5 $", "b": [1, 2.5, None, True], "c": {"target": "x"}}, "F")


def bomb(levels: int = 9, each: int = 9, merge: bool = False) -> str:
    """Lists of aliases of the list before: a few hundred bytes that expand to each^levels values."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x]"]
    for level in range(levels):
        aliases = ", ".join([f"*a{level}"] * each)
        lines.append(f"a{level + 1}: &a{level + 1} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("add", ["", "\nname: small\n"])
def test_a_yaml_bomb_is_refused_before_it_expands(tmp_path: Path, merge: bool, add: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb(merge=merge) + add)
    assert path.stat().st_size < 800
    with pytest.raises(
        UserError, match=r"bomb\.yaml: refused: its aliases \(\*name\) expand \d+ values to \d\.\d+e\+\d+"
    ) as one:
        load_manifest(path)
    with pytest.raises(UserError, match=r"^recipe: .*bomb\.yaml is refused: its aliases") as two:
        recipe_settings(str(path))
    assert "\n" not in str(one.value) + str(two.value)


def test_shared_values_are_checked_once() -> None:
    shared: Any = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    refuse_code({"a": shared}, "F")
    with pytest.raises(UserError, match=r"F: refused: b\.0 is an expression"):
        refuse_code({"a": shared, "b": ["$x"]}, "F")


def test_aliases_that_share_some_fields_are_accepted(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, 2)
    plain = load_manifest(path)
    path.write_text(path.read_text().replace("classes:", "classes: &classes", 1) + "\nexcluded: &none []\n")
    assert load_manifest(path) == plain
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("patch_size: &size [16, 16]\nspacing: *size\naugmentation: &a {x: 1}\nother: {<<: *a, y: 2}\n")
    assert recipe_settings(str(recipe))["other"] == {"x": 1, "y": 2}
    assert parse_yaml("common: &c {fold: 0}\ncases:\n" + "- {<<: *c, id: a}\n" * 2000)["cases"][1999]["fold"] == 0


def test_a_manifest_with_code_is_refused(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, description="$open('PWNED', 'w')")
    with pytest.raises(UserError, match=r"tiny_3d\.yaml: refused: description is an expression"):
        load_manifest(path)
    content = yaml.safe_load(path.read_text()) | {"description": "d", "task": {"_target_": "os.abort"}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"refused: task\._target_ is an import"):
        load_manifest(path)


@pytest.mark.parametrize("loss", ["evil.Loss", "dice+0.5*evil.Loss", "2*eval.Loss+dice", "torch_evil.Loss"])
def test_losses_of_unknown_packages_are_refused(loss: str) -> None:
    with pytest.raises(UserError, match=r"F: refused: it names the loss '(torch_)?ev[ia]l\.Loss'.*pass --trust"):
        refuse_foreign_losses(["dice", loss], "F")
    refuse_foreign_losses(["dice", "dice+focal", "monai.losses.DiceCELoss", "torch.nn.CrossEntropyLoss"], "F")


def test_losses_of_an_untrusted_comparison_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_nnunet_does_not_unpickle_untrusted_cases(tmp_path: Path) -> None:
    config = RunConfig(manifest="none", nnunet=NnunetSettings())
    adopt_plan(tmp_path, make_plan([config], [0], [0], "any", "0" * 64))
    with pytest.raises(UserError, match=r"refused: nnU-Net reads the folder's prepared cases as pickles.*--trust"):
        work(tmp_path)
    assert worker_command(tmp_path, require_plan(tmp_path))[-1] == "--trust"
