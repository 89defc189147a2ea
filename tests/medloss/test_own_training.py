"""Losses in other people's training: from plain YAML, wrapped, compiled, cast; and `docs/own_training.md`."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loss_inputs import TAKES_NO_WEIGHT
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss, DiceLoss, MaskedDiceLoss
from torch import Tensor, nn

import medloss
from medloss import LOSSES
from medloss.base import CommonArguments

PAGE = Path(__file__).parents[2] / "docs" / "own_training.md"
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
    changed: dict[str, Any] = {"include_background": False, "weight": [0.25, 2.0]}
    if name in TAKES_NO_WEIGHT:
        changed = {"smooth_nr": 0.5, "weighting_mode": "GDL"}
    return plain | {"softmax": True, "to_onehot_y": True, **changed}


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


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")  # raised in Lightning
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
    ("arguments", "message"),
    [
        (
            {"spacing": [1.0, 0.0, 1.0]},
            r"spacing: got \(1.0, 0.0, 1.0\); every spacing must be a positive number of mm",
        ),
        ({"spacing": 3.0}, r"spacing: got 3.0; expected one number \(mm\) per axis"),
        ({"spacing": [1.0, 1.0], "patch_size": [8, 8, 8]}, r"patch_size: got \[8, 8, 8\]; expected 2 numbers"),
        ({"spacing": [1.0, 1.0], "patch_size": [8, 0]}, r"patch_size: got \[8, 0\]; expected 2 numbers"),
        ({"spacing": [1.0, 1.0]}, r"logits: got 3 spatial axes \(8, 12, 16\); expected 2"),
    ],
)
def test_bad_spacing_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        medloss.FixedSpacing(medloss.DiceLoss(softmax=True), **arguments)(LOGITS, LABEL)


class _Hiding(nn.Module):
    """A wrapper whose signature says nothing."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = self.inside(*args, **kwargs)
        return value


def _compiled_in_place(loss: nn.Module) -> nn.Module:
    loss.compile(backend="eager")
    return loss


def _compiled(loss: nn.Module) -> nn.Module:
    return torch.compile(loss, backend="eager")  # type: ignore[return-value]


HIDDEN: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": _compiled,
    "compiled in place": _compiled_in_place,
    "data parallel": nn.DataParallel,
    "compiled, data parallel": lambda loss: nn.DataParallel(_compiled(loss)),
    "any keyword": _Hiding,
}
AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DeepSupervision": medloss.DeepSupervision,
    "CombinedLoss": lambda loss: medloss.CombinedLoss([loss]),
    "FixedSpacing": lambda loss: medloss.FixedSpacing(loss, (3.0, 0.8, 1.2)),
}
MASK = torch.rand(LABEL.shape, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.mark.parametrize("hide", HIDDEN)
@pytest.mark.parametrize("around", AROUND)
def test_a_hidden_signature_loses_no_keyword(hide: str, around: str) -> None:
    torch.compiler.reset()
    maps = torch.rand(2, 3, 8, 12, 16, generator=torch.Generator().manual_seed(3))
    labelled = torch.tensor([[True, True, False], [True, True, True]])
    label = torch.where(labelled.gather(1, LABEL.flatten(1)).view(LABEL.shape), LABEL, 0)
    keywords = {
        "mask": MASK,
        "spacing": (3.0, 0.8, 1.2),
        "distance_map": maps,
        "labelled_classes": labelled,
        "voxel_weight": maps[:, :1],
    }
    plain = AROUND[around](medloss.HausdorffDTLoss(softmax=True))
    value = plain(LOGITS, label, **keywords)
    alone = [plain(LOGITS, label, **{name: given}).item() for name, given in keywords.items()]
    # FixedSpacing has its spacing already.
    assert len({value.item(), plain(LOGITS, label).item(), *alone}) >= len(keywords) + 1
    hidden = AROUND[around](HIDDEN[hide](medloss.HausdorffDTLoss(softmax=True)))
    torch.testing.assert_close(hidden(LOGITS, label, **keywords), value)


@pytest.mark.parametrize("hide", [name for name in HIDDEN if name != "any keyword"])
def test_monais_losses_get_what_they_take(hide: str) -> None:
    torch.compiler.reset()
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    total = medloss.CombinedLoss([HIDDEN[hide](DiceLoss(softmax=True, to_onehot_y=True))])
    torch.testing.assert_close(total(LOGITS, LABEL, spacing=(3.0, 0.8, 1.2)), loss(LOGITS, LABEL))
    masked = medloss.CombinedLoss([MaskedDiceLoss(softmax=True, to_onehot_y=True)])
    value = MaskedDiceLoss(softmax=True, to_onehot_y=True)(LOGITS, LABEL, MASK)
    assert masked(LOGITS, LABEL, mask=MASK) == value != loss(LOGITS, LABEL)


@pytest.mark.parametrize("hide", ["plain", *(name for name in HIDDEN if name != "any keyword")])
@pytest.mark.parametrize("around", AROUND)
def test_what_counts_is_never_lost(hide: str, around: str) -> None:
    loss = HIDDEN.get(hide, lambda loss: loss)(DiceLoss(softmax=True, to_onehot_y=True))
    counted: dict[str, tuple[Tensor, str]] = {
        "mask": (MASK, "every voxel"),
        "labelled_classes": (torch.ones(2, 3, dtype=torch.bool), "every class"),
        "voxel_weight": (torch.ones(LABEL.shape), "every voxel alike"),
    }
    for name, (given, what) in counted.items():
        message = rf"{name}: monai\.losses\.dice\.DiceLoss takes none and would count {what}; expected"
        with pytest.raises(medloss.InputError, match=message):
            AROUND[around](loss)(LOGITS, LABEL, **{name: given})


def test_a_spacing_that_would_be_lost_is_warned_of() -> None:
    fixed = medloss.FixedSpacing(DeepSupervisionLoss(medloss.HausdorffDTLoss(softmax=True)), (3.0, 0.8, 1.2))
    with pytest.warns(
        UserWarning, match="spacing: monai.*DeepSupervisionLoss takes none, so the HausdorffDTLoss inside"
    ):
        fixed(LOGITS, LABEL)
    # Where distances do not matter, nothing is lost: warnings are errors here.
    medloss.FixedSpacing(DeepSupervisionLoss(medloss.DiceLoss(softmax=True)), (3.0, 0.8, 1.2))(LOGITS, LABEL)


@pytest.mark.parametrize("hide", [*HIDDEN, "MONAI"])
def test_the_epoch_reaches_sums_in_any_module(hide: str) -> None:
    inner = medloss.CombinedLoss("dice+hausdorff_dt", schedule="ramp", ramp=(0, 1), softmax=True)
    between = DeepSupervisionLoss(inner) if hide == "MONAI" else HIDDEN[hide](inner)
    outer = medloss.CombinedLoss([medloss.CombinedLoss([medloss.FixedSpacing(between, (3.0, 0.8, 1.2))]), "focal"])
    medloss.DeepSupervision(outer).start_epoch(1)
    assert inner.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("hide", HIDDEN)
def test_torchs_wrappers_keep_the_family(hide: str) -> None:
    hidden = HIDDEN[hide](medloss.HausdorffDTLoss(softmax=True))
    total = medloss.CombinedLoss([hidden, medloss.BinaryCrossEntropyLoss(softmax=True)], schedule="balanced")
    assert total.anchor == (0 if hide == "any keyword" else 1)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module, image: Tensor) -> Tensor:
    optimizer.zero_grad()
    logits = network(image)
    value: Tensor = loss(logits, LABEL, mask=MASK, spacing=(3.0, 0.8, 1.2))
    value.backward()
    optimizer.step()
    return value.detach()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised in torch's compiler
@pytest.mark.parametrize("name", ["hausdorff_dt", "distance_penalty", "shape_aware"])
def test_a_compiled_training_step_equals_the_plain_one(name: str) -> None:
    torch.compiler.reset()
    seen = []
    for step in (_step, torch.compile(_step, backend="aot_eager")):
        torch.manual_seed(0)
        network = nn.Conv3d(1, 3, 3, padding=1)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        value = step(network, optimizer, medloss.create_loss(name, softmax=True), LOGITS[:, :1])
        seen.append((value, *network.parameters()))
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("weight", [2.0, [0.5, 1.0, 2.0], torch.tensor([0.5, 1.0, 2.0])], ids=["one", "list", "tensor"])
def test_a_loss_with_weights_is_made_inside_a_compiled_function(weight: Any) -> None:
    def value(logits: Tensor, label: Tensor) -> Tensor:
        focal = medloss.FocalLoss(softmax=True, weight=weight)
        return medloss.CombinedLoss([medloss.DiceLoss(softmax=True), focal], weights=[0.2, 0.8])(logits, label)

    torch.compiler.reset()
    compiled = torch.compile(value, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS, LABEL), value(LOGITS, LABEL))


def test_bad_weights_are_refused_inside_a_compiled_function() -> None:
    def value(logits: Tensor, label: Tensor) -> Tensor:
        return medloss.DiceLoss(softmax=True, weight=[1.0, -1.0, 1.0])(logits, label)

    torch.compiler.reset()
    with pytest.raises(medloss.InputError, match=r"weight: got \[1.0, -1.0, 1.0\]; expected finite numbers >= 0"):
        torch.compile(value, backend="eager")(LOGITS, LABEL)


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to": lambda module: module.to(torch.bfloat16),
    "to a device": lambda module: module.to("cpu", torch.bfloat16),
    "bfloat16": lambda module: module.bfloat16(),
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "type": lambda module: module.type(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_leave_the_losses_numbers_alone(cast: str) -> None:
    """As a part of a network's module: Lightning's `bf16-true`, or a bare `model.bfloat16()`."""
    seen = []
    for convert in (lambda module: module, CASTS[cast]):
        terms = [medloss.DiceLoss(softmax=True, weight=[0.1, 0.3, 0.7]), medloss.FocalLoss(softmax=True)]
        module = nn.ModuleDict(
            {"network": nn.Conv3d(1, 1, 1), "loss": medloss.CombinedLoss(terms, schedule="balanced")}
        )
        loss = convert(module)["loss"]
        logits = LOGITS[..., :4, :4, :4].clone().requires_grad_()
        # More calls than bfloat16 counts to.
        values = [loss(logits, LABEL[..., :4, :4, :4]).item() for _ in range(300)]
        loss.start_epoch(1)
        seen.append((values, loss.state_dict()))
    assert module["network"].weight.dtype != torch.float32
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


def test_losses_move_to_other_devices_without_float64() -> None:
    loss = medloss.CombinedLoss("dice+hausdorff_er", schedule="balanced", softmax=True, weight=[0.1, 0.3, 0.7])
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32, torch.bool}
    assert repr(loss.losses[0]) == "DiceLoss(softmax=True, weight=[0.1, 0.3, 0.7])"
    moved = loss.to("meta", torch.bfloat16)
    assert {(buffer.device.type, buffer.dtype) for buffer in moved.buffers()} == {
        ("meta", torch.float32),
        ("meta", torch.bool),
    }
