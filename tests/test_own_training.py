"""Losses in other people's training: from plain YAML, and the examples of `docs/own_training.md`, as they stand."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss
from torch import nn

import medloss
from medloss import LOSSES
from medloss.base import CommonArguments

PAGE = Path(__file__).parents[1] / "docs" / "own_training.md"
LABEL = torch.randint(0, 3, (2, 1, 8, 12, 16), generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(2, 3, 8, 12, 16, generator=torch.Generator().manual_seed(1))
#: The keys of Auto3DSeg's segresnet that loss blocks refer to.
TEMPLATE = {"sigmoid": False, "resample_resolution": [3.0, 0.8, 1.2], "roi_size": [8, 12, 16]}


def _blocks(language: str) -> list[str]:
    if not PAGE.is_file():
        pytest.skip("docs do not travel with the wheel")
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _made(text: str, **more: Any) -> nn.Module:
    parser = ConfigParser({**more, **yaml.safe_load(text)})
    loss = parser.get_parsed_content("loss")
    assert isinstance(loss, nn.Module)
    return loss


def _plain_arguments(name: str) -> dict[str, Any]:
    """All arguments of a loss with their defaults, tuples as lists, and some that are no defaults."""
    parameters = inspect.signature(LOSSES[name].cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    return plain | {"softmax": True, "to_onehot_y": True, "include_background": False, "weight": [0.25, 2.0]}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_made_from_plain_yaml(name: str) -> None:
    arguments = _plain_arguments(name)
    assert set(arguments) <= set(inspect.signature(LOSSES[name].cls).parameters) | set(CommonArguments.__annotations__)
    # `safe_dump` refuses all but numbers, strings, lists and the like.
    text = yaml.safe_dump({"loss": {"_target_": f"medloss.{LOSSES[name].cls.__name__}", **arguments}})
    loss = _made(text)
    assert type(loss) is LOSSES[name].cls
    value = loss(LOGITS, LABEL)
    assert value == LOSSES[name].cls(**arguments)(LOGITS, LABEL)
    other = LOSSES[name].cls(softmax=True, to_onehot_y=True)(LOGITS, LABEL)
    assert value != other  # the keywords that are no defaults have arrived


def test_the_pages_yaml_makes_losses() -> None:
    blocks = _blocks("yaml")
    assert len(blocks) == 5
    for block in blocks:
        logits = LOGITS.clone().requires_grad_()
        _made(block, **TEMPLATE)(logits, LABEL).backward()
        assert logits.grad is not None and logits.grad.abs().max() > 0


def test_auto3dsegs_coarse_outputs_have_their_own_spacing() -> None:
    # As segresnet does: the loss alone, in MONAI's deep supervision, on a plain tensor.
    fixed = _made(_blocks("yaml")[-1], **TEMPLATE)
    outputs = [LOGITS, LOGITS[..., ::2, ::2, ::2].contiguous(), LOGITS[..., ::2, ::4, ::4].contiguous()]
    value = DeepSupervisionLoss(fixed)(outputs, LABEL.float())
    alone = medloss.CombinedLoss("hausdorff_dt+dice", softmax=True, to_onehot_y=True)
    ours = medloss.DeepSupervision(alone, weights=[1.0, 0.5, 0.25])
    wanted = ours(outputs, LABEL, spacing=TEMPLATE["resample_resolution"])
    torch.testing.assert_close(value, wanted)
    voxels = DeepSupervisionLoss(alone)(outputs, LABEL.float())
    assert abs(value - voxels) > 0.1 * abs(value)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.parametrize("number", range(2))
def test_the_pages_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _blocks("python")
    assert len(blocks) == 2
    if "lightning" in blocks[number]:
        pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks[number], str(PAGE), "exec"), names)
    # It has trained, and the weights of the sum have moved on.
    loss = names.get("loss_function") or names["trainer"].model.loss_function
    assert loss.weights.tolist() != [1.0, 1.0]


def test_a_fixed_spacing_can_be_exchanged_for_any_loss() -> None:
    loss = medloss.create_training_loss("hausdorff_dt", num_classes=3)
    assert isinstance(loss, medloss.CombinedLoss)
    fixed = medloss.FixedSpacing(loss, spacing=[3.0, 0.8, 1.2])
    logits = LOGITS.clone().requires_grad_()
    value = fixed(logits, LABEL, spacing=(1.0, 1.0, 1.0))  # as all losses, it takes what it has no use for
    fixed.start_epoch(1)
    assert loss.weights.tolist() != [1.0, 1.0]
    assert value == medloss.FixedSpacing(
        medloss.create_training_loss("hausdorff_dt", num_classes=3), spacing=[3.0, 0.8, 1.2]
    )(logits, LABEL)
    medloss.FixedSpacing(medloss.DiceLoss(softmax=True), spacing=[1.0, 1.0, 1.0]).start_epoch(1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"spacing": [1.0, 0.0, 1.0]},
            r"spacing: got \(1.0, 0.0, 1.0\); every spacing must be a positive number of mm",
        ),
        ({"spacing": 3.0}, r"spacing: got 3.0; expected one number \(mm\) an axis"),
        ({"spacing": [1.0, 1.0], "patch_size": [8, 8, 8]}, r"patch_size: got \[8, 8, 8\]; expected 2 numbers"),
        ({"spacing": [1.0, 1.0], "patch_size": [8, 0]}, r"patch_size: got \[8, 0\]; expected 2 numbers"),
        ({"spacing": [1.0, 1.0]}, r"logits: got 3 spatial axes \(8, 12, 16\); expected 2"),
    ],
)
def test_bad_spacing_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(medloss.InputError, match=told):
        medloss.FixedSpacing(medloss.DiceLoss(softmax=True), **arguments)(LOGITS, LABEL)
