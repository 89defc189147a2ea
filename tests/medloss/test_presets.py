"""Presets: a loss's arguments elsewhere, by name, in constructors, names and sums."""

from typing import Any

import pytest
import torch
from loss_inputs import assert_close, make, sample
from monai import losses as monai_losses

import medloss
from medloss.names import refuse_unknown_losses
from medloss.presets import PRESETS, presets_of
from medloss.training_loss import trained_as

PAIRS = [(preset, loss) for preset, found in PRESETS.items() for loss in found.arguments or medloss.LOSSES]


@pytest.mark.parametrize(("preset", "loss"), PAIRS)
def test_every_presets_loss_can_be_made_by_name_and_by_class(preset: str, loss: str) -> None:
    by_name = medloss.create_loss(f"{loss}@{preset}", softmax=True)
    by_class = medloss.LOSSES[loss].cls.preset(preset, softmax=True)
    assert type(by_name) is type(by_class) is medloss.LOSSES[loss].cls
    assert repr(by_name) == repr(by_class)
    for name, value in presets_of(loss)[preset].items():
        assert getattr(by_name, name) == value
    refuse_unknown_losses(f"0.5*{loss}@{preset}+dice")


def test_survey_is_the_default() -> None:
    for name, entry in medloss.LOSSES.items():
        assert repr(medloss.create_loss(f"{name}@survey", softmax=True)) == repr(entry.cls(softmax=True))


#: Ours by the preset `monai`, MONAI's class with no argument but its activation, and a common factor.
AS_MONAI: list[tuple[str, str, str]] = [
    ("dice", "DiceLoss", "softmax"),
    ("dice", "DiceLoss", "sigmoid"),
    ("tversky", "TverskyLoss", "softmax"),
    ("matthews_correlation", "MCCLoss", "sigmoid"),
    ("hausdorff_dt", "HausdorffDTLoss", "sigmoid"),
]


@pytest.mark.parametrize(("ours", "theirs", "mode"), AS_MONAI)
def test_monais_defaults(ours: str, theirs: str, mode: str) -> None:
    drawn = sample(mode, 3)
    monai = getattr(monai_losses, theirs)(**{mode: True})(drawn.logits, drawn.maps)
    assert_close(medloss.create_loss(f"{ours}@monai", **{mode: True})(drawn.logits, drawn.index), monai, rtol=1e-5)


def test_monais_focal_loss_has_no_alpha() -> None:
    drawn = sample("sigmoid", 3)
    ours = medloss.FocalLoss.preset("monai", sigmoid=True)(drawn.logits, drawn.index)
    assert_close(ours, monai_losses.FocalLoss()(drawn.logits, drawn.maps), rtol=1e-5)


@pytest.mark.parametrize(("preset", "smooth"), [("nnunet", 1e-5), ("nnunet_nosmooth", 0.0)])
@pytest.mark.parametrize("batch", [False, True])
def test_nnunets_dice(preset: str, smooth: float, batch: bool) -> None:
    drawn = sample("softmax", 3)
    p, y = torch.softmax(drawn.logits, 1)[:, 1:], drawn.maps[:, 1:]  # without background
    over = (0, 2, 3, 4) if batch else (2, 3, 4)
    index = (2 * (p * y).sum(over) + smooth) / (p.sum(over) + y.sum(over) + smooth).clamp(min=1e-8)
    value = medloss.create_loss(f"dice@{preset}", softmax=True, batch=batch)(drawn.logits, drawn.index)
    assert_close(value, 1 - index.mean())
    # Regions have no background.
    p, y = torch.sigmoid(drawn.logits), drawn.maps
    index = (2 * (p * y).sum(over) + smooth) / (p.sum(over) + y.sum(over) + smooth).clamp(min=1e-8)
    value = medloss.create_loss(f"dice@{preset}", sigmoid=True, batch=batch)(drawn.logits, drawn.maps)
    assert_close(value, 1 - index.mean())


def test_nothing_found_of_nothing_has_no_nan_without_smoothing() -> None:
    loss = medloss.DiceLoss.preset("nnunet_nosmooth", softmax=True)
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3).clone().requires_grad_()
    value = loss(logits, torch.zeros(1, 1, 3, 3))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


def test_arguments_come_before_the_presets() -> None:
    assert medloss.create_loss("dice@monai", sigmoid=True, smooth_nr=2.0).smooth_nr == 2.0
    assert medloss.TverskyLoss.preset("monai", alpha=0.1).alpha == 0.1
    assert medloss.create_loss({"_target_": "dice@monai", "smooth_dr": 3.0}).smooth_dr == 3.0
    assert medloss.create_loss("medloss.DiceLoss@monai").smooth_dr == 1e-5


def test_sums_of_presets() -> None:
    drawn = sample("softmax", 3)
    parts = [medloss.create_loss(name, softmax=True) for name in ("dice@nnunet", "dice@monai", "focal")]
    expected = sum(w * part(drawn.logits, drawn.index) for w, part in zip((1, 0.5, 1), parts, strict=True))
    text = "dice@nnunet + 0.5*dice@monai+focal"
    assert_close(medloss.CombinedLoss(text, softmax=True)(drawn.logits, drawn.index), expected)
    trained = medloss.create_training_loss(text, num_classes=3)
    assert_close(trained(drawn.logits, drawn.index), expected)
    assert trained_as(text) == "dice@nnunet+0.5*dice@monai+focal"


def test_a_preset_is_that_of_the_named_loss_in_its_recipe() -> None:
    loss = medloss.create_training_loss("hausdorff_dt@monai", num_classes=3)
    assert trained_as("hausdorff_dt@monai") == "hausdorff_dt@monai+dice, balanced"
    assert not loss.losses[0].include_background
    assert loss.losses[1].include_background and loss.losses[1].smooth_nr == 1.0
    # MONAI's arguments, not those of the recipe.
    assert not medloss.create_training_loss("boundary", num_classes=3).losses[2].include_background
    assert medloss.create_training_loss("boundary@monai", num_classes=3).losses[2].include_background
    assert medloss.create_training_loss("generalized_dice", num_classes=3).w_type == "simple"
    assert medloss.create_training_loss("generalized_dice@monai", num_classes=3).w_type == "square"
    # Independent channels have no background.
    assert medloss.create_training_loss("hausdorff_dt@monai", num_classes=3, sigmoid=True).losses[0].include_background
    arguments: dict[str, Any] = {"common": {"batch": True}, "terms": {"dice": {"smooth_nr": 9.0}}}
    plain, named = medloss.create_training_loss("dice+dice@monai", num_classes=3, **arguments).losses
    assert plain.batch and named.batch
    assert (plain.smooth_nr, named.smooth_nr) == (9.0, 1e-5)


@pytest.mark.parametrize("loss", medloss.LOSSES)
def test_the_survey_preset_leaves_out_the_arguments_of_the_recipe(loss: str) -> None:
    for scale in ("", "0.5*"):
        found = medloss.create_training_loss(f"{scale}{loss}@survey", num_classes=3)
        parts = list(getattr(found, "losses", [found]))
        assert repr(medloss.create_loss(f"{loss}@survey", softmax=True, to_onehot_y=True)) in map(repr, parts)


def test_an_inner_loss_has_a_preset() -> None:
    loss = make("instance_wise", "softmax", loss="dice@nnunet_nosmooth+binary_cross_entropy")
    assert (loss.losses[0].smooth_nr, loss.losses[0].smooth_dr) == (0.0, 1e-8)
    trained = medloss.create_training_loss("instance_wise", num_classes=3)
    assert repr(trained.losses[2].losses[0]) == repr(loss.losses[0])


REFUSED = [
    ("dice@mona", "dice@mona: no preset 'mona'; did you mean 'monai'?"),
    ("dice@x", "dice@x: no preset 'x'; the presets are survey, monai, nnunet, nnunet_nosmooth"),
    ("focal@nnunet", "focal@nnunet: nnunet has no focal; the presets that have it are survey, monai"),
    ("dise@monai", "no loss 'dise'; did you mean 'dice'?"),
    ("dice@", "loss: cannot read 'dice@' in 'dice@'"),
    ("dice@monai@survey", "loss: cannot read 'dice@monai@survey'"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_refusals(name: str, message: str) -> None:
    for refuse in (
        refuse_unknown_losses,
        lambda text: medloss.CombinedLoss(text, softmax=True),
        lambda text: medloss.create_training_loss(text, num_classes=2),
    ):
        with pytest.raises(medloss.InputError) as caught:
            refuse(name)
        assert str(caught.value).startswith(message)


def test_a_class_that_is_not_registered_has_no_preset() -> None:
    class Other(medloss.DiceLoss):
        pass

    with pytest.raises(medloss.InputError, match="Other@monai: monai has no Other; the presets that have it are surv"):
        Other.preset("monai")
    with pytest.raises(medloss.InputError, match=r"monai has no monai\.losses\.DiceLoss"):
        medloss.create_loss("monai.losses.DiceLoss@monai")
