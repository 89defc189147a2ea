"""Bad input to losses: one row per case, every family, the message asserted."""

import re
import warnings
from typing import Any

import pytest
import torch
from loss_inputs import make, modes_of
from torch.autograd import forward_ad

import medloss
from medloss.distance.maps import distance_map
from medloss.names import _ALIASES, _plain, refuse_unknown_losses

ONE_OF_A_FAMILY = ("focal", "dice", "hausdorff_dt", "combo")


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


LOGITS = _zeros(2, 3, 6, 5, 4)
LABEL = _zeros(2, 1, 6, 5, 4, dtype=torch.long)

CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "spatial mismatch": (
        {"target": LABEL[..., :3]},
        r"target: got shape \(2, 1, 6, 5, 3\) for logits \(2, 3, 6, 5, 4\); expected an index map \(2, 1, 6, 5, 4\)",
    ),
    "batch mismatch": ({"target": LABEL[:1]}, r"target: got shape \(1, 1, 6, 5, 4\) for logits"),
    "channel mismatch": ({"target": LABEL.expand(-1, 2, -1, -1, -1)}, "target: got 2 channels for logits of 3"),
    "no channel": ({"target": LABEL[:, 0]}, r"target: got shape \(2, 6, 5, 4\)"),
    "label too high": ({"target": LABEL + 3}, "target: got labels from 3 to 3 for logits of 3 channels; .* 0 to 2"),
    "label negative": ({"target": LABEL - 1}, "target: got labels from -1 to -1"),
    "label 1.7": ({"target": LABEL + 1.7}, "target: an index map must hold whole numbers"),
    "one channel, labels to 7": (
        {"logits": LOGITS[:, :1], "target": LABEL + 7, "mode": "sigmoid"},
        r"target: got values from 7 to 7; expected values in \[0, 1\]; labels above 1 need logits of one channel",
    ),
    "NaN in the target": ({"target": LABEL + float("nan")}, "target: it holds NaN"),
    "NaN in target maps": ({"target": LOGITS + float("nan")}, "target: it holds NaN"),
    "target maps above 1": ({"target": LOGITS + 2}, "target: got values from 2 to 2; expected values in"),
    "integer logits": ({"logits": LOGITS.long()}, r"logits: got torch.int64; expected floating point"),
    "1D": ({"logits": LOGITS[..., 0, 0], "target": LABEL[..., 0, 0]}, r"logits: got shape \(2, 3, 6\)"),
    "4D": ({"logits": LOGITS[..., None], "target": LABEL[..., None]}, r"logits: got shape \(2, 3, 6, 5, 4, 1\)"),
    "spacing zero": ({"spacing": (1.0, 0.0, 1.0)}, r"spacing: got \(1.0, 0.0, 1.0\); every spacing must be a positive"),
    "spacing negative": ({"spacing": (1.0, -1.0, 1.0)}, "every spacing must be a positive"),
    "spacing NaN": ({"spacing": (1.0, float("nan"), 1.0)}, "every spacing must be a positive"),
    "spacing infinite": ({"spacing": (1.0, float("inf"), 1.0)}, "every spacing must be a positive"),
    "spacing too short": ({"spacing": (1.0, 1.0)}, r"spacing: got 2 numbers \(1.0, 1.0\) for 3D images"),
    "spacing, wrong count": ({"spacing": [(1.0, 1.0, 1.0)] * 3}, "spacing: got 3 spacings for a batch of 2"),
    "spacing, words": ({"spacing": "isotropic"}, "spacing: got 'isotropic'; expected one number"),
    "spacing, ragged": ({"spacing": [(1.0, 1.0), (1.0,)]}, "spacing: got .* expected one number"),
    "spacing, three levels": ({"spacing": torch.ones(1, 2, 3)}, "spacing: got tensor.* expected one number"),
    "mask shape": ({"mask": LABEL[..., :2]}, r"mask: got shape \(2, 1, 6, 5, 2\); expected \(2, 1, 6, 5, 4\)"),
    "distance map shape": ({"distance_map": LOGITS[..., :2]}, r"distance_map: got shape \(2, 3, 6, 5, 2\)"),
    "labelled classes as numbers": (
        {"labelled_classes": torch.ones(2, 3)},
        r"labelled_classes: got torch.float32 of shape \(2, 3\); expected torch.bool of shape \(2, 3\)",
    ),
    "labelled classes of another shape": (
        {"labelled_classes": torch.ones(3, dtype=torch.bool)},
        r"labelled_classes: got torch.bool of shape \(3,\); expected torch.bool of shape \(2, 3\), True where",
    ),
    "labelled classes as a list": (
        {"labelled_classes": [[True, True, False]] * 2},
        r"labelled_classes: got a list of 2; expected one torch.Tensor: pass torch.as_tensor\(labelled_classes\)",
    ),
    "target with an unlabelled class": (
        {"target": LABEL + 2, "labelled_classes": torch.tensor([[True] * 3, [True, True, False]])},
        r"the target of item 1 has voxels of class 2, and labelled_classes\[1, 2\] is False; expected none, or True",
    ),
    "target maps with an unlabelled class": (
        {"target": LOGITS + 1, "labelled_classes": torch.tensor([[True, False, True], [True] * 3])},
        r"the target of item 0 has voxels of class 1, and labelled_classes\[0, 1\] is False; expected none, or True",
    ),
    "voxel weight shape": (
        {"voxel_weight": LOGITS},
        r"voxel_weight: got shape \(2, 3, 6, 5, 4\); expected \(2, 1, 6, 5, 4\)",
    ),
    "voxel weight negative": (
        {"voxel_weight": 1.0 - 3 * LABEL.eq(0).float()},
        "voxel_weight: got values from -2 to -2; expected finite numbers >= 0",
    ),
    "voxel weight infinite": ({"voxel_weight": LABEL + float("inf")}, "voxel_weight: got values from inf to inf"),
    "voxel weight NaN": ({"voxel_weight": LABEL + float("nan")}, "voxel_weight: got values from nan to nan"),
    "skeleton map shape": ({"skeleton_map": LOGITS[:, :1]}, r"skeleton_map: got shape \(2, 1, 6, 5, 4\); expected"),
    "instance map shape": ({"instance_map": LOGITS[:1]}, r"instance_map: got shape \(1, 3, 6, 5, 4\); expected"),
    "logits without activation": (
        {"logits": LOGITS - 4, "mode": "probabilities"},
        r"logits: got values from -4 to -4 where probabilities in \[0, 1\] .* softmax=True",
    ),
    "softmax of one channel": (
        {"logits": LOGITS[:, :1], "mode": "softmax"},
        "softmax: logits have one channel; expected two or more, or sigmoid=True",
    ),
}


_DEEP = "expected one torch.Tensor: pass one output, or all of them, finest first, to medloss.DeepSupervision"
_STACKED = r"one axis more; .* pass stacked outputs .* as logits.unbind\(1\) to medloss.DeepSupervision"

NOT_ONE_TENSOR: dict[str, tuple[dict[str, Any], str]] = {
    "tuple of outputs": ({"logits": (LOGITS, LOGITS[..., ::2])}, f"logits: got a tuple of 2; {_DEEP}"),
    "list of outputs": ({"logits": [LOGITS]}, f"logits: got a list of 1; {_DEEP}"),
    "dict of outputs": (
        {"logits": {"out": LOGITS, "aux": LOGITS}},
        "logits: got a dict with the keys out, aux; expected one torch.Tensor: pass one of its values",
    ),
    "no logits": ({"logits": None}, "logits: got None; expected one torch.Tensor$"),
    "array of logits": ({"logits": LOGITS.numpy()}, r"logits: got a numpy.ndarray; .* pass torch.as_tensor\(logits\)"),
    "array as target": ({"target": LABEL.numpy()}, r"target: got a numpy.ndarray; .* pass torch.as_tensor\(target\)"),
    "target of numbers": ({"target": LABEL.tolist()}, r"target: got a list of 2; .* pass torch.as_tensor\(target\)"),
    "list of targets": (
        {"target": [LABEL, LABEL[..., ::2]]},
        "target: got a list of 2; .* pass that of the finest grid, which medloss.DeepSupervision brings to the other",
    ),
    "no target": ({"target": None}, "target: got None; expected one torch.Tensor$"),
    "array as mask": ({"mask": LABEL.numpy()}, r"mask: got a numpy.ndarray; .* pass torch.as_tensor\(mask\)"),
    "array as distance map": (
        {"distance_map": LOGITS.numpy()},
        r"distance_map: got a numpy.ndarray; .* torch.as_tensor",
    ),
    "array as skeleton map": (
        {"skeleton_map": LABEL.numpy()},
        r"skeleton_map: got a numpy.ndarray; .* torch.as_tensor",
    ),
    "array as instance map": (
        {"instance_map": LABEL.numpy()},
        r"instance_map: got a numpy.ndarray; .* torch.as_tensor",
    ),
    "stacked heads": (
        {"logits": LOGITS.unsqueeze(1).expand(-1, 2, -1, -1, -1, -1)},
        f"logits: got shape .* {_STACKED}",
    ),
    "stacked heads, 2D": (
        {"logits": LOGITS.movedim(1, 2), "target": LABEL[:, :, 0]},
        rf"logits: got shape \(2, 6, 3, 5, 4\) for a target \(2, 1, 5, 4\), {_STACKED}",
    ),
}
CALLS |= NOT_ONE_TENSOR


def _empty(*shape: int) -> tuple[dict[str, Any], str]:
    shown = ", ".join(map(str, shape))
    arguments = {"logits": _zeros(*shape), "target": _zeros(shape[0], 1, *shape[2:], dtype=torch.long)}
    return arguments, rf"logits: got shape \({shown}\), which is empty; .* leave out empty batches, or mask"


EMPTY = {
    "no item": _empty(0, 3, 6, 5, 4),
    "no voxel": _empty(2, 3, 6, 0, 4),
    "no channel of logits": _empty(2, 0, 6, 5, 4),
}

TAKES_ONE_OUTPUT: dict[str, Any] = {
    "sum": medloss.CombinedLoss("dice+focal", softmax=True),
    "fixed spacing": medloss.FixedSpacing(medloss.DiceLoss(softmax=True), (1.0, 1.0, 1.0)),
    "deep supervision": medloss.DeepSupervision(medloss.DiceLoss(softmax=True)),
}


@pytest.mark.parametrize(
    ("wrapper", "case"),
    [
        (wrapper, case)
        for wrapper in TAKES_ONE_OUTPUT
        for case in NOT_ONE_TENSOR | EMPTY
        if wrapper != "deep supervision" or case not in ("tuple of outputs", "list of outputs")
    ],
)
def test_wrappers_refuse_what_is_not_one_tensor(wrapper: str, case: str) -> None:
    arguments, message = (NOT_ONE_TENSOR | EMPTY)[case]
    arguments = {"logits": LOGITS, "target": LABEL} | arguments
    with pytest.raises(medloss.InputError, match=message) as caught:
        TAKES_ONE_OUTPUT[wrapper](arguments.pop("logits"), arguments.pop("target"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", medloss.LOSSES)
@pytest.mark.parametrize("case", EMPTY)
def test_empty_input_is_refused_by_every_loss(name: str, case: str) -> None:
    arguments, message = EMPTY[case]
    for mode in modes_of(name):
        with pytest.raises(medloss.InputError, match=message):
            make(name, mode)(**arguments)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ([], LABEL, "logits: got no outputs; expected one tensor per scale"),
        ([LOGITS, LOGITS.numpy()], LABEL, "logits: got a numpy.ndarray"),
        ([LOGITS, LOGITS[..., ::2]], [LABEL, LABEL[..., ::2]], "target: got a list of 2; .* finest grid"),
        ([LOGITS, LOGITS[..., ::2]], LABEL[:, 0], r"target: got shape \(2, 6, 5, 4\) for logits \(2, 3, 6, 5, 4\)"),
    ],
)
def test_deep_supervision_names_outputs_and_targets(logits: Any, target: Any, message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        TAKES_ONE_OUTPUT["deep supervision"](logits, target)


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_say_what_came_and_what_was_expected(name: str, case: str) -> None:
    arguments, message = CALLS[case]
    arguments = {"logits": LOGITS, "target": LABEL, "mode": "softmax"} | arguments
    mode, logits, target = arguments.pop("mode"), arguments.pop("logits"), arguments.pop("target")
    with pytest.raises(medloss.InputError, match=message) as caught:
        make(name, mode)(logits, target, **arguments)
    assert "\n" not in str(caught.value)


def _dual(call: Any, logits: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(logits, torch.ones_like(logits)))


TRANSFORMS: dict[str, Any] = {
    "grad": lambda call, logits: torch.func.grad(call)(logits),
    "jacrev": lambda call, logits: torch.func.jacrev(call)(logits),
    "vmap": lambda call, logits: torch.func.vmap(call)(logits[None]),
    "jvp": lambda call, logits: torch.func.jvp(call, (logits,), (logits,)),
    "jacfwd": lambda call, logits: torch.func.jacfwd(call)(logits),
    "dual numbers": _dual,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", medloss.LOSSES)
def test_transforms_that_the_kernels_cannot_follow_are_refused(name: str, transform: str) -> None:
    # jvp and dual numbers gave a derivative of 0, and the others torch's words about setup_context.
    loss = make(name, "softmax")
    with pytest.raises(medloss.InputError, match=r"logits: got a .*; use backward\(\) or torch.autograd.grad"):
        TRANSFORMS[transform](lambda logits: loss(logits, LABEL), LOGITS)


@pytest.mark.parametrize("wrapper", TAKES_ONE_OUTPUT)
def test_wrappers_refuse_transforms(wrapper: str) -> None:
    loss = TAKES_ONE_OUTPUT[wrapper]
    for transform in TRANSFORMS.values():
        with pytest.raises(medloss.InputError, match=r"logits: got a .*; use backward\(\) or torch.autograd.grad"):
            transform(lambda logits: loss(logits, LABEL), LOGITS)
    with pytest.raises(medloss.InputError, match=r"target: got a tensor inside a transform of torch\.func"):
        torch.func.vmap(loss, in_dims=(None, 0))(LOGITS, LABEL[None])


CONSTRUCTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("dice", {"softmax": True, "sigmoid": True}, "sigmoid, softmax, other_act: more than one was given"),
    ("dice", {"other_act": 3}, "other_act: got int; expected a callable"),
    ("dice", {"reduction": "median"}, "reduction: got 'median'; expected 'mean', 'sum' or 'none'"),
    ("dice", {"weight": [1.0, -1.0]}, r"weight: got \[1.0, -1.0\]; expected finite numbers >= 0"),
    ("dice", {"weight": [1.0, float("inf")]}, r"weight: got \[1.0, inf\]; expected finite numbers >= 0"),
    ("dice", {"smooth_nr": -1.0}, "smooth_nr: got -1.0; expected a number >= 0"),
    ("dice", {"smoothnr": 1.0}, "dice: unknown argument 'smoothnr'; did you mean 'smooth_nr'"),
    ("binary_cross_entropy", {"label_smoothing": 1.1}, r"label_smoothing: got 1.1; expected a number in \[0, 1\]"),
    ("balanced_cross_entropy", {"label_smoothing": -0.1}, "label_smoothing: got -0.1; expected"),
    ("weighted_cross_entropy", {"label_smoothing": float("nan")}, "label_smoothing: got nan; expected"),
    ("tversky", {"alpha": -0.1}, "alpha: got -0.1"),
    ("focal_tversky", {"gamma": 0.0}, "gamma: got 0.0; expected a positive number"),
    ("sensitivity_specificity", {"r": 1.5}, "r: got 1.5"),
    ("focal", {"gamma": -1.0}, "gamma: got -1.0"),
    ("focal", {"alpha": 1.5}, "alpha: got 1.5"),
    ("focal", {"alpha": "half"}, "alpha: got 'half'"),
    ("weighted_cross_entropy", {"pos_weight": 0.0}, "pos_weight: got 0.0"),
    ("structural_similarity", {"constant": 0.0}, "constant: got 0.0"),
    ("structural_similarity", {"threshold": 1.0}, "threshold: got 1.0"),
    ("structural_similarity", {"window": 4}, "window: got 4; expected an odd number"),
    ("structural_similarity", {"sigma": 0.0}, "sigma: got 0.0"),
    ("generalized_dice", {"w_type": "cubic"}, "w_type: got 'cubic'; expected one of square, simple, uniform"),
    ("generalized_dice", {"smooth_dr": -1.0}, "smooth_dr: got -1.0"),
    ("matthews_correlation", {"smooth_dr": 0.0}, "smooth_dr: got 0.0; expected a positive number"),
    ("generalized_wasserstein_dice", {"sigmoid": True}, "softmax: .* expected softmax=True"),
    ("generalized_wasserstein_dice", {"softmax": True, "weight": 2.0}, "weight: this loss takes none; .* dist_matrix"),
    ("generalized_wasserstein_dice", {"softmax": True, "weighting_mode": "all"}, "weighting_mode: got 'all'"),
    ("generalized_wasserstein_dice", {"softmax": True, "dist_matrix": [[0, 1]]}, r"dist_matrix: got shape \(1, 2\)"),
    ("generalized_wasserstein_dice", {"softmax": True, "dist_matrix": "far"}, "dist_matrix: got shape"),
    ("generalized_wasserstein_dice", {"softmax": True, "dist_matrix": [[0, 1], [2, 0]]}, "dist_matrix: .* symmetric"),
    ("generalized_wasserstein_dice", {"softmax": True, "dist_matrix": [[1, 1], [1, 0]]}, "dist_matrix: .* diagonal"),
    (
        "generalized_wasserstein_dice",
        {"softmax": True, "dist_matrix": [[0, 1, 1], [1, 0, 4], [1, 4, 0]]},
        r"dist_matrix: background is at \[0.25, 0.25\] of the largest distance",
    ),
    ("topk_cross_entropy", {"k": 0}, "k: got 0; expected percent"),
    ("topk_cross_entropy", {"k": 100.5}, "k: got 100.5; expected percent"),
    ("l1_ace", {"num_bins": 0}, "num_bins: got 0; expected 1 or more"),
    ("l1_ace", {"binning": "round"}, "binning: got 'round'; expected 'hard' or 'soft'"),
    ("cldice", {"iter_": -1}, "iter_: got -1; expected 0 or more"),
    ("cldice", {"smooth": -1.0}, "smooth: got -1.0; expected a number >= 0"),
    ("instance_wise", {"cells": "round"}, "cells: got 'round'; expected 'voronoi' or 'blob'"),
    ("instance_wise", {"connectivity": 5}, "connectivity: got 5; expected 26"),
    ("instance_wise", {"loss": "dicee"}, "no loss 'dicee'; did you mean 'dice'"),
    ("instance_wise", {"loss": "dice+instance_wise"}, "loss: 'instance_wise' cannot be taken per instance"),
    ("instance_wise", {"loss": "generalized_wasserstein_dice"}, "loss: .* expected a loss of medloss for one channel"),
    ("instance_wise", {"loss": "monai.losses.DiceLoss"}, "loss: 'monai.losses.DiceLoss' cannot be taken per instance"),
    ("instance_wise", {"terms": {"focal": {}}}, "terms: got 'focal', which is not in 'dice"),
    ("instance_wise", {"terms": {"dice": {"reduction": "none"}}}, "terms: 'dice' has reduction='none' or batch=True"),
    ("instance_wise", {"terms": {"dice": {"batch": True}}}, "terms: 'dice' has reduction='none' or batch=True"),
    ("skeleton_recall", {"smooth": 0.0}, "smooth: got 0.0; expected a positive number"),
    ("lovasz", {"classes": "some"}, "classes: got 'some'; expected 'present', 'all'"),
    ("lovasz", {"softmax": True, "hinge": True}, "hinge: .* expected sigmoid=True"),
    ("unified_focal", {"alpha": -0.5}, "alpha: got -0.5"),
    ("unified_focal", {"delta": 1.5}, "delta: got 1.5"),
    ("unified_focal", {"gamma": 1.0}, "gamma: got 1.0"),
    ("hausdorff_dt", {"alpha": 0.0}, "alpha: got 0.0"),
    ("hausdorff_er", {"alpha": 0.0}, "alpha: got 0.0"),
    ("hausdorff_er", {"erosions": 0}, "erosions: got 0"),
    ("hausdorff_cv", {"alpha": 0.0}, "alpha: got 0.0"),
    ("hausdorff_cv", {"radii": []}, r"radii: got \[\]"),
    ("hausdorff_cv", {"radii": [3.0, -1.0]}, r"radii: got \[3.0, -1.0\]"),
    ("combo", {"alpha": 2.0}, "alpha: got 2.0"),
    ("exponential_logarithmic", {"gamma": 0.0}, "gamma: got 0.0"),
    ("exponential_logarithmic", {"dice_weight": -1.0}, "dice_weight: got -1.0"),
    ("exponential_logarithmic", {"frequencies": [0.5, -0.5]}, "frequencies: got"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), CONSTRUCTIONS)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        medloss.create_loss(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dice", {"weight": [1.0, 2.0]}, "weight: got 2 numbers; expected 1 or 3"),
        ("dice", {"weight": [1.0] * 3, "include_background": False}, "weight: got 3 numbers; expected 1 or 2"),
        (
            "generalized_wasserstein_dice",
            {"dist_matrix": [[0, 1], [1, 0]]},
            "dist_matrix: got 2 rows for logits of 3 classes",
        ),
        ("focal", {"alpha": (0.5, 0.5)}, "alpha: got 2 numbers; expected 3"),
        ("exponential_logarithmic", {"frequencies": (0.5, 0.5)}, "frequencies: got 2 numbers; expected 3"),
    ],
)
def test_arguments_that_do_not_fit_the_classes(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        make(name, "softmax", **arguments)(LOGITS, LABEL)


def test_ignored_labels_need_an_index_map() -> None:
    with pytest.raises(medloss.InputError, match=r"ignore_index: the target has 3 channels"):
        make("dice", "softmax", ignore_index=2)(LOGITS, LOGITS)


def test_a_label_under_the_mask_may_be_anything() -> None:
    label = LABEL.clone()
    label[:, :, 0] = 255
    mask = label != 255
    value = make("dice", "softmax")(LOGITS, label, mask=mask)
    assert torch.equal(value, make("dice", "softmax", ignore_index=255)(LOGITS, label))
    soft = torch.where(mask, LOGITS, float("nan"))
    assert torch.isfinite(make("dice", "softmax")(LOGITS, soft, mask=mask))


INTEGERS = [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_a_label_that_the_type_cannot_hold_ignores_no_other_class(dtype: torch.dtype) -> None:
    label = LABEL.clone()
    label[:, :, :2] = 1
    bits = torch.iinfo(dtype).bits
    for name in ONE_OF_A_FAMILY:
        value = make(name, "softmax")(LOGITS, label)
        for outside in (1 + 2**bits, 1 - 2**bits):
            assert torch.equal(make(name, "softmax", ignore_index=outside)(LOGITS, label.to(dtype)), value)


def test_minus_100_is_no_class_of_bytes() -> None:
    label = torch.arange(160, dtype=torch.uint8).view(1, 1, 16, 10)
    logits = torch.randn(1, 160, 16, 10, generator=torch.Generator().manual_seed(0))
    loss = make("dice", "softmax", ignore_index=-100)
    assert torch.equal(loss(logits, label), make("dice", "softmax")(logits, label))
    assert torch.equal(loss(logits, label), loss(logits, label.long()))


def test_a_mask_and_an_ignored_label_leave_out_both() -> None:
    label, mask = LABEL.clone(), torch.ones_like(LABEL, dtype=torch.bool)
    label[:, :, 0] = 255
    mask[:, :, :, 0] = False
    value = make("dice", "softmax", ignore_index=255)(LOGITS, label, mask=mask)
    assert torch.equal(value, make("dice", "softmax")(LOGITS, LABEL, mask=mask & (label != 255)))


def test_nan_under_a_mask_does_not_come_back_through_an_activation() -> None:
    logits, mask = LOGITS.clone(), torch.ones_like(LABEL, dtype=torch.bool)
    mask[:, :, 0] = False
    logits[:, :, 0] = float("nan")
    logits.requires_grad_()
    medloss.DiceLoss(other_act=torch.sigmoid)(logits, LABEL, mask=mask).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_validation_can_be_turned_off() -> None:
    assert torch.isfinite(make("dice", "softmax", validate=False)(LOGITS, LABEL + 9))
    with pytest.raises(medloss.InputError, match="target: got shape"):
        make("dice", "softmax", validate=False)(LOGITS, LABEL[:1])


def test_one_channel_without_background_warns_as_monai_does() -> None:
    with pytest.warns(UserWarning, match="single channel prediction, `include_background=False` ignored"):
        make("dice", "sigmoid", include_background=False)(LOGITS[:, :1], LABEL)


def test_no_ball_that_fits_warns_and_gives_zero() -> None:
    logits = LOGITS.clone().requires_grad_()
    with pytest.warns(UserWarning, match=r"no ball of radii .* fits into \(6, 5, 4\) voxels"):
        value = medloss.HausdorffCVLoss(softmax=True)(logits, LABEL)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_unknown_losses_name_the_nearest() -> None:
    for wrong, message in {
        "dise": "no loss 'dise'; did you mean 'dice'",
        "xyzzy": "^no loss 'xyzzy'; `medloss losses` lists all$",
        "monai.losses.NoSuchLoss": "cannot import 'monai.losses.NoSuchLoss'",
        "no_such_package.Loss": "cannot import 'no_such_package.Loss'",
        "math.sqrt": "'math.sqrt' is no torch.nn.Module class",
    }.items():
        with pytest.raises(medloss.InputError, match=message):
            medloss.create_loss(wrong)
    with pytest.raises(medloss.InputError, match="mapping without '_target_'"):
        medloss.create_loss({"gamma": 2})


@pytest.mark.parametrize(("wrong", "meant"), [
    *((wrong, "binary_cross_entropy") for wrong in
      ("cross_entropy", "cross-entropy", "crossentropy", "CrossEntropy", "CrossEntropyLoss", "ce", "CE", "bce",
       "BCEWithLogitsLoss")),
    *((wrong, "dice+binary_cross_entropy") for wrong in
      ("dice_ce", "dice-ce", "dicece", "DiceCELoss", "dice_cross_entropy", "dice-cross-entropy")),
    ("DiceFocalLoss", "dice+focal"), ("FocalTversky", "focal_tversky"), ("DiceLoss", "dice"), ("soft_dice", "dice"),
    ("gdl", "generalized_dice"), ("hausdorff", "hausdorff_dt"), ("hd", "hausdorff_dt"), ("mcc", "matthews_correlation"),
    ("ssim", "structural_similarity"), ("iou", "lovasz"), ("jaccard", "lovasz"), ("topk", "topk_cross_entropy"),
])  # fmt: skip
def test_usual_names_of_losses_lead_to_ours(wrong: str, meant: str) -> None:
    with pytest.raises(medloss.InputError) as refusal:
        medloss.create_loss(wrong)
    message = str(refusal.value)
    with pytest.raises(medloss.InputError, match=f"^{re.escape(message)}$"):
        refuse_unknown_losses(f"0.5*{wrong}+dice")  # as the command checks a sum
    assert message.startswith(f"no loss '{wrong}'; did you mean '{meant}'? ")
    assert message.endswith("`medloss losses` lists all") and "\n" not in message
    assert ("is the softmax cross entropy" in message) == ("binary_cross_entropy" in meant)
    medloss.CombinedLoss(meant, softmax=True)


def test_every_alias_is_reached_and_means_losses() -> None:
    """An alias with `_` or `-`, or with `loss` at its end, would never be looked up; a registered name needs none."""
    for alias, meant in _ALIASES.items():
        assert _plain(alias) == alias and alias not in map(_plain, medloss.LOSSES)
        assert set(meant.split("+")) <= set(medloss.LOSSES)


def test_distance_maps_refuse_other_shapes() -> None:
    with pytest.raises(medloss.InputError, match=r"mask: got shape \(3, 3\); expected \[B, C, H, W\]"):
        distance_map(torch.ones(3, 3))


def test_good_input_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in medloss.LOSSES:
            make(name, "softmax")(LOGITS, LABEL)
