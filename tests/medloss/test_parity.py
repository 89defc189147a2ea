"""The same loss elsewhere: MONAI's and torch's values, where the hyper-parameters agree."""

import itertools
from typing import Any

import pytest
import torch
from loss_inputs import assert_close, make, mask_like, sample
from monai import losses as monai_losses

import medloss

PAIRS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dice", {"smooth_nr": 1e-5, "smooth_dr": 1e-5}, "DiceLoss", {}),
    ("dice", {}, "DiceLoss", {"smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("dice", {"squared_pred": True}, "DiceLoss", {"squared_pred": True, "smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("dice", {"jaccard": True}, "DiceLoss", {"jaccard": True, "smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("tversky", {}, "TverskyLoss", {"alpha": 0.3, "beta": 0.7, "smooth_nr": 1.0, "smooth_dr": 1.0}),
]


SMOOTH = {"smooth_nr": 1.0, "smooth_dr": 1.0}
SOFT: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dice", {}, "DiceLoss", {}),
    ("dice", {"jaccard": True}, "DiceLoss", {"jaccard": True}),
    ("tversky", {}, "TverskyLoss", {"alpha": 0.3, "beta": 0.7}),
]


@pytest.mark.parametrize(("ours", "our_arguments", "theirs", "their_arguments"), SOFT)
def test_soft_labels_equal_monais(
    ours: str, our_arguments: dict[str, Any], theirs: str, their_arguments: dict[str, Any]
) -> None:
    drawn = sample("sigmoid", 3)
    soft = torch.rand(drawn.maps.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits = drawn.logits.clone().requires_grad_()
    losses = [
        medloss.create_loss(ours, sigmoid=True, soft_label=True, **our_arguments),
        getattr(monai_losses, theirs)(sigmoid=True, soft_label=True, **SMOOTH, **their_arguments),
    ]
    values = [loss(logits, soft) for loss in losses]
    assert_close(values[0], values[1])
    assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))


@pytest.mark.parametrize(("ours", "our_arguments", "theirs", "their_arguments"), PAIRS)
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_region_losses_equal_monais(
    ours: str, our_arguments: dict[str, Any], theirs: str, their_arguments: dict[str, Any], mode: str
) -> None:
    for dims, background, reduction, batch in itertools.product(
        (2, 3), (True, False), ("mean", "sum", "none"), (True, False)
    ):
        drawn = sample(mode, dims)
        common = {mode: True, "include_background": background, "reduction": reduction, "batch": batch}
        mine = medloss.create_loss(ours, **common, **our_arguments)(drawn.logits, drawn.index)
        monai = getattr(monai_losses, theirs)(to_onehot_y=True, **common, **their_arguments)(drawn.logits, drawn.index)
        assert_close(mine.flatten(), monai.flatten())


@pytest.mark.filterwarnings("ignore:.*alpha. ignored when using softmax")
def test_focal_equals_monais_save_for_its_division_by_the_classes() -> None:
    drawn = sample("softmax", 3)
    for gamma, alpha in ((2.0, None), (0.0, None), (1.5, 0.3)):
        monai = monai_losses.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, alpha=alpha)
        ours = medloss.FocalLoss(softmax=True, gamma=gamma, alpha=alpha)
        assert_close(ours(drawn.logits, drawn.index), 3 * monai(drawn.logits, drawn.index), rtol=1e-5)
        monai = monai_losses.FocalLoss(to_onehot_y=True, gamma=gamma, alpha=alpha)
        ours = medloss.FocalLoss(sigmoid=True, gamma=gamma, alpha=alpha)
        assert_close(ours(drawn.logits, drawn.index), monai(drawn.logits, drawn.index), rtol=1e-5)


def test_hausdorff_equals_monais_at_unit_spacing() -> None:
    for dims in (2, 3):
        drawn = sample("sigmoid", dims)
        for alpha in (1.0, 2.0):
            monai = monai_losses.HausdorffDTLoss(sigmoid=True, alpha=alpha, include_background=True)
            ours = medloss.HausdorffDTLoss(sigmoid=True, alpha=alpha)
            assert_close(ours(drawn.logits, drawn.maps), monai(drawn.logits, drawn.maps), rtol=1e-5)


def test_cross_entropies_equal_torchs() -> None:
    for dims in (2, 3):
        drawn = sample("softmax", dims)
        ours = medloss.BinaryCrossEntropyLoss(softmax=True)(drawn.logits, drawn.index)
        assert_close(ours, torch.nn.functional.cross_entropy(drawn.logits, drawn.index[:, 0]))
        ours = medloss.BinaryCrossEntropyLoss(sigmoid=True)(drawn.logits, drawn.maps)
        assert_close(ours, torch.nn.functional.binary_cross_entropy_with_logits(drawn.logits, drawn.maps))
        probabilities = torch.sigmoid(drawn.logits)
        probabilities[0, 0].fill_(0.0)
        ours = medloss.BinaryCrossEntropyLoss()(probabilities, drawn.maps)
        assert_close(ours, torch.nn.functional.binary_cross_entropy(probabilities, drawn.maps))
        ours = medloss.WeightedCrossEntropyLoss(sigmoid=True, pos_weight=3.0)(drawn.logits, drawn.maps)
        weight = torch.tensor(3.0, dtype=torch.float64)
        theirs = torch.nn.functional.binary_cross_entropy_with_logits(drawn.logits, drawn.maps, pos_weight=weight)
        assert_close(ours, theirs)


def test_label_smoothing_equals_torchs() -> None:
    drawn = sample("softmax", 3)
    ours = medloss.BinaryCrossEntropyLoss(softmax=True, label_smoothing=0.1)(drawn.logits, drawn.index)
    assert_close(ours, torch.nn.functional.cross_entropy(drawn.logits, drawn.index[:, 0], label_smoothing=0.1))
    weight = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    theirs = torch.nn.functional.cross_entropy(
        drawn.logits, drawn.index[:, 0], weight, label_smoothing=0.1, reduction="sum"
    )
    ours = medloss.WeightedCrossEntropyLoss(softmax=True, label_smoothing=0.1, reduction="sum")
    assert_close(ours(drawn.logits, drawn.index), theirs)


def test_gamma_zero_is_cross_entropy_exactly() -> None:
    for mode in ("softmax", "sigmoid"):
        drawn = sample(mode, 3)
        focal = medloss.FocalLoss(gamma=0.0, alpha=None, **{mode: True})(drawn.logits, drawn.index)
        assert torch.equal(focal, medloss.BinaryCrossEntropyLoss(**{mode: True})(drawn.logits, drawn.index))


def test_calls_by_monais_keywords() -> None:
    drawn = sample("softmax", 3)
    for name in medloss.LOSSES:
        loss = make(name, "softmax")
        # Skeletons that are not given need scikit-image.
        keywords: dict[str, Any] = {"spacing": drawn.spacing, "skeleton_map": drawn.maps}
        value = loss(drawn.logits, drawn.index, **keywords)
        assert torch.equal(loss(input=drawn.logits, target=drawn.index, **keywords), value)
        assert torch.equal(loss(logits=drawn.logits, target=drawn.index, **keywords), value)
    dice = make("dice", "softmax")
    wrappers = (
        medloss.CombinedLoss([dice, make("focal", "softmax")]),
        medloss.DeepSupervision(dice),
        medloss.FixedSpacing(dice, drawn.spacing),
    )
    for loss in (dice, *wrappers):
        assert torch.equal(loss(input=drawn.logits, target=drawn.index), loss(drawn.logits, drawn.index))
        with pytest.raises(medloss.InputError, match="input: got logits too; expected one of them"):
            loss(drawn.logits, drawn.index, input=drawn.logits)
        with pytest.raises(medloss.InputError, match="logits: got None"):
            loss(target=drawn.index)
        with pytest.raises(medloss.InputError, match="target: got None"):
            loss(drawn.logits)


def test_what_the_table_says_of_monai() -> None:
    # docs/parity.md: a difference that MONAI removes is no longer one.
    drawn = sample("softmax", 2)
    logits, index = drawn.logits, drawn.index
    one, yes = logits[:, :1], (index > 0).long()
    softmax: dict[str, Any] = {"to_onehot_y": True, "softmax": True, "reduction": "none"}
    assert monai_losses.TverskyLoss(**softmax)(logits, index).shape == (2, 3)
    assert medloss.TverskyLoss(**softmax)(logits, index).shape == (2, 3, 1, 1)
    focal: dict[str, Any] = {"to_onehot_y": True, "use_softmax": True}
    assert monai_losses.FocalLoss(reduction="none", **focal)(logits, index).shape == (2, 3, *index.shape[2:])
    assert medloss.FocalLoss(softmax=True, reduction="none")(logits, index).shape == index.shape
    without = {"include_background": False, "alpha": 0.3}
    with pytest.warns(UserWarning, match="scalar `alpha` ignored when using softmax"):
        ignored = monai_losses.FocalLoss(**focal, **without)(logits, index)
    assert_close(ignored, monai_losses.FocalLoss(include_background=False, **focal)(logits, index))
    ours = [medloss.FocalLoss(softmax=True, include_background=False, alpha=a)(logits, index) for a in (0.3, None)]
    assert_close(ours[0], 0.3 * ours[1])
    ones = [medloss.DiceLoss(sigmoid=True, weight=weight)(one, yes) for weight in (None, [5.0])]
    assert_close(ones[1], 5 * ones[0])
    theirs = [monai_losses.DiceLoss(sigmoid=True, weight=weight)(one, yes) for weight in (None, [5.0])]
    assert_close(theirs[1], theirs[0])
    assert_close(
        monai_losses.FocalLoss()(logits, drawn.maps), medloss.FocalLoss(sigmoid=True, alpha=None)(logits, index)
    )


def _monai_sum(mode: str, *losses: Any, weights: Any = None) -> Any:
    made = [medloss.create_loss(loss, **{mode: True}) if isinstance(loss, str) else loss for loss in losses]
    return medloss.CombinedLoss(made, weights=weights)


#: MONAI's sums of losses and other classes, ours, the activation, and whether the target is an index map.
SUMS: dict[str, tuple[Any, Any, str, bool]] = {
    "DiceCELoss, softmax": (
        monai_losses.DiceCELoss(softmax=True, to_onehot_y=True, lambda_ce=0.5, label_smoothing=0.1),
        _monai_sum(
            "softmax",
            "dice@monai",
            medloss.BinaryCrossEntropyLoss(softmax=True, label_smoothing=0.1),
            weights=[1, 0.5],
        ),
        "softmax",
        True,
    ),
    # Its cross entropy of several channels has a softmax all the same.
    "DiceCELoss, sigmoid": (
        monai_losses.DiceCELoss(sigmoid=True),
        _monai_sum("sigmoid", "dice@monai", medloss.BinaryCrossEntropyLoss(softmax=True)),
        "softmax",
        False,
    ),
    "DiceFocalLoss, sigmoid": (
        monai_losses.DiceFocalLoss(sigmoid=True, lambda_dice=0.3),
        _monai_sum("sigmoid", "dice@monai", "focal@monai", weights=[0.3, 1]),
        "sigmoid",
        False,
    ),
    # Its focal part has a sigmoid all the same.
    "DiceFocalLoss, softmax": (
        monai_losses.DiceFocalLoss(softmax=True, to_onehot_y=True),
        _monai_sum("softmax", "dice@monai", medloss.FocalLoss.preset("monai", sigmoid=True)),
        "softmax",
        True,
    ),
    "GeneralizedDiceFocalLoss": (
        monai_losses.GeneralizedDiceFocalLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0),
        _monai_sum("sigmoid", medloss.GeneralizedDiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0), "focal@monai"),
        "sigmoid",
        False,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_sums_equal_monais(case: str) -> None:
    monai, ours, mode, indexed = SUMS[case]
    drawn = sample(mode, 3)
    logits = drawn.logits.clone().requires_grad_()
    values = [loss(logits, drawn.index if indexed else drawn.maps) for loss in (ours, monai)]
    assert_close(*values, rtol=1e-5)
    assert_close(*(torch.autograd.grad(value, logits)[0] for value in values), rtol=1e-4, atol=1e-9)


def test_dice_and_cldice_of_one_class_equal_monais() -> None:
    drawn = sample("sigmoid", 3, channels=1)
    monai = monai_losses.SoftDiceclDiceLoss(sigmoid=True, alpha=0.3, smooth=1e-12)
    ours = medloss.CombinedLoss("0.7*dice+0.3*cldice", sigmoid=True)
    assert_close(ours(drawn.logits, drawn.index), monai(drawn.logits, drawn.maps), rtol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_generalized_dices_soft_labels_equal_monais(batch: bool) -> None:
    drawn = sample("sigmoid", 3)
    soft = torch.rand(drawn.maps.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options: dict[str, Any] = {"sigmoid": True, "soft_label": True, "batch": batch, "smooth_nr": 0.0, "smooth_dr": 0.0}
    monai = monai_losses.GeneralizedDiceLoss(**options)
    # Its weights are in float32.
    assert_close(medloss.GeneralizedDiceLoss(**options)(drawn.logits, soft), monai(drawn.logits, soft), rtol=1e-5)


def test_masked_dice_equals_monais() -> None:
    drawn = sample("sigmoid", 3)
    mask = mask_like(drawn.index)
    monai = monai_losses.MaskedDiceLoss(sigmoid=True)(drawn.logits, drawn.maps, mask)
    assert_close(medloss.DiceLoss.preset("monai", sigmoid=True)(drawn.logits, drawn.index, mask=mask), monai)
    # Its other losses mask the logits, before the activation: p is 0.5 there.
    masked = monai_losses.MaskedLoss(monai_losses.DiceLoss(sigmoid=True))(drawn.logits, drawn.maps, mask)
    assert abs(masked - monai) > 1e-3


def test_unified_focal_has_monais_parts_of_two_classes() -> None:
    drawn = sample("softmax", 3, channels=2)
    p = torch.softmax(drawn.logits, 1)
    for alpha, factor in ((1.0, 2.0), (0.0, 1.0)):  # MONAI halves the cross entropy
        monai = factor * monai_losses.AsymmetricUnifiedFocalLoss(weight=alpha)(p, drawn.maps)
        ours = medloss.UnifiedFocalLoss.preset("monai", softmax=True, alpha=alpha)(drawn.logits, drawn.index)
        assert_close(ours, monai, rtol=1e-5)


def test_deep_supervision_equals_monais_by_its_weights() -> None:
    drawn = sample("softmax", 3)
    outputs = [drawn.logits.float(), torch.nn.functional.avg_pool3d(drawn.logits.float(), 2)]
    monai = monai_losses.DeepSupervisionLoss(monai_losses.DiceLoss(softmax=True, to_onehot_y=True))
    ours = medloss.DeepSupervision(medloss.DiceLoss.preset("monai", softmax=True), weights=(1.0, 0.5))
    assert_close(ours(outputs, drawn.index), monai(outputs, drawn.index.float()), rtol=1e-5)


def test_monais_logarithm_is_that_of_the_mean() -> None:
    drawn = sample("sigmoid", 3)
    monai = monai_losses.LogHausdorffDTLoss(sigmoid=True)(drawn.logits, drawn.maps)
    hausdorff = medloss.HausdorffDTLoss.preset("monai", sigmoid=True)(drawn.logits, drawn.index)
    assert_close(hausdorff.log1p(), monai, rtol=1e-5)


def test_masks_equal_monais_ignored_labels() -> None:
    drawn = sample("softmax", 3)
    index = drawn.index.clone()
    index[:, :, :2] = 255
    ours = medloss.DiceLoss(softmax=True, ignore_index=255)(drawn.logits, index)
    monai = monai_losses.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=255, smooth_nr=1.0, smooth_dr=1.0)(
        drawn.logits, index
    )
    assert_close(ours, monai)


#: Losses that `torch.jit.trace` cannot trace, and the activations with which that is so.
UNTRACED = {
    "instance_wise": ("softmax", "sigmoid"),
    **dict.fromkeys(("hausdorff_dt", "log_hausdorff_dt", "shape_aware"), ("softmax",)),
    "generalized_wasserstein_dice": ("sigmoid",),  # it has a softmax only
}


@pytest.mark.parametrize("name", medloss.LOSSES)
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
@pytest.mark.filterwarnings("ignore")  # checks of shapes become constants; torch deprecates TorchScript
def test_traced_losses_equal_plain_ones(name: str, mode: str) -> None:
    if mode in UNTRACED.get(name, ()):
        pytest.skip("it cannot be traced, as docs/parity.md says")
    loss = make(name, mode)
    traced_at, called_with = sample(mode, 3), sample(mode, 3, seed=1)
    extra = {"skeleton_map": called_with.maps.float()} if name == "skeleton_recall" else {}
    example = traced_at.logits.float().requires_grad_(), traced_at.index if mode == "softmax" else traced_at.maps
    results = []
    for function in (torch.jit.trace(lambda z, y: loss(z, y, **extra), example, check_trace=False), loss):
        logits = called_with.logits.float().requires_grad_()
        target = called_with.index if mode == "softmax" else called_with.maps
        value = function(logits, target, **({} if function is not loss else extra))
        results.append((value.detach(), *torch.autograd.grad(value, logits)))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-7)
