"""Sums of losses, their schedules, and losses from elsewhere."""

import copy
import math
from typing import Any

import pytest
import torch

import medloss
from medloss.expression import Term, parse_expression
from medloss.loss_entry import Recipe
from medloss.training_loss import has_boundary_term, recipe_clip, trained_as
from medloss.wrappers import shared_pass

LABEL = torch.zeros(2, 1, 12, 12, 12, dtype=torch.long)
LABEL[..., 3:9, 3:9, 3:9] = 1
LABEL[..., 4:6, 4:6, 4:6] = 2
LOGITS = torch.randn(2, 3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
#: The same as a network gives them in training: balanced sums count only what has a gradient.
TRAINED = LOGITS.clone().requires_grad_()


def test_expressions() -> None:
    assert parse_expression("dice") == [Term(1.0, "dice")]
    assert parse_expression(" 0.2*focal + 8e-1*dice ") == [Term(0.2, "focal"), Term(0.8, "dice")]
    assert parse_expression("monai.losses.DiceLoss+2*dice")[0].name == "monai.losses.DiceLoss"
    assert parse_expression("dice-focal") == [Term(1.0, "dice-focal")]  # no loss has this name; one is suggested
    for bad in ("", "dice+", "0*dice", "-1*dice", "dice-2*focal", "dice - focal", "2dice", "1.2.3*dice"):
        with pytest.raises(medloss.InputError, match="expected a sum such as"):
            parse_expression(bad)


def test_a_sum_is_the_weighted_sum_of_its_terms() -> None:
    for reduction in ("mean", "sum"):
        loss = medloss.CombinedLoss("0.2*focal+0.8*dice", softmax=True, reduction=reduction)
        focal, dice = (medloss.create_loss(n, softmax=True, reduction=reduction) for n in ("focal", "dice"))
        assert torch.isclose(loss(LOGITS, LABEL), 0.2 * focal(LOGITS, LABEL) + 0.8 * dice(LOGITS, LABEL))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_terms_that_count_other_classes_share_a_pass(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's sum: Dice without background, cross entropy with it; and the sums of both in one pass."""
    walks = []
    walk = shared_pass.voxel_sums
    monkeypatch.setattr(shared_pass, "voxel_sums", lambda *args: walks.append(1) or walk(*args))
    # Partial labels leave the first item two classes, of which a softmax then has no third.
    label, labelled = LABEL.clone(), torch.ones(LABEL.shape[0], 3, dtype=torch.bool)
    label[0] = label[0].where(label[0] != 2, 0)
    labelled[0, 2] = False
    calls: list[dict[str, Any]] = [{}, {"mask": LABEL != 2}, {"labelled_classes": labelled}]
    calls.append({"voxel_weight": torch.rand(LABEL.shape, generator=torch.Generator().manual_seed(1))})
    target = label if activation == "softmax" else (torch.arange(3).view(1, 3, 1, 1, 1) == label)
    common = {activation: True}
    terms = [
        medloss.DiceLoss(include_background=False, weight=[0.5, 2.0], **common),
        medloss.BinaryCrossEntropyLoss(**common),
        medloss.TverskyLoss(batch=True, include_background=False, **common),
    ]
    for order in (terms, terms[::-1]):
        for given in calls:
            seen = []
            for loss in (medloss.CombinedLoss(order), lambda *a, **k: sum(term(*a, **k) for term in terms)):
                logits = LOGITS.clone().requires_grad_()
                value = loss(logits, target, **given)
                seen.append((value.detach(), *torch.autograd.grad(value, logits)))
            torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-8)
    assert len(walks) == 8


def test_terms_that_read_the_target_otherwise_keep_their_values() -> None:
    soft = torch.rand(LOGITS.shape, generator=torch.Generator().manual_seed(1))
    common = {"sigmoid": True}
    terms = [
        medloss.DiceLoss(soft_label=True, **common),
        medloss.DiceLoss(**common),
        medloss.BinaryCrossEntropyLoss(label_smoothing=0.2, **common),
        medloss.BinaryCrossEntropyLoss(**common),
    ]
    for order in (terms, terms[::-1]):
        value = medloss.CombinedLoss(order)(LOGITS, soft)
        torch.testing.assert_close(value, sum(term(LOGITS, soft) for term in terms), rtol=1e-5, atol=0)


def test_a_linear_schedule_goes_from_the_given_to_the_final_weights() -> None:
    loss = medloss.CombinedLoss(
        ["dice", "focal"], weights=[1.0, 0.0], final_weights=[0.0, 2.0], schedule="linear", epochs=5, softmax=True
    )
    seen = []
    for epoch in range(7):
        loss.start_epoch(epoch)
        seen.append(loss.weights.tolist())
    assert seen == [[1.0, 0.0], [0.75, 0.5], [0.5, 1.0], [0.25, 1.5], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]


def test_a_ramp_raises_boundary_terms_next_to_the_others() -> None:
    expression = "dice+0.5*binary_cross_entropy+2*hausdorff_dt"
    loss = medloss.CombinedLoss(expression, schedule="ramp", epochs=20, softmax=True)
    seen = []
    for epoch in (0, 2, 3, 6, 10, 19):
        loss.start_epoch(epoch)
        seen.append(loss.weights.tolist())
    # From 0 at 10 % to the given weight at 50 % of the epochs.
    assert seen == [[1.0, 0.5, weight] for weight in (0.0, 0.0, 0.25, 1.0, 2.0, 2.0)]
    made = medloss.create_training_loss(expression, num_classes=3, schedule="ramp", epochs=20)
    assert made.given_weights.tolist() == [1.0, 0.5, 0.0]
    assert made.ramp == loss.ramp == (2.0, 10.0)
    by_recipe = medloss.create_training_loss("hausdorff_dt", num_classes=3, schedule="ramp", epochs=20)
    assert (by_recipe.given_weights.tolist(), by_recipe.final_weights) == ([0.0, 1.0], (1.0, 1.0))
    chosen = medloss.CombinedLoss(
        "dice+focal", weights=[1.0, 0.5], schedule="ramp", final_weights=[0.5, 1.5], ramp=(4, 8), softmax=True
    )
    for epoch, weights in ((4, [1.0, 0.5]), (5, [0.875, 0.75]), (8, [0.5, 1.5]), (50, [0.5, 1.5])):
        chosen.start_epoch(epoch)
        assert chosen.weights.tolist() == weights


def test_a_term_of_weight_zero_is_not_called() -> None:
    class Counted(medloss.HausdorffDTLoss):
        calls = 0

        def forward(self, *args: Any, **keywords: Any) -> torch.Tensor:
            self.calls += 1
            return super().forward(*args, **keywords)

    counted = Counted(softmax=True)
    dice = medloss.DiceLoss(softmax=True)
    loss = medloss.CombinedLoss([counted, dice], schedule="ramp", ramp=(1, 2))
    assert torch.equal(loss(LOGITS, LABEL), dice(LOGITS, LABEL)) and counted.calls == 0
    loss.start_epoch(2)
    value = loss(LOGITS, LABEL)
    assert counted.calls == 1
    assert torch.isclose(value, dice(LOGITS, LABEL) + medloss.HausdorffDTLoss(softmax=True)(LOGITS, LABEL))
    # A state says it, too, before the next epoch begins.
    other = medloss.CombinedLoss([Counted(softmax=True), dice], schedule="ramp", ramp=(1, 2))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(LOGITS, LABEL), value)
    loss.start_epoch(0)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(LOGITS, LABEL), dice(LOGITS, LABEL))


def test_what_is_trained_in_a_losss_name() -> None:
    assert trained_as("hausdorff_er") == "hausdorff_er+dice, balanced"
    assert trained_as("0.5*hausdorff_er") == "0.5*hausdorff_er+0.5*dice, balanced"
    assert trained_as("hausdorff_er+dice") == "hausdorff_er+dice"
    assert trained_as("dice+binary_cross_entropy+hausdorff_dt", "ramp").endswith("+hausdorff_dt, ramp")
    assert trained_as("monai.losses.DiceLoss") == "monai.losses.DiceLoss"
    assert [has_boundary_term(spec) for spec in ("hausdorff_dt", "shape_aware", "dice+shape_aware", "dice+focal")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert Recipe(published=True).origin == "published recipe"
    assert {entry.recipe.origin for entry in medloss.LOSSES.values()} == {"our recipe"}


@pytest.mark.parametrize(
    ("spec", "schedule", "clip"),
    [
        ("hausdorff_er", None, 1.0),
        ("dice+hausdorff_er", "balanced", 1.0),
        ("hausdorff_er", "constant", None),
        ("dice+hausdorff_er", None, None),
        ("hausdorff_dt", None, None),
        ("dice", None, None),
        ("monai.losses.DiceLoss", None, None),
    ],
)
def test_the_gradients_that_a_recipe_clips(spec: str, schedule: str | None, clip: float | None) -> None:
    assert recipe_clip(spec, schedule) == clip


@pytest.mark.parametrize(
    ("spec", "schedule", "message"),
    [
        ("dice", "ramp", r"schedule: got 'ramp' for 'dice', which is no sum; expected one such as dice\+binary"),
        ("dice+focal", "ramp", "'ramp' raises boundary-based terms next to others, and no term is boundary-based"),
        ("hausdorff_dt+hausdorff_er", "ramp", "next to others, and every term is boundary-based"),
        ("dice+hausdorff_dt", "linear", "schedule: got 'linear'; expected one of constant, ramp, balanced"),
        ({"_target_": "medloss.DiceLoss"}, "ramp", "a mapping contains all of its arguments"),
    ],
)
def test_schedules_that_make_no_sense(spec: Any, schedule: str, message: str) -> None:
    with pytest.raises(medloss.InputError, match=message) as refusal:
        medloss.create_training_loss(spec, num_classes=3, schedule=schedule, epochs=20)
    assert "\n" not in str(refusal.value)


def test_a_weight_before_a_loss_with_a_recipe_weights_all_of_it() -> None:
    plain, half = (medloss.create_training_loss(f"{w}hausdorff_dt", num_classes=3) for w in ("", "0.5*"))
    assert torch.isclose(half(LOGITS, LABEL), 0.5 * plain(LOGITS, LABEL))


def test_wrapped_a_schedule_goes_on_too() -> None:
    loss = medloss.create_training_loss("hausdorff_dt", num_classes=3)
    wrapped = medloss.DeepSupervision(medloss.FixedSpacing(loss, (1.0,) * (LOGITS.ndim - 2)))
    wrapped(TRAINED, LABEL)
    wrapped.start_epoch(1)
    assert bool(loss.settled)
    medloss.DeepSupervision(medloss.DiceLoss(softmax=True)).start_epoch(1)  # one without weights has no use for it


def test_the_epoch_reaches_sums_inside_sums() -> None:
    inner = medloss.CombinedLoss("dice+hausdorff_dt", schedule="ramp", ramp=(0, 1), softmax=True)
    outer = medloss.CombinedLoss([inner, "focal"], softmax=True)
    assert inner.weights.tolist() == [1.0, 0.0]
    outer.start_epoch(1)
    assert inner.weights.tolist() == [1.0, 1.0]


def test_unreduced_terms_of_different_shapes_are_refused() -> None:
    loss = medloss.CombinedLoss("focal+dice", softmax=True, reduction="none")
    with pytest.raises(
        medloss.InputError, match=r"reduction: the terms' values have the shapes .2, 1, 12, 12, 12. and"
    ):
        loss(LOGITS, LABEL)


def test_a_balanced_schedule_makes_both_terms_weigh_the_same() -> None:
    loss = medloss.create_training_loss("hausdorff_dt", num_classes=3)
    assert isinstance(loss, medloss.CombinedLoss)
    hausdorff, dice = (part(TRAINED, LABEL) for part in loss.losses)
    # In the first epoch by what has been seen so far, ...
    assert torch.isclose(loss(TRAINED, LABEL), 2 * dice)
    loss(3 * TRAINED, LABEL)
    loss.start_epoch(1)
    # ... later by the means of the epoch before, and by nothing else.
    parts = torch.stack([torch.stack([part(z, LABEL) for z in (TRAINED, 3 * TRAINED)]).mean() for part in loss.losses])
    assert torch.isclose(loss.weights[0].float(), parts[1] / parts[0])
    assert loss.weights[1] == 1
    value = loss(TRAINED, LABEL)
    assert torch.isclose(value, parts[1] / parts[0] * hausdorff + dice)
    before = copy.deepcopy(loss.state_dict())
    with torch.no_grad():
        loss(5 * TRAINED, LABEL)
    loss(5 * LOGITS, LABEL)  # a validation loop may run only its network under `no_grad`
    loss.eval()
    loss(5 * TRAINED, LABEL)
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())
    loss.train()
    loss(2 * TRAINED, LABEL)
    loss.start_epoch(2)
    parts = torch.stack([torch.stack([part(z, LABEL) for z in (TRAINED, 2 * TRAINED)]).mean() for part in loss.losses])
    assert torch.isclose(loss.weights[0].float(), parts[1] / parts[0])


@pytest.mark.parametrize(
    ("expression", "anchor"),
    [
        ("hausdorff_dt+dice", 1),
        ("dice+hausdorff_dt", 0),
        ("hausdorff_er+binary_cross_entropy+tversky", 2),
        ("shape_aware+focal+combo", 1),
        ("hausdorff_dt+monai.losses.DiceLoss", 1),
        ("hausdorff_dt+shape_aware", 0),
    ],
)
def test_a_balanced_sum_is_anchored_on_its_bounded_term(expression: str, anchor: int) -> None:
    loss = medloss.CombinedLoss(expression, schedule="balanced", softmax=True)
    assert loss.anchor == anchor
    wrapped = [medloss.FixedSpacing(term, (1.0,) * 3) for term in loss.losses]
    assert medloss.CombinedLoss(wrapped, schedule="balanced").anchor == anchor


@pytest.mark.parametrize("expression", ["hausdorff_dt+dice", "dice+hausdorff_dt"])
def test_a_balanced_sums_scale_stays_whatever_the_order(expression: str) -> None:
    """Anchored on the Hausdorff term, the sum would fall as that does: by more than a hundred here."""
    loss = medloss.CombinedLoss(expression, schedule="balanced", sigmoid=True)
    label = torch.zeros(2, 1, 24, 24)
    label[0, :, 4:14, 6:20] = 1
    label[1, :, 10:20, 3:9] = 1
    logits = torch.nn.Parameter(torch.randn(label.shape, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([logits], 0.1)
    place = [type(term).__name__ for term in loss.losses].index("DiceLoss")
    dice, hausdorff, shares, moved = [], [], [], []
    for epoch in range(12):
        loss.start_epoch(epoch)
        for _ in range(6):
            before = logits.detach().clone()
            value = loss(logits, label)
            parts = [part(logits, label).item() for part in loss.losses]
            dice.append(parts[place])
            hausdorff.append(parts[1 - place])
            shares.append(value.item() / parts[place])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            moved.append((logits.detach() - before).norm().item())
    assert hausdorff[-1] < hausdorff[0] / 100 and dice[-1] < dice[0] / 5
    # Twice Dice, but for what the terms' ratio changes within an epoch.
    assert max(shares) < 4 and min(shares) >= 1
    assert min(moved) > 0.1 * moved[0]


def test_a_batch_with_errors_does_not_outweigh_an_epoch_without() -> None:
    """No error below 0.7 survives the first erosion: the term's mean, and so its weight, is that of few batches."""
    loss = medloss.CombinedLoss("hausdorff_er+dice", schedule="balanced", sigmoid=True)
    label = torch.zeros(1, 1, 24, 24)
    label[..., 4:20, 4:20] = 1
    nearly, wrong = torch.full_like(label, -0.9, requires_grad=True), torch.full_like(label, -8.0, requires_grad=True)
    for _ in range(8):
        loss(nearly.index_fill(3, torch.arange(4, 6), -2.0), label)
    loss.start_epoch(1)
    hausdorff, dice = (part(wrong, label).item() for part in loss.losses)
    assert loss.weights[0] * hausdorff > 200 * dice
    assert loss(wrong, label).item() == pytest.approx(101 * dice, rel=1e-5)
    loss.eval()
    assert loss(wrong, label).item() > 200 * dice  # what is measured is the sum as it is weighted


def test_a_schedules_state_is_saved_and_restored() -> None:
    loss = medloss.create_training_loss("hausdorff_dt", num_classes=3)
    loss(TRAINED, LABEL)
    loss.start_epoch(1)
    loss(2 * TRAINED, LABEL)
    other = medloss.create_training_loss("hausdorff_dt", num_classes=3)
    other.load_state_dict(loss.state_dict())
    for each in (loss, other):
        each.start_epoch(2)
    assert torch.equal(loss(TRAINED, LABEL), other(TRAINED, LABEL))


def test_terms_that_are_zero_keep_their_weight() -> None:
    loss = medloss.CombinedLoss(["hausdorff_er", "dice"], schedule="balanced", softmax=True)
    value = loss(0.01 * TRAINED, LABEL)  # no error survives the first erosion
    loss.start_epoch(1)
    assert torch.isfinite(value)
    assert loss.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": "dice+focal", "schedule": "cosine"}, "schedule: got 'cosine'"),
        ({"losses": "dice+focal", "weights": [1.0]}, "weights: got .* expected 2 finite numbers"),
        ({"losses": "dice+focal", "schedule": "linear"}, "'linear' needs final_weights"),
        ({"losses": "dice+hausdorff_dt", "schedule": "ramp"}, "'ramp' needs epochs >= 1, or ramp="),
        ({"losses": "dice+hausdorff_dt", "schedule": "ramp", "ramp": (5, 5)}, r"ramp: got \(5, 5\); expected epochs"),
        ({"losses": "dice+hausdorff_dt", "schedule": "ramp", "ramp": (5,)}, r"ramp: got \(5,\); expected epochs"),
        ({"losses": "dice+focal", "weights": [1.0, math.inf]}, "weights: got .* expected 2 finite numbers"),
        ({"losses": "dice+fokal"}, "no loss 'fokal'; did you mean 'focal'"),
    ],
)
def test_bad_sums_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        medloss.CombinedLoss(**arguments)


def test_losses_from_elsewhere_take_part() -> None:
    for spec in ("monai.losses.GeneralizedDiceLoss", "monai.losses.FocalLoss", "0.5*monai.losses.DiceLoss+focal"):
        loss = medloss.create_training_loss(spec, num_classes=3)
        value = medloss.call_loss(loss, LOGITS, LABEL, spacing=(3.0, 1.0, 1.0))
        assert torch.isfinite(value)
    ours = medloss.create_training_loss(
        {"_target_": "medloss.TverskyLoss", "softmax": True, "alpha": 0.1}, num_classes=3
    )
    assert isinstance(ours, medloss.TverskyLoss)
    assert ours.alpha == 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_checked_though_the_pass_is_shared(classes: int) -> None:
    """One loss prepares for all that share its pass; each may have other classes, and so another number of weights."""
    dice = medloss.DiceLoss(softmax=True, include_background=False, weight=[0.5, 2.0, 1.0][:classes])
    loss = medloss.CombinedLoss([dice, medloss.BinaryCrossEntropyLoss(softmax=True)])
    label = LABEL.clamp(max=classes - 1)
    with pytest.raises(medloss.InputError, match=f"weight: got {classes} numbers; expected 1 or {classes - 1}"):
        loss(LOGITS[:, :classes], label)


def test_a_mapping_says_all_of_its_arguments() -> None:
    mapping = {"_target_": "medloss.DiceLoss", "softmax": True}
    for more in ({"sigmoid": True}, {"common": {"batch": True}}, {"terms": {"dice": {"batch": True}}}):
        with pytest.raises(medloss.InputError, match="a mapping contains all of its arguments"):
            medloss.create_training_loss(mapping, num_classes=3, **more)


def test_recipes_and_arguments() -> None:
    dice = medloss.create_training_loss("dice", num_classes=3, arguments={"smooth_nr": 0.5})
    assert isinstance(dice, medloss.DiceLoss)
    assert (dice.smooth_nr, dice.include_background, dice.softmax) == (0.5, True, True)
    karimi = medloss.create_training_loss("hausdorff_dt", num_classes=3, arguments={"alpha": 1.0})
    assert isinstance(karimi, medloss.CombinedLoss)
    assert karimi.losses[0].alpha == 1.0
    binary = medloss.create_training_loss("focal", num_classes=1)
    assert binary.sigmoid
    with pytest.raises(medloss.InputError, match=r"arguments .* were given for the sum"):
        medloss.create_training_loss("dice+focal", num_classes=3, arguments={"gamma": 1.0})


def test_arguments_of_all_terms_and_of_single_ones() -> None:
    loss = medloss.create_training_loss(
        "dice+monai.losses.DiceLoss+focal", num_classes=3, common={"batch": True, "validate": False},
        terms={"dice": {"include_background": False, "batch": False}},
    )  # fmt: skip
    dice, monai, focal = loss.losses
    assert (dice.include_background, dice.batch, dice.validate, dice.softmax) == (False, False, False, True)
    assert (monai.batch, monai.include_background) == (True, True)
    assert (focal.include_background, focal.batch, focal.validate) == (True, True, False)
    karimi = medloss.create_training_loss(
        "hausdorff_dt", num_classes=3, arguments={"alpha": 1.0}, terms={"dice": {"smooth_nr": 1e-5}}
    )
    assert (karimi.losses[0].alpha, karimi.losses[1].smooth_nr, karimi.schedule) == (1.0, 1e-5, "balanced")


def test_several_channels_may_each_be_a_yes_or_no() -> None:
    for spec in ("focal", "dice+binary_cross_entropy", "monai.losses.DiceLoss"):
        made = medloss.create_training_loss(spec, num_classes=3, sigmoid=True)
        for loss in getattr(made, "losses", [made]):
            assert (loss.sigmoid, loss.softmax, loss.to_onehot_y) == (True, False, False)
    assert medloss.create_training_loss("focal", num_classes=3, sigmoid=True).alpha == 0.25


def test_losses_work_as_monai_config_targets() -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser(
        {
            "loss": {"_target_": "medloss.FocalTverskyLoss", "softmax": True, "to_onehot_y": True, "alpha": 0.4},
            "sum": {"_target_": "medloss.CombinedLoss", "losses": "dice+focal", "softmax": True},
        }
    )
    loss, total = parser.get_parsed_content("loss"), parser.get_parsed_content("sum")
    assert isinstance(loss, medloss.FocalTverskyLoss)
    assert torch.isfinite(loss(LOGITS, LABEL) + total(LOGITS, LABEL))
