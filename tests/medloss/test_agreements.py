"""Where two losses are one, and where a loss departs from other code on purpose."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from loss_inputs import assert_close, make, mask_like, sample
from monai import losses as monai_losses
from references import REFERENCES, directional_derivative
from torch import Tensor

import medloss
import medloss.maps
from medloss.distance import signed_distance_map
from medloss.distribution import topk_cross_entropy
from medloss.wrappers.instance_wise import _OneAgainstRest, _places_in


def value_and_gradient(loss: Any, logits: Tensor, target: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, **keywords)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


def assert_same(one: Any, other: Any, logits: Tensor, target: Tensor, rtol: float = 1e-9, **keywords: Any) -> None:
    """Equal values and gradients."""
    values, others = (value_and_gradient(loss, logits, target, **keywords) for loss in (one, other))
    assert_close(values[0].flatten(), others[0].flatten(), rtol=rtol)
    assert_close(values[1], others[1], rtol=rtol, atol=1e-12)


def test_generalized_dice_of_one_channel_is_dice() -> None:
    drawn = sample("sigmoid", 3, channels=1)
    assert_same(make("generalized_dice", "sigmoid"), make("dice", "sigmoid"), drawn.logits, drawn.index)


@pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
@pytest.mark.parametrize("batch", [False, True])
def test_generalized_dice_without_smoothing_is_monais(w_type: str, batch: bool) -> None:
    drawn = sample("softmax", 3)
    common: dict[str, Any] = {"smooth_nr": 0.0, "smooth_dr": 0.0, "softmax": True, "batch": batch}
    monai = monai_losses.GeneralizedDiceLoss(to_onehot_y=True, w_type=w_type, **common)
    ours = make("generalized_dice", "softmax", w_type=w_type, smooth_nr=0.0, smooth_dr=0.0, batch=batch)
    for index in (drawn.index, torch.where(drawn.index == 2, 0, drawn.index)):  # in the second, a class is absent
        assert_close(ours(drawn.logits, index), monai(drawn.logits, index))


def test_generalized_dices_weights_do_not_cancel_over_a_batch() -> None:
    drawn = sample("softmax", 3)
    values = {
        w_type: make("generalized_dice", "softmax", w_type=w_type, batch=True)(drawn.logits, drawn.index).item()
        for w_type in ("square", "simple", "uniform")
    }
    assert len(set(values.values())) == 3


def test_generalized_dices_smoothing_does_not_swamp_large_classes() -> None:
    # 1/n^2 of 10^5 voxels is 10^-10: next to it MONAI's smoothing of 1e-5 is all that is left.
    label = torch.ones(1, 1, 320, 320)
    wrong = torch.full_like(label, -3.0)
    assert make("generalized_dice", "sigmoid")(wrong, label) > 0.9


def test_generalized_dice_of_a_patch_of_background_teaches_something() -> None:
    logits, label = torch.zeros(1, 3, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.long)
    _, gradient = value_and_gradient(make("generalized_dice", "softmax", include_background=False), logits, label)
    assert (gradient[:, 1:] > 0).all()


def test_matthews_correlation_of_hard_predictions_is_one_minus_pearsons() -> None:
    generator = np.random.default_rng(0)
    y, q = generator.integers(0, 2, (2, 1, 1, 9, 8)).astype(float)
    value = make("matthews_correlation", "probabilities", smooth_dr=1e-12)(torch.tensor(q), torch.tensor(y))
    assert value.item() == pytest.approx(1 - np.corrcoef(y.ravel(), q.ravel())[0, 1], rel=1e-9)


@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_matthews_correlation_is_monais_where_both_sides_are_there(mode: str) -> None:
    drawn = sample(mode, 3)
    monai = monai_losses.MCCLoss(to_onehot_y=True, **{mode: True})
    assert_close(make("matthews_correlation", mode)(drawn.logits, drawn.index), monai(drawn.logits, drawn.index))


@pytest.mark.parametrize("full", [False, True])
def test_matthews_correlation_learns_from_one_sided_references(full: bool) -> None:
    label = torch.full((1, 1, 5, 5), float(full))
    value, gradient = value_and_gradient(make("matthews_correlation", "sigmoid"), torch.zeros(1, 1, 5, 5), label)
    assert value == 0.5
    assert (gradient == (-0.01 if full else 0.01)).all()


@pytest.mark.parametrize("full", [False, True])
def test_matthews_correlation_of_one_side_is_the_weighted_share_of_errors(full: bool) -> None:
    # Sums of the same weights round differently in float32: what is full must be known exactly.
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(1, 1, 41, 41, 41, generator=generator)
    logits = torch.randn(weight.shape, generator=generator)
    label = torch.full(weight.shape, full, dtype=torch.uint8)
    p = torch.sigmoid(logits.double())
    share = ((1 - p if full else p) * weight.double()).sum() / weight.double().sum()
    value = make("matthews_correlation", "sigmoid")(logits, label, voxel_weight=weight)
    assert_close(value, share, rtol=1e-5)


def test_matthews_correlation_has_the_digits_of_large_volumes() -> None:
    # In float32 the product of four counts of 10^6 voxels overflows, and the difference of two cancels.
    label = torch.zeros(1, 1, 1200, 1200)
    label[..., :3] = 1
    logits = 6 * label.roll(1, 3) - 3
    expected = make("matthews_correlation", "sigmoid")(logits.double(), label)
    assert_close(make("matthews_correlation", "sigmoid")(logits, label), expected, rtol=1e-5)


def test_wasserstein_dice_of_two_classes_is_dice_of_the_second() -> None:
    drawn = sample("softmax", 3, channels=2)
    one = make("dice", "softmax", include_background=False)
    assert_same(make("generalized_wasserstein_dice", "softmax"), one, drawn.logits, drawn.index)


@pytest.mark.parametrize("weighting_mode", ["default", "GDL"])
def test_wasserstein_dice_is_monais(weighting_mode: str) -> None:
    drawn = sample("softmax", 3)
    common: dict[str, Any] = {"smooth_nr": 1.0, "smooth_dr": 1.0, "weighting_mode": weighting_mode}
    matrix = np.array([[0, 2, 2], [2, 0, 0.5], [2, 0.5, 0]])
    monai = monai_losses.GeneralizedWassersteinDiceLoss(matrix, **common)
    ours = make("generalized_wasserstein_dice", "softmax", dist_matrix=matrix, **common)
    assert_close(ours(drawn.logits, drawn.index), monai(drawn.logits.float(), drawn.index[:, 0]))
    for background in (True, False):
        loss = make("generalized_wasserstein_dice", "softmax", include_background=background)
        assert loss(drawn.logits, drawn.index) == make("generalized_wasserstein_dice", "softmax")(
            drawn.logits, drawn.index
        )


@pytest.mark.parametrize("kernels", [name for name in medloss.kernels.available() if name != "triton"])
@pytest.mark.parametrize("matrix", [None, ((0, 1, 1), (1, 0, 1), (1, 1, 0)), ((0, 1, 1), (1, 0, 0.4), (1, 0.4, 0))])
@pytest.mark.parametrize("weighting_mode", ["default", "GDL"])
def test_wasserstein_dice_leaves_out_voxels_of_no_class(kernels: str, matrix: Any, weighting_mode: str) -> None:
    drawn = sample("softmax", 3)
    known = mask_like(drawn.index)
    options = {"dist_matrix": matrix, "weighting_mode": weighting_mode}
    loss = make("generalized_wasserstein_dice", "softmax", **options)
    unchecked = make("generalized_wasserstein_dice", "softmax", validate=False, **options)
    with medloss.kernels.use(kernels):
        expected = value_and_gradient(loss, drawn.logits, drawn.index, mask=known)
        by_map = value_and_gradient(loss, drawn.logits, drawn.maps * known)
        by_index = value_and_gradient(unchecked, drawn.logits, torch.where(known, drawn.index, -1))
    for found in (by_map, by_index):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, atol=1e-12)


def test_topk_of_everything_is_cross_entropy() -> None:
    for mode, masked in itertools.product(("softmax", "sigmoid"), (False, True)):
        drawn = sample(mode, 3)
        mask = mask_like(drawn.index) if masked else None
        for reduction in ("mean", "sum", "none"):
            one, other = (
                make(n, mode, reduction=reduction, **a)
                for n, a in (("topk_cross_entropy", {"k": 100}), ("binary_cross_entropy", {}))
            )
            assert_same(one, other, drawn.logits, drawn.index, mask=mask)


def test_topk_chooses_of_the_voxels_that_count() -> None:
    # nnU-Net takes the worst of all voxels, ignored ones as zeros: a mean diluted by them, and NaN of n = 0.
    logits = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    label = torch.tensor([[[[1, 255, 255, 255]]]])
    value = make("topk_cross_entropy", "sigmoid", ignore_index=255)(logits, label)
    assert value == make("binary_cross_entropy", "sigmoid")(logits[..., :1], label[..., :1])
    assert value > 0


def test_topk_with_dice_is_a_sum() -> None:
    drawn = sample("softmax", 3)
    loss = medloss.create_training_loss("dice+topk_cross_entropy", num_classes=3)
    parts = [make(name, "softmax")(drawn.logits, drawn.index) for name in ("dice", "topk_cross_entropy")]
    assert_close(loss(drawn.logits, drawn.index), sum(parts))


def test_lovasz_of_hard_predictions_is_one_minus_jaccard() -> None:
    generator = np.random.default_rng(1)
    y, q = generator.integers(0, 2, (2, 1, 1, 9, 8)).astype(float)
    value = make("lovasz", "probabilities")(torch.tensor(q), torch.tensor(y))
    assert value.item() == pytest.approx(1 - (y * q).sum() / np.maximum(y, q).sum(), rel=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_lovasz_hinge_equals_its_reference(masked: bool) -> None:
    drawn = sample("sigmoid", 2)
    mask = mask_like(drawn.index) if masked else None
    for batch in (False, True):
        loss = make("lovasz", "sigmoid", hinge=True, batch=batch)
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, mask=mask)
        arguments: dict[str, Any] = {"mode": "sigmoid", "hinge": True, "batch": batch}
        arguments["mask"] = None if mask is None else mask.numpy()
        index = drawn.index.numpy()
        assert_close(value, REFERENCES["lovasz"](drawn.logits.numpy(), index, **arguments))
        direction = np.random.default_rng(0).standard_normal(drawn.logits.shape)
        derivative = directional_derivative("lovasz", drawn.logits.numpy(), direction, index, **arguments)
        assert_close((gradient.numpy() * direction).sum(), derivative)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", ["all", "present"])
def test_lovasz_of_a_batch_has_one_value_per_class_also_under_a_mask(classes: str, reduction: str) -> None:
    drawn = sample("softmax", 3)
    mask = mask_like(drawn.index)
    mask[1] = False
    options: dict[str, Any] = {"classes": classes, "batch": True, "reduction": reduction}
    value = make("lovasz", "softmax", **options)(drawn.logits, drawn.index, mask=mask)
    arguments = {"mode": "softmax", "mask": mask.numpy(), **options}
    assert_close(value, REFERENCES["lovasz"](drawn.logits.numpy(), drawn.index.numpy(), **arguments))


def test_lovasz_of_an_empty_class_teaches_its_worst_voxel() -> None:
    logits = torch.tensor([[[[1.0, 3.0, -2.0]]]])
    value, gradient = value_and_gradient(make("lovasz", "sigmoid"), logits, torch.zeros_like(logits))
    assert value == logits.sigmoid().max()
    assert gradient.flatten().ne(0).tolist() == [False, True, False]


def test_lovasz_takes_each_channel_by_itself() -> None:
    # smp's multilabel mode pools the channels, and kornia sorts class numbers.
    drawn = sample("sigmoid", 3)
    values = make("lovasz", "sigmoid", reduction="none")(drawn.logits, drawn.maps)
    for c in range(3):
        alone = make("lovasz", "sigmoid", reduction="none")(drawn.logits[:, [c]], drawn.maps[:, [c]])
        assert torch.equal(values[:, [c]], alone)


def test_lovasz_without_a_class_that_is_present_is_zero_with_a_graph() -> None:
    logits, label = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    value, gradient = value_and_gradient(make("lovasz", "softmax", include_background=False), logits, label)
    assert value == 0
    assert (gradient == 0).all()


def test_lovasz_of_floats_and_doubles_agree() -> None:
    # Floats are sorted by another method.
    drawn = sample("sigmoid", 3)
    logits = drawn.logits.float()
    logits[0, 0, 0, 0, 0], logits[0, 1, 1, 1, 1], logits[1, 1, 2, 2, 2] = 1e4, -1e4, 0.0
    for arguments in ({}, {"hinge": True}, {"batch": True}):
        loss = make("lovasz", "sigmoid", **arguments)
        value, gradient = value_and_gradient(loss, logits, drawn.index)
        expected, expected_gradient = value_and_gradient(loss, logits.double(), drawn.index)
        assert_close(value, expected, rtol=1e-5)
        assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    logits[0, 0, 1, 2, 3] = float("nan")
    assert make("lovasz", "sigmoid")(logits, drawn.index).isnan()


def test_lovasz_ties_change_no_value() -> None:
    logits = torch.zeros(1, 1, 1, 6)
    label = torch.tensor([[[[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]]]])
    values = {round(make("lovasz", "sigmoid")(logits, label[..., torch.randperm(6)]).item(), 6) for _ in range(10)}
    assert values == {0.5}


@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_unified_focal_without_focus_is_weighted_cross_entropy_and_tversky(mode: str) -> None:
    drawn = sample(mode, 3, channels=2 if mode == "softmax" else 1)
    logits = drawn.logits
    whole = make("unified_focal", mode, gamma=0.0, delta=0.7, alpha=0.4)(logits, drawn.index)
    if mode == "softmax":
        entropy = make("weighted_cross_entropy", mode, weight=[0.3, 0.7])(logits, drawn.index)
    else:
        entropy = 0.3 * make("weighted_cross_entropy", mode, pos_weight=0.7 / 0.3)(logits, drawn.index)
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    overlap = make("tversky", "softmax", alpha=0.3, beta=0.7)(logits, drawn.index)
    assert_close(whole, 0.4 * entropy + 0.6 * overlap, rtol=1e-9)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_unified_focal_of_one_channel_is_that_of_a_softmax_of_two(asymmetric: bool) -> None:
    drawn = sample("sigmoid", 3, channels=1)
    two = torch.cat([torch.zeros_like(drawn.logits), drawn.logits], 1)
    one = make("unified_focal", "sigmoid", asymmetric=asymmetric)(drawn.logits, drawn.index)
    assert_close(one, make("unified_focal", "softmax", asymmetric=asymmetric)(two, drawn.index), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_unified_focal_has_no_nan_where_a_prediction_is_certain(gamma: float, mode: str) -> None:
    label = (torch.arange(16) % 2).view(1, 1, 4, 4)
    logits = torch.where(torch.cat([label == 0, label == 1], 1), 1e4, -1e4)
    for asymmetric, signs in itertools.product((True, False), (logits, -logits, torch.cat([logits[:, 1:]] * 2, 1))):
        loss = make("unified_focal", mode, gamma=gamma, asymmetric=asymmetric)
        value, gradient = value_and_gradient(loss, signs, label)
        assert value.isfinite() and gradient.isfinite().all()


def test_boundary_is_monais_less_its_voxel_inside() -> None:
    # MONAI subtracts 1 from the distances inside, be they voxels or mm.
    drawn = sample("softmax", 3)
    p = drawn.logits.softmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai = monai_losses.BoundaryLoss(softmax=True, to_onehot_y=True, include_background=True)
        theirs = monai(drawn.logits, drawn.index)
    ours = make("boundary", "softmax")(drawn.logits, drawn.index)
    assert_close(ours, theirs - (p * drawn.maps).mean(), rtol=1e-5)


def test_boundary_from_its_minimum_is_the_product_of_error_and_distance() -> None:
    drawn = sample("softmax", 3)
    phi = signed_distance_map(drawn.maps, drawn.spacing).double()
    value, gradient = value_and_gradient(
        make("boundary", "softmax", subtract_minimum=True), drawn.logits, drawn.index, spacing=drawn.spacing
    )
    assert_close(value, ((drawn.logits.softmax(1) - drawn.maps).abs() * phi.abs()).mean(), rtol=1e-6)
    plain, same = value_and_gradient(make("boundary", "softmax"), drawn.logits, drawn.index, spacing=drawn.spacing)
    assert plain < value
    assert_close(gradient, same, rtol=1e-6, atol=1e-12)


def test_boundary_takes_the_map_of_a_whole_volume() -> None:
    # A crop of background alone: its borders lie outside.
    label = torch.zeros(1, 1, 1, 12)
    label[..., 8:] = 1
    whole = signed_distance_map(label, (1.0, 0.5))
    logits, crop = torch.zeros(1, 1, 1, 6), label[..., :6]
    assert make("boundary", "sigmoid")(logits, crop, spacing=(1.0, 0.5)) == 0
    value, gradient = value_and_gradient(make("boundary", "sigmoid"), logits, crop, distance_map=whole[..., :6])
    assert value > 0 and (gradient > 0).all()


def test_balanced_sums_refuse_a_boundary_loss_below_zero() -> None:
    with pytest.raises(medloss.InputError, match=r"schedule: 'balanced' .* subtract_minimum=True"):
        medloss.CombinedLoss("dice+boundary", schedule="balanced", softmax=True)
    boundary = medloss.BoundaryLoss(softmax=True, subtract_minimum=True)
    assert medloss.CombinedLoss(["dice", boundary], schedule="balanced", softmax=True).anchor == 0


def test_boundarys_recipe_and_the_authors_rebalance() -> None:
    loss = medloss.create_training_loss("boundary", num_classes=3)
    assert [round(w, 6) for w in loss.weights.tolist()] == [1.0, 1.0, 0.01]
    assert [part.include_background for part in loss.losses] == [True, True, False]
    regions = medloss.create_training_loss("boundary", num_classes=3, sigmoid=True)
    assert [part.include_background for part in regions.losses] == [True, True, True]
    warmed_up = medloss.create_training_loss("boundary", num_classes=3, schedule="ramp", epochs=10)
    assert (warmed_up.weights.tolist(), warmed_up.ramp) == ([1.0, 1.0, 0.0], (1.0, 5.0))
    authors = medloss.CombinedLoss(
        "generalized_dice+0.01*boundary", schedule="ramp", final_weights=(0.1, 0.91), ramp=(0, 90), softmax=True
    )
    weights = []
    for epoch in (0, 45, 90, 120):
        authors.start_epoch(epoch)
        weights.append([round(w, 6) for w in authors.weights.tolist()])
    assert weights == [[1.0, 0.01], [0.55, 0.46], [0.1, 0.91], [0.1, 0.91]]


@pytest.mark.parametrize("binning", ["hard", "soft"])
def test_calibration_error_is_content_with_the_prevalence(binning: str) -> None:
    label = torch.tensor([[[[1.0, 0.0, 0.0, 0.0, 1.0]]]])
    loss = make("l1_ace", "sigmoid", binning=binning)
    assert loss(torch.full_like(label, 0.4).logit(), label) < 1e-7
    assert loss(20 * (2 * label - 1), label) < 1e-6


@pytest.mark.parametrize("binning", ["hard", "soft"])
def test_calibration_error_of_absent_classes(binning: str) -> None:
    drawn = sample("sigmoid", 2)
    maps = drawn.maps.clone()
    maps[0, 1] = 0
    plain, left = (
        make("l1_ace", "sigmoid", binning=binning, reduction="none", ignore_empty_classes=ignored)(drawn.logits, maps)
        for ignored in (False, True)
    )
    assert plain[0, 1] > 0 and left[0, 1] == 0
    assert torch.equal(plain[:, ::2], left[:, ::2])


def test_calibration_errors_soft_bins_move_voxels_between_bins() -> None:
    drawn = sample("sigmoid", 2, channels=1)
    loss = make("l1_ace", "sigmoid", binning="soft", num_bins=4)
    assert torch.autograd.gradcheck(lambda z: loss(z, drawn.index), (drawn.logits.requires_grad_(),))


@pytest.mark.parametrize("dims", [2, 3])
def test_cldice_of_one_class_is_monais(dims: int) -> None:
    drawn = sample("sigmoid", dims, channels=1, batch=1)
    p, y = drawn.logits.sigmoid(), drawn.index.double()
    # MONAI adds 1e-4 to P + S.
    assert_close(make("cldice", "sigmoid")(drawn.logits, y), monai_losses.SoftclDiceLoss()(y, p), rtol=5e-5)


def test_cldice_takes_each_class_by_itself() -> None:
    drawn = sample("sigmoid", 3)
    values = make("cldice", "sigmoid", reduction="none")(drawn.logits, drawn.maps)
    for c in range(3):
        alone = make("cldice", "sigmoid", reduction="none")(drawn.logits[:, [c]], drawn.maps[:, [c]])
        assert torch.equal(values[:, [c]], alone)


def test_cldice_of_thin_lines_is_dice() -> None:
    label = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    label[..., 2, 1:8] = label[..., 6, 1:8] = 1
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(label.shape, generator=generator, dtype=torch.float64) * label.roll(1, 3)
    one, other = make("cldice", "probabilities", smooth=0.0), make("dice", "probabilities", smooth_nr=0, smooth_dr=0)
    assert_close(one(p, label), other(p, label), rtol=1e-9)


def test_cldice_of_nothing_found_is_one_and_has_a_graph() -> None:
    # MONAI#8739 adds 1e-4 to P + S instead, and a perfect prediction costs.
    label = torch.zeros(1, 1, 6, 6)
    label[..., 2:4, :] = 1
    value, gradient = value_and_gradient(make("cldice", "probabilities", smooth=0.0), torch.zeros_like(label), label)
    assert value == 1 and gradient.isfinite().all()
    assert make("cldice", "probabilities")(label, label) == 0


def test_cldice_is_content_with_the_right_centre_line() -> None:
    label = torch.zeros(1, 1, 9, 9)
    label[..., 3:6, :] = 1
    thin = torch.zeros_like(label)
    thin[..., 4, :] = 1
    assert make("cldice", "probabilities")(thin, label) < 1e-6
    assert make("dice", "probabilities")(thin, label) > 0.4


def test_cldice_ties_change_no_value() -> None:
    # Every voxel is as large as its neighbours: which of them a minimum is taken from must not matter.
    label = torch.zeros(1, 1, 5, 5, 5)
    label[..., 1:4, :, :] = 1
    value, gradient = value_and_gradient(make("cldice", "sigmoid"), torch.zeros_like(label), label)
    flipped, _ = value_and_gradient(make("cldice", "sigmoid"), torch.zeros_like(label), label.flip(2))
    assert value == flipped and gradient.isfinite().all()


def _lesions() -> tuple[Tensor, Tensor]:
    """Logits, and a label with three components of class 1 and one of class 2."""
    label = torch.zeros(1, 1, 9, 10, 11, dtype=torch.long)
    label[..., 1:4, 1:4, 1:4] = label[..., 6:8, 6:9, 7:10] = label[..., 1, 8, 9] = 1
    label[..., 6:9, 1:3, 1:3] = 2
    generator = torch.Generator().manual_seed(0)
    maps = (label == torch.arange(3).view(1, 3, 1, 1, 1)).double()
    return torch.randn(maps.shape, generator=generator, dtype=torch.float64) + 2 * maps, label


@pytest.mark.parametrize("cells", ["voronoi", "blob"])
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_instance_wise_of_one_component_is_the_inner_loss(cells: str, mode: str) -> None:
    drawn = sample(mode, 3, channels=2 if mode == "softmax" else 1, batch=1)
    for masked in (False, True):
        mask = mask_like(drawn.index) if masked else None
        one = make("instance_wise", mode, cells=cells)
        inner = medloss.CombinedLoss("dice+binary_cross_entropy", sigmoid=True)
        value = one(drawn.logits, drawn.index, mask=mask)
        # A softmax of two classes is the sigmoid of their difference.
        logits = drawn.logits.diff(dim=1) if mode == "softmax" else drawn.logits
        assert_close(value, inner(logits, drawn.index, mask=mask), rtol=1e-9)


@pytest.mark.parametrize("cells", ["voronoi", "blob"])
@pytest.mark.parametrize(
    "loss",
    [
        "lovasz",
        "topk_cross_entropy",
        "unified_focal",
        "matthews_correlation",
        "focal",
        "l1_ace",
        "hausdorff_dt",
        "structural_similarity",
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_instance_wise_takes_any_loss_under_its_masks(loss: str, cells: str, weighted: bool) -> None:
    logits, label = _lesions()
    spacing = (3.0, 1.0, 0.6)
    numbers = medloss.maps.instance_map(label == 1, spacing)
    channel = logits[:, [1]] - logits[:, ::2].logsumexp(1, keepdim=True)
    y = label == 1
    areas = [(numbers == k) & (y if cells == "blob" else True) | (~y if cells == "blob" else False) for k in (1, 2, 3)]
    inner = make(loss, "sigmoid")
    call: dict[str, Any] = {"spacing": spacing}
    call |= {"voxel_weight": logits[:, :1].abs()} if weighted else {}
    expected = sum(inner(channel, y.long(), mask=area, **call) for area in areas) / 3
    one = make("instance_wise", "softmax", loss=f"0.5*{loss}", cells=cells, reduction="none")
    assert_close(one(logits, label, **call)[0, 0].squeeze(), 0.5 * expected, rtol=1e-7)


@pytest.mark.parametrize("loss", ["dice+binary_cross_entropy", "lovasz+structural_similarity"])
@pytest.mark.parametrize("cells", ["voronoi", "blob"])
def test_many_instances_keep_no_copies_of_the_volume(loss: str, cells: str) -> None:
    label = torch.zeros(1, 1, 40, 40)
    label[..., ::4, ::4] = 1  # 100 components
    logits = torch.zeros(1, 1, 40, 40, requires_grad=True)
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        value = make("instance_wise", "sigmoid", loss=loss, cells=cells)(logits, label)
    assert sum(kept.values()) < 25 * 4 * logits.numel()
    value.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_an_instance_without_a_counted_voxel_has_no_area() -> None:
    label = torch.tensor([[[[1.0, 0, 0, 0, 0, 0, 1]]]])
    logits = torch.tensor([[[[2.0, -1, 0, 1, -2, 0, 3]]]])
    first, none = torch.tensor([[[[1, 1, 1, 1, 1, 1, 0]]]]), torch.tensor([[[[0, 1, 1, 1, 1, 1, 0]]]])
    one, inner = make("instance_wise", "sigmoid", loss="dice"), make("dice", "sigmoid")
    left = torch.tensor([[[[1, 1, 1, 1, 0, 0, 0]]]])
    numbers = torch.tensor([[[[1, 1, 1, 1, 2, 2, 2]]]])
    assert_close(one(logits, label, mask=first, instance_map=numbers), inner(logits, label, mask=left))
    # None is left: all that counts is one area. CC-DiceCE's authors have the constant 1 there, blob loss a bare 0.
    value, gradient = value_and_gradient(one, logits, label, mask=none, instance_map=numbers)
    assert_close(value, inner(logits, label, mask=none))
    assert (gradient != 0).sum() == 5


def test_blobs_leave_other_instances_out() -> None:
    # Where logits are multiplied by the mask instead, an excluded voxel has p = 0.5.
    label = torch.tensor([[[[1.0, 0, 1]]]])
    value = make("instance_wise", "sigmoid", cells="blob", loss="binary_cross_entropy")(40 * label - 20, label)
    assert value < 1e-6


def test_one_class_against_the_rest_has_its_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    for first in (0, 1):
        margins = _OneAgainstRest.apply(logits, first)
        assert_close(margins.sigmoid(), logits.softmax(1)[:, first:], rtol=1e-12)
        assert torch.autograd.gradcheck(_OneAgainstRest.apply, (logits.clone().requires_grad_(), first))
    # ln p - ln(1 - p) has no digits left there.
    sure = torch.tensor([50.0, 0.0, -50.0]).view(1, 3, 1, 1)
    assert _OneAgainstRest.apply(sure, 0).flatten().tolist() == pytest.approx([50.0, -50.0, -100.0])


def test_instance_wises_recipe_has_inner_arguments() -> None:
    loss = medloss.create_training_loss("instance_wise", num_classes=3)
    assert loss.weights.tolist() == [1.0, 1.0, 1.0]
    assert (loss.losses[2].losses[0].smooth_nr, loss.losses[0].smooth_nr) == (0.0, 1.0)
    # An empty patch with certain logits has no 0/0.
    logits = torch.full((1, 3, 4, 4), -1e4)
    logits[:, 0] = 1e4
    assert loss(logits, torch.zeros(1, 1, 4, 4, dtype=torch.long)).isfinite()


@pytest.mark.parametrize("kind", ["apart", "ties", "all equal", "nan", "infinite"])
@pytest.mark.parametrize("number", [1, 100, 1000])
def test_the_largest_values_are_those_of_torch(kind: str, number: int) -> None:
    lines = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        lines = (4 * lines).round()
    elif kind != "apart":
        lines[:, :: 1 if kind == "all equal" else 7] = {"all equal": 0.5, "nan": math.nan, "infinite": math.inf}[kind]
    places = topk_cross_entropy._largest(lines, number)
    assert all(len(set(line.tolist())) == number for line in places)
    found, expected = lines.gather(1, places).sort(1).values, lines.topk(number, 1).values.sort(1).values
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["dice", "lovasz", "hausdorff_dt", "shape_aware", "l1_ace"])
def test_negative_views_are_read_right(name: str) -> None:
    drawn = sample("softmax", 3)
    logits = drawn.logits.float()
    view = torch.complex(torch.zeros_like(logits), -logits).conj().imag
    assert view.is_neg()
    loss = make(name, "softmax")
    assert_close(loss(view, drawn.index), loss(logits, drawn.index))


def test_instance_ids_far_apart_need_no_table_of_all_between() -> None:
    present, numbers = torch.tensor([-(2**31), 5, 2**31 - 1]), torch.tensor([[5, 7], [2**31 - 1, -(2**31)]])
    assert _places_in(present, numbers).tolist() == [[1, -1], [2, 0]]
