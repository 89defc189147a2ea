"""What every registered loss satisfies: the nine points of the contract, loss by loss from the registry."""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loss_inputs import (
    EVERYTHING,
    MODES,
    SMALL,
    SPACING,
    WITHOUT_BACKGROUND,
    assert_close,
    class_weights,
    make,
    mask_like,
    sample,
    to_numpy,
)
from references import REFERENCES
from references import directional_derivative as _directional_derivative
from references.skeletons import middle
from torch import Tensor

import medloss
import medloss.maps.skeletons

LOSSES = list(medloss.LOSSES)
VOXELWISE = [
    name for name in LOSSES if medloss.LOSSES[name].family == "distribution" and name != "structural_similarity"
] + ["shape_aware"]
NEEDS_MAPS = [
    "distance_penalty",
    "hausdorff_dt",
    "log_hausdorff_dt",
    "shape_aware",
    "boundary",
    "skeleton_recall",
    "instance_wise",
]
LOOKS_AROUND = [*NEEDS_MAPS, "structural_similarity", "hausdorff_er", "hausdorff_cv", "cldice"]
CATEGORICAL_ONLY = [name for name in LOSSES if medloss.LOSSES[name].cls.categorical_only]
#: Structured samples have one component per class; and windows know no spacing. Cells: tests/medloss/maps.
SINGLE_CELLS = ["instance_wise", "structural_similarity"]
HARD_TARGETS_ONLY = [name for name in LOSSES if not medloss.LOSSES[name].cls.soft_targets]


@pytest.fixture(autouse=True)
def _stand_in_for_thinning(monkeypatch: pytest.MonkeyPatch) -> None:
    # scikit-image's does not follow flips. Where it is tested, it is itself: tests/medloss/maps.
    monkeypatch.setattr(medloss.maps.skeletons, "skeletonized", middle)


every_loss = pytest.mark.parametrize("name", LOSSES)
every_mode = pytest.mark.parametrize("mode", MODES)
both_dims = pytest.mark.parametrize("dims", [2, 3])


_computed: dict[bytes, Any] = {}


def once(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """The function's value, computed once for equal arguments: a reference does not depend on the kernel set."""
    key = pickle.dumps((function.__module__, function.__qualname__, args, keywords))
    if key not in _computed:
        _computed[key] = function(*args, **keywords)
    return _computed[key]


def expected(name: str, mode: str, logits: Tensor, target: Tensor, **arguments: Any) -> Any:
    arguments = {key: to_numpy(value) for key, value in arguments.items()}
    arguments = SMALL.get(name, {}) | arguments
    return once(REFERENCES[name], to_numpy(logits), to_numpy(target), mode=mode, **arguments)


def directional_derivative(*args: Any, **keywords: Any) -> float:
    return float(once(_directional_derivative, *args, **keywords))


def value_and_gradient(loss: Any, logits: Tensor, target: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, **keywords)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


# --- 1: value and gradient equal the reference's -----------------------------------------------------------------


@every_loss
@every_mode
@both_dims
@pytest.mark.parametrize("structured", [True, False], ids=["structures", "noise"])
def test_equals_its_reference(name: str, mode: str, dims: int, structured: bool) -> None:
    drawn = sample(mode, dims, structured=structured)
    direction = np.random.default_rng(0).standard_normal(drawn.logits.shape)
    for background, reduction, masked, weighted, batch in itertools.product(
        (True, False), ("mean", "sum", "none"), (False, True), (False, True), (False, True)
    ):
        if reduction != "mean" and masked + weighted + batch > 1:
            continue
        options: dict[str, Any] = {"include_background": background, "reduction": reduction, "batch": batch}
        options["weight"] = class_weights(name, mode, background) if weighted else None
        mask = mask_like(drawn.index) if masked else None
        loss = make(name, mode, **options)
        given: dict[str, Any] = {"mask": mask, "spacing": drawn.spacing}
        if name == "instance_wise" and not structured:
            # Noise has voxels at the same distance from two components, which belong to either.
            given["instance_map"] = medloss.maps.instance_map(drawn.maps, drawn.spacing)
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, **given)
        keywords = {key: to_numpy(argument) for key, argument in given.items()} | options
        assert_close(value, expected(name, mode, drawn.logits, drawn.index, **keywords))
        if reduction == "mean":
            derivative = directional_derivative(
                name,
                drawn.logits.numpy(),
                direction,
                drawn.index.numpy(),
                mode=mode,
                **(SMALL.get(name, {}) | keywords),
            )
            # Positive and negative parts cancel: what counts is the error relative to their size.
            size = np.abs(gradient.numpy() * direction).sum()
            assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("weighted_cross_entropy", {"pos_weight": 0.4}),
    ("focal", {"gamma": 0.0, "alpha": None}),
    ("focal", {"gamma": 0.5, "alpha": 0.7}),
    ("focal", {"gamma": 3.0, "alpha": (0.1, 0.5, 0.9)}),
    ("structural_similarity", {"constant": 0.1, "threshold": 0.4, "window": 5, "sigma": 0.8}),
    ("structural_similarity", {"detach_weights": False}),
    ("dice", {"smooth_nr": 0.0, "smooth_dr": 1e-5, "squared_pred": True}),
    ("dice", {"jaccard": True}),
    ("dice", {"jaccard": True, "squared_pred": True}),
    ("tversky", {"alpha": 0.6, "beta": 0.1, "smooth_nr": 0.5, "smooth_dr": 2.0}),
    ("focal_tversky", {"gamma": 2.5, "alpha": 0.5, "beta": 0.5}),
    ("focal_tversky", {"inverse_gamma": False}),
    ("sensitivity_specificity", {"r": 0.6, "smooth_dr": 0.1}),
    ("sensitivity_specificity", {"squared": False, "r": 0.3, "smooth_nr": 0.2, "smooth_dr": 0.2}),
    ("log_cosh_dice", {"squared_pred": True, "smooth_nr": 2.0}),
    ("generalized_dice", {"w_type": "simple", "smooth_nr": 0.5, "smooth_dr": 0.2}),
    ("generalized_dice", {"w_type": "uniform"}),
    ("generalized_dice", {"batch": True, "weight": (0.5, 2.0, 1.5)}),
    ("matthews_correlation", {"smooth_dr": 3.0}),
    ("generalized_wasserstein_dice", {"dist_matrix": ((0, 2, 2), (2, 0, 0.7), (2, 0.7, 0)), "smooth_nr": 0.3}),
    ("generalized_wasserstein_dice", {"weighting_mode": "GDL"}),
    (
        "generalized_wasserstein_dice",
        {
            "dist_matrix": ((0, 1, 1), (1, 0, 0.4), (1, 0.4, 0)),
            "weighting_mode": "GDL",
            "smooth_dr": 0.1,
            "batch": True,
        },
    ),
    ("topk_cross_entropy", {"k": 37.5}),
    ("topk_cross_entropy", {"k": 0.1, "batch": True}),
    ("lovasz", {"classes": "all"}),
    ("lovasz", {"classes": "present", "include_background": False, "weight": (0.5, 2.0)}),
    ("lovasz", {"batch": True, "reduction": "sum"}),
    ("unified_focal", {"asymmetric": False}),
    ("unified_focal", {"alpha": 0.2, "delta": 0.8, "gamma": 0.9, "smooth_nr": 0.1}),
    ("unified_focal", {"gamma": 0.0}),
    ("l1_ace", {"num_bins": 5}),
    ("l1_ace", {"binning": "soft"}),
    ("l1_ace", {"binning": "soft", "num_bins": 1}),
    ("l1_ace", {"num_bins": 3, "ignore_empty_classes": True, "weight": 0.5}),
    ("cldice", {"iter_": 1, "smooth": 0.3}),
    ("cldice", {"batch": True, "smooth": 0.0}),
    ("instance_wise", {"cells": "blob"}),
    ("instance_wise", {"connectivity": 6, "loss": "binary_cross_entropy"}),
    ("instance_wise", {"loss": "dice", "terms": {"dice": {"smooth_nr": 0.0, "smooth_dr": 0.1, "squared_pred": True}}}),
    ("boundary", {"normalize": True}),
    ("boundary", {"subtract_minimum": True}),
    ("boundary", {"subtract_minimum": True, "normalize": True, "include_background": False}),
    ("hausdorff_dt", {"alpha": 1.3}),
    ("hausdorff_dt", {"one_sided": True}),
    ("hausdorff_dt", {"log": True, "alpha": 1.0}),
    ("log_hausdorff_dt", {"one_sided": True, "alpha": 1.3}),
    ("binary_cross_entropy", {"label_smoothing": 0.1}),
    ("weighted_cross_entropy", {"label_smoothing": 0.3, "pos_weight": 0.4}),
    ("balanced_cross_entropy", {"label_smoothing": 1.0}),
    ("topk_cross_entropy", {"label_smoothing": 0.2}),
    ("hausdorff_er", {"alpha": 1.0, "erosions": 2}),
    ("hausdorff_er", {"renormalize": True}),
    ("hausdorff_cv", {"alpha": 1.0, "radii": (0.9, 1.3)}),
    ("combo", {"alpha": 0.2, "beta": 0.8, "smooth_nr": 0.1}),
    ("exponential_logarithmic", {"gamma": 1.5, "dice_weight": 0.3, "cross_entropy_weight": 0.9}),
    ("exponential_logarithmic", {"frequencies": (0.7, 0.2, 0.1)}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{n}-{'-'.join(o)}" for n, o in OPTIONS])
@every_mode
def test_hyper_parameters_equal_the_reference(name: str, options: dict[str, Any], mode: str) -> None:
    drawn = sample(mode, 3, seed=3)
    direction = np.random.default_rng(1).standard_normal(drawn.logits.shape)
    for masked in (False, True):
        mask = mask_like(drawn.index) if masked else None
        value, gradient = value_and_gradient(
            make(name, mode, **options), drawn.logits, drawn.index, mask=mask, spacing=drawn.spacing
        )
        keywords = SMALL.get(name, {}) | {"mask": to_numpy(mask), "spacing": drawn.spacing, **options}
        assert_close(value, expected(name, mode, drawn.logits, drawn.index, **keywords))
        derivative = directional_derivative(
            name, drawn.logits.numpy(), direction, drawn.index.numpy(), mode=mode, **keywords
        )
        size = np.abs(gradient.numpy() * direction).sum()
        assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


@every_mode
def test_erosion_equals_the_reference_on_thick_errors_and_half_ratios(mode: str) -> None:
    drawn = sample(mode, 3, structured=False)
    # Wrong nearly everywhere, so that errors survive many steps and a stretched map does not start at 0.
    wrong = drawn.maps.roll(1, 1)
    logits = 16 * wrong - 8 + drawn.logits if mode != "probabilities" else 0.98 * wrong + 0.01
    for spacing in ((1.2, 0.8, 2.0), [(3.0, 1.0, 1.5), (1.0, 1.0, 1.0)]):
        for renormalize, erosions, masked in itertools.product((False, True), (1, 3, 6), (False, True)):
            mask = mask_like(drawn.index) if masked else None
            options = {"erosions": erosions, "renormalize": renormalize}
            value = make("hausdorff_er", mode, **options)(logits, drawn.index, spacing=spacing, mask=mask)
            keywords = {"spacing": spacing, "mask": mask, **options}
            assert_close(value, expected("hausdorff_er", mode, logits, drawn.index, **keywords))


def test_erosion_stretches_from_the_smallest_error_that_is_left() -> None:
    drawn = sample("sigmoid", 3, channels=1)
    everywhere = 6 + drawn.logits  # wrong in every voxel: even the corners keep an error at the first step
    for masked in (False, True):
        mask = mask_like(drawn.index) if masked else None
        options = {"erosions": 2, "renormalize": True, "mask": mask}
        loss = make("hausdorff_er", "sigmoid", erosions=2, renormalize=True)
        value = loss(everywhere, torch.zeros_like(drawn.index), mask=mask)
        assert_close(value, expected("hausdorff_er", "sigmoid", everywhere, torch.zeros_like(drawn.index), **options))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in CATEGORICAL_ONLY])
def test_one_channel_equals_the_reference(name: str) -> None:
    for mode in ("sigmoid", "probabilities"):
        drawn = sample(mode, 3, channels=1)
        loss = make(name, mode)
        value = loss(drawn.logits, drawn.index, spacing=drawn.spacing)
        assert_close(value, expected(name, mode, drawn.logits, drawn.index, spacing=drawn.spacing))


@every_loss
@every_mode
def test_structures_of_one_voxel_equal_the_reference(name: str, mode: str) -> None:
    drawn = sample(mode, 3, batch=1)
    index = torch.zeros_like(drawn.index)
    index[0, 0, 2, 3, 1], index[0, 0, 4, 1, 3] = 1, 2
    logits = 0.1 * drawn.logits - 2 if mode != "probabilities" else 0.1 * drawn.logits
    right = 6.0 if mode != "probabilities" else 0.9
    logits[0, 1, 1, 5, 2] = logits[0, 2, 4, 2, 3] = logits[0, 1, 2, 3, 1] = right
    if mode == "softmax":
        logits[0, 0] += 2
    for target in (index, torch.zeros_like(index)):
        value = make(name, mode)(logits, target, spacing=drawn.spacing)
        assert_close(value, expected(name, mode, logits, target, spacing=drawn.spacing))


@every_loss
def test_ignored_labels_equal_the_reference(name: str) -> None:
    for ignored in (2, 255):
        drawn = sample("softmax", 3)
        index = torch.where(mask_like(drawn.index, seed=5, share=0.2), torch.tensor(ignored), drawn.index)
        value = make(name, "softmax", ignore_index=ignored)(drawn.logits, index, spacing=drawn.spacing)
        reference = expected(name, "softmax", drawn.logits, index, ignore_index=ignored, spacing=drawn.spacing)
        assert_close(value, reference)


@every_loss
@every_mode
def test_an_item_of_which_nothing_counts_has_the_value_zero(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    mask = mask_like(drawn.index)
    mask[0] = False
    value = make(name, mode)(drawn.logits, drawn.index, mask=mask, spacing=drawn.spacing)
    keywords = {"mask": mask, "spacing": drawn.spacing}
    assert_close(value, expected(name, mode, drawn.logits, drawn.index, **keywords))
    value, gradient = value_and_gradient(make(name, mode), drawn.logits, drawn.index, mask=torch.zeros_like(mask))
    assert value == 0
    assert (gradient == 0).all()


# --- 2: gradcheck --------------------------------------------------------------------------------------------------


@every_loss
@every_mode
def test_gradcheck(name: str, mode: str) -> None:
    drawn = sample(mode, 2, seed=7)
    options = [{}, {"detach_weights": False}] if name == "structural_similarity" else [{}]
    for more in options:
        loss = make(name, mode, **more)
        logits = drawn.logits.clone()
        if mode == "probabilities":
            logits = logits.clamp(0.02, 0.98)
        if name == "hausdorff_er" and mode != "probabilities":
            logits = 3 * logits
        logits.requires_grad_()
        if name == "structural_similarity" and not more:
            # e and f are weights without gradient: hold them fixed, as the definition does.
            _check_fixed_weights(loss, logits, drawn.index)
            continue
        # Fast: along one random direction, as in point 1, but of the loss itself. `make test-all` takes every element.
        assert torch.autograd.gradcheck(
            lambda z, loss=loss: loss(z, drawn.index, spacing=drawn.spacing),
            (logits,),
            eps=1e-7,
            atol=1e-5,
            rtol=1e-4,
            fast_mode=not EVERYTHING,
        )


def _check_fixed_weights(loss: Any, logits: Tensor, index: Tensor) -> None:
    direction = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mode = "softmax" if loss.softmax else "sigmoid" if loss.sigmoid else "probabilities"
    _, gradient = value_and_gradient(loss, logits.detach(), index)
    steps = [
        REFERENCES["structural_similarity"](
            to_numpy(logits + step * direction), to_numpy(index), mode=mode, frozen=to_numpy(logits)
        )
        for step in (1e-6, -1e-6)
    ]
    assert_close((gradient * direction).sum(), (steps[0] - steps[1]) / 2e-6, rtol=1e-5, atol=1e-8)


# --- 3: index, one-hot and soft targets ----------------------------------------------------------------------------


@every_loss
@every_mode
def test_index_and_one_hot_targets_agree_to_the_bit(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    loss = make(name, mode)
    value, gradient = value_and_gradient(loss, drawn.logits.float(), drawn.index, spacing=drawn.spacing)
    others = [drawn.index.to(kind) for kind in (torch.uint8, torch.int16, torch.int32, torch.uint16, torch.float32)]
    for target in [*others, drawn.maps, drawn.maps.bool(), drawn.maps.to(torch.uint8)]:
        other_value, other_gradient = value_and_gradient(loss, drawn.logits.float(), target, spacing=drawn.spacing)
        assert torch.equal(value, other_value)
        assert torch.equal(gradient, other_gradient)


@every_loss
@every_mode
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float64])
def test_a_target_is_not_written_to(name: str, mode: str, kind: torch.dtype) -> None:
    drawn = sample(mode, 3)
    target = drawn.maps.to(kind)
    before = target.clone()
    make(name, mode, include_background=False)(drawn.logits, target)
    assert torch.equal(target, before)


@every_loss
@every_mode
def test_soft_targets(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    generator = torch.Generator().manual_seed(2)
    soft = torch.rand(drawn.maps.shape, generator=generator, dtype=torch.float64)
    if mode == "softmax":
        soft = soft / soft.sum(1, keepdim=True)
    loss = make(name, mode)
    if name in HARD_TARGETS_ONLY:
        with pytest.raises(medloss.InputError, match="target of 0 and 1 only"):
            loss(drawn.logits, soft)
        return
    for background, masked in itertools.product((True, False), (True, False)):
        mask = mask_like(drawn.index) if masked else None
        value = make(name, mode, include_background=background)(drawn.logits, soft, mask=mask)
        reference = expected(name, mode, drawn.logits, soft, include_background=background, mask=mask)
        assert_close(value, reference)


#: Losses of soft targets with an optimum at p = y.
SOFT_LABELS: list[tuple[str, dict[str, Any]]] = [
    ("dice", {}),
    ("dice", {"jaccard": True}),
    ("dice", {"squared_pred": True}),
    ("tversky", {}),
    ("focal_tversky", {}),
    ("log_cosh_dice", {}),
    ("generalized_dice", {}),
    ("generalized_dice", {"w_type": "simple"}),
]


def soft_target(drawn: Any, mode: str) -> Tensor:
    soft = torch.rand(drawn.maps.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return soft / soft.sum(1, keepdim=True) if mode == "softmax" else soft


@pytest.mark.parametrize(("name", "options"), SOFT_LABELS, ids=[f"{n}-{'-'.join(o)}" for n, o in SOFT_LABELS])
@every_mode
def test_soft_labels_equal_the_reference_and_have_their_optimum(name: str, options: dict[str, Any], mode: str) -> None:
    drawn = sample(mode, 3)
    soft = soft_target(drawn, mode)
    direction = np.random.default_rng(1).standard_normal(drawn.logits.shape)
    options = {"soft_label": True, **options}
    for background, masked, weighted, batch in itertools.product((True, False), repeat=4):
        call: dict[str, Any] = {"mask": mask_like(drawn.index)} if masked else {}
        call |= {"voxel_weight": voxel_weight_like(drawn.index)} if weighted else {}
        common = {"include_background": background, "batch": batch, **options}
        value, gradient = value_and_gradient(make(name, mode, **common), drawn.logits, soft, **call)
        keywords = {key: to_numpy(given) for key, given in call.items()} | common
        assert_close(value, expected(name, mode, drawn.logits, soft, **keywords))
        derivative = directional_derivative(name, drawn.logits.numpy(), direction, soft.numpy(), mode=mode, **keywords)
        size = np.abs(gradient.numpy() * direction).sum()
        assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12
    perfect = {"softmax": soft.log(), "sigmoid": soft.logit(), "probabilities": soft}[mode]
    least = make(name, mode, **options)(perfect, soft)
    assert least <= 1e-5
    assert make(name, mode, **options)(0.9 * perfect, soft) > least + 1e-4
    if not options.get("squared_pred"):
        assert make(name, mode, **(options | {"soft_label": False}))(perfect, soft) > 0.05
    # Where y is 0 or 1 nothing changes.
    plain = value_and_gradient(make(name, mode, **(options | {"soft_label": False})), drawn.logits, drawn.index)
    for target in (drawn.index, drawn.maps, drawn.maps.bool()):
        hard = value_and_gradient(make(name, mode, **options), drawn.logits, target)
        assert_close(hard[0], plain[0], rtol=1e-12)
        assert_close(hard[1], plain[1], rtol=1e-9)


def test_soft_labels_as_the_contract_has_them() -> None:
    target = torch.tensor([0.5, 0.8], dtype=torch.float64).view(1, 1, 1, 2)
    other = torch.tensor([0.4, 0.9], dtype=torch.float64).view(1, 1, 1, 2)
    rows: list[tuple[Tensor, dict[str, Any], float]] = [
        (target, {}, 0.315385),
        (target, {"soft_label": True}, 0.0),
        (other, {"soft_label": True}, 0.076923),
        (other, {"soft_label": True, "jaccard": True}, 0.142857),
    ]
    for p, options, value in rows:
        loss = make("dice", "probabilities", smooth_nr=0.0, smooth_dr=0.0, **options)
        probabilities = p.clone().requires_grad_()
        result = loss(probabilities, target)
        assert_close(result, value, rtol=2e-6, atol=1e-12)
        result.backward()
        if p is target and options:  # at the optimum TP has half the slope
            assert_close(probabilities.grad, torch.zeros_like(p), atol=1e-12)


SMOOTHED = ("binary_cross_entropy", "weighted_cross_entropy", "balanced_cross_entropy", "topk_cross_entropy")


@pytest.mark.parametrize("name", SMOOTHED)
@every_mode
def test_label_smoothing_equals_the_reference(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    direction = np.random.default_rng(1).standard_normal(drawn.logits.shape)
    labelled = torch.tensor(LABELLED[0])
    soft = soft_target(drawn, mode)
    for background, reduction, masked, partial, batch in itertools.product(
        (True, False), ("mean", "none"), (False, True), (False, True), (False, True)
    ):
        call: dict[str, Any] = {"mask": mask_like(drawn.index)} if masked else {}
        call |= {"labelled_classes": labelled, "voxel_weight": voxel_weight_like(drawn.index)} if partial else {}
        target = partly_labelled(drawn, labelled) if partial else soft if batch else drawn.index
        options = {"include_background": background, "reduction": reduction, "batch": batch, "label_smoothing": 0.1}
        if not partial and not batch:
            options["ignore_index"] = 1
        value, gradient = value_and_gradient(make(name, mode, **options), drawn.logits, target, **call)
        keywords = {key: to_numpy(given) for key, given in call.items()} | options
        assert_close(value, expected(name, mode, drawn.logits, target, **keywords))
        if reduction == "mean":
            derivative = directional_derivative(
                name, drawn.logits.numpy(), direction, target.numpy(), mode=mode, **keywords
            )
            size = np.abs(gradient.numpy() * direction).sum()
            assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


def test_label_smoothing_as_the_contract_has_it() -> None:
    logits = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log().view(1, 3, 1, 1)
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    assert_close(make("binary_cross_entropy", "softmax", label_smoothing=0.1)(logits, label), 0.463297, rtol=2e-6)
    p = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    loss = make("binary_cross_entropy", "probabilities", label_smoothing=0.1)
    assert_close(loss(p, torch.ones_like(p)), 0.292458, rtol=2e-6)


def test_the_logarithm_is_taken_per_item_and_class() -> None:
    label = torch.tensor([[[[1, 0, 0, 0, 0]]]])
    logits = 40.0 * label - 20
    logits[..., 3] = 20
    value = make("log_hausdorff_dt", "sigmoid")(logits, label, spacing=(1.0, 0.5))
    assert_close(value, 0.405465, rtol=2e-6)
    drawn = sample("softmax", 3)
    for reduction in ("mean", "sum", "none"):
        options: dict[str, Any] = {"reduction": reduction, "weight": [0.5, 2.0, 1.5], "one_sided": True}
        each = make("hausdorff_dt", "softmax", reduction="none", one_sided=True)(drawn.logits, drawn.index)
        values = each.log1p() * torch.tensor([0.5, 2.0, 1.5]).view(1, 3, 1, 1, 1)
        values = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
        for name, more in (("log_hausdorff_dt", {}), ("hausdorff_dt", {"log": True})):
            assert_close(make(name, "softmax", **options, **more)(drawn.logits, drawn.index), values, rtol=1e-12)


# --- 4: masks ------------------------------------------------------------------------------------------------------


@every_loss
@every_mode
def test_what_stands_under_a_mask_changes_nothing(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    mask = mask_like(drawn.index)
    loss = make(name, mode)
    value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, mask=mask, spacing=drawn.spacing)
    assert (gradient[~mask.expand_as(gradient)] == 0).all()
    for rubbish in (float("nan"), 1e4, float("inf")):
        dirty = torch.where(mask, drawn.logits, torch.tensor(rubbish, dtype=torch.float64))
        other, other_gradient = value_and_gradient(loss, dirty, drawn.index, mask=mask, spacing=drawn.spacing)
        assert torch.equal(value, other)
        assert torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in LOOKS_AROUND])
@every_mode
def test_a_mask_leaves_the_remaining_voxels_alone(name: str, mode: str) -> None:
    drawn = sample(mode, 3, batch=1)
    mask = mask_like(drawn.index)
    value, gradient = value_and_gradient(make(name, mode), drawn.logits, drawn.index, mask=mask)
    kept = mask.flatten()
    left = drawn.logits.flatten(2)[:, :, kept][:, :, None]
    left_index = drawn.index.flatten(2)[:, :, kept][:, :, None]
    other, other_gradient = value_and_gradient(make(name, mode), left, left_index)
    assert_close(value, other, rtol=1e-10)
    assert_close(gradient.flatten(2)[:, :, kept], other_gradient[:, :, 0], rtol=1e-10)


# --- partial labels --------------------------------------------------------------------------------------------------

#: By item and class; in the second, no item labels class 2, and the first item has nothing but background.
LABELLED = [[[True, True, False], [True, False, True]], [[True, False, False], [True, True, False]]]


def partly_labelled(drawn: Any, labelled: Tensor) -> Tensor:
    """The index map of someone who annotated the labelled classes alone."""
    known = labelled.gather(1, drawn.index.flatten(1)).view(drawn.index.shape)
    return torch.where(known, drawn.index, 0)


@every_loss
@every_mode
@both_dims
def test_partial_labels_equal_the_reference(name: str, mode: str, dims: int) -> None:
    drawn = sample(mode, dims)
    direction = np.random.default_rng(0).standard_normal(drawn.logits.shape)
    for labels, background, reduction, masked, batch in itertools.product(
        LABELLED, (True, False), ("mean", "sum", "none"), (False, True), (False, True)
    ):
        if (reduction != "mean" and masked + batch > 1) or (dims == 3 and masked + batch + background != 1):
            continue
        labelled = torch.tensor(labels)
        index = partly_labelled(drawn, labelled)
        mask = mask_like(drawn.index) if masked else None
        options: dict[str, Any] = {"include_background": background, "reduction": reduction, "batch": batch}
        if masked:
            options["weight"] = class_weights(name, mode, background)
        call = {"mask": mask, "spacing": drawn.spacing, "labelled_classes": labelled}
        value, gradient = value_and_gradient(make(name, mode, **options), drawn.logits, index, **call)
        keywords = {key: to_numpy(given) for key, given in call.items()} | options
        assert_close(value, expected(name, mode, drawn.logits, index, **keywords))
        if reduction == "mean":
            keywords = SMALL.get(name, {}) | keywords
            derivative = directional_derivative(
                name, drawn.logits.numpy(), direction, index.numpy(), mode=mode, **keywords
            )
            size = np.abs(gradient.numpy() * direction).sum()
            assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


@every_loss
@every_mode
@both_dims
def test_channels_last_and_bfloat16_logits_are_those_of_float32_planes(name: str, mode: str, dims: int) -> None:
    drawn = sample(mode, dims)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    short = drawn.logits.bfloat16()
    loss = make(name, mode)
    value, gradient = value_and_gradient(loss, short.float(), drawn.index, spacing=drawn.spacing)
    for logits in (short, short.contiguous(memory_format=layout), short.float().contiguous(memory_format=layout)):
        other, other_gradient = value_and_gradient(loss, logits, drawn.index, spacing=drawn.spacing)
        assert_close(other, value, rtol=2e-6)
        assert other_gradient.dtype == logits.dtype
        largest = float(gradient.abs().max())
        half = logits.dtype == torch.bfloat16
        assert_close(
            other_gradient.float(), gradient, rtol=2**-7 if half else 2e-5, atol=largest * (1e-3 if half else 1e-6)
        )


@every_loss
@every_mode
def test_all_classes_labelled_equals_none_given_to_the_bit(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    everything = torch.ones(2, 3, dtype=torch.bool)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for reduction, batch in (("mean", False), ("mean", True), ("none", False)):
            loss = make(name, mode, reduction=reduction, batch=batch)
            logits = drawn.logits.to(dtype)
            value, gradient = value_and_gradient(loss, logits, drawn.index)
            other, other_gradient = value_and_gradient(loss, logits, drawn.index, labelled_classes=everything)
            assert torch.equal(value, other)
            assert torch.equal(gradient, other_gradient)


@every_loss
@every_mode
def test_an_unlabelled_class_is_the_background_or_no_channel(name: str, mode: str) -> None:
    drawn = sample(mode, 3, batch=1)
    labelled = torch.tensor([[True, True, False]])
    index = partly_labelled(drawn, labelled)
    logits = drawn.logits.clone().requires_grad_()
    for background, reduction in ((True, "mean"), (False, "mean"), (True, "sum")):
        loss = make(name, mode, include_background=background, reduction=reduction)
        fewer = logits[:, :2]
        if mode == "softmax":
            fewer = torch.cat([logits[:, [0, 2]].logsumexp(1, keepdim=True), logits[:, 1:2]], 1)
        target = torch.cat([index == 0, index == 1], 1).double()
        value = loss(logits, index, spacing=drawn.spacing, labelled_classes=labelled)
        other = loss(fewer, target, spacing=drawn.spacing)
        assert_close(value, other, rtol=1e-9)
        gradients = [torch.autograd.grad(v, logits)[0] for v in (value, other)]
        assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-11)


@every_loss
@every_mode
def test_partial_labels_keep_masks_and_extremes_out(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    labelled = torch.tensor(LABELLED[0])
    index, mask = partly_labelled(drawn, labelled), mask_like(drawn.index)
    keywords = {"mask": mask, "labelled_classes": labelled, "spacing": drawn.spacing}
    for dtype in (torch.float64, torch.float32, torch.float16):
        loss, logits = make(name, mode), drawn.logits.to(dtype)
        value, gradient = value_and_gradient(loss, logits, index, **keywords)
        assert (gradient[~mask.expand_as(gradient)] == 0).all()
        dirty = torch.where(mask, logits, torch.tensor(float("nan"), dtype=dtype))
        other, other_gradient = value_and_gradient(loss, dirty, index, **keywords)
        assert torch.equal(value, other)
        assert torch.equal(gradient, other_gradient)
        for scale in (-1e4, 1e4):
            if mode != "probabilities":
                value, gradient = value_and_gradient(loss, (scale * logits.sign()).to(dtype), index, **keywords)
            assert torch.isfinite(value) and torch.isfinite(gradient).all()
    if mode == "softmax":
        drawn.logits[1, 1, 3, 3, 2] = float("nan")  # of an unlabelled class: it is part of the background
        assert torch.isnan(make(name, mode)(drawn.logits, index, labelled_classes=labelled))


@every_loss
@every_mode
def test_an_unlabelled_class_zero(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    labelled = torch.tensor([[False, True, True], [True, True, False]])
    index = partly_labelled(drawn, labelled)
    loss = make(name, mode)
    value = loss(drawn.logits, index, labelled_classes=labelled)
    if mode == "softmax":  # the background always counts
        every = labelled | torch.tensor([True, False, False])
        assert torch.equal(value, loss(drawn.logits, index, labelled_classes=every))
        return
    maps = (index == torch.arange(3).view(1, 3, 1, 1, 1)) & labelled.view(2, 3, 1, 1, 1)
    for target in (index, maps):  # label 0 says that a voxel is of no other class
        value = loss(drawn.logits, target, labelled_classes=labelled)
        assert_close(value, expected(name, mode, drawn.logits, maps, labelled_classes=labelled))


@pytest.mark.parametrize("name", NEEDS_MAPS)
@every_mode
def test_the_distance_map_of_an_unlabelled_class_does_not_matter(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    labelled = torch.tensor(LABELLED[0])
    index = partly_labelled(drawn, labelled)
    maps = medloss.distance.signed_distance_map(drawn.maps, drawn.spacing)
    other = torch.where(labelled.view(2, 3, 1, 1, 1), maps, 5.0)
    values = [
        make(name, mode)(drawn.logits, index, spacing=drawn.spacing, labelled_classes=labelled, distance_map=given)
        for given in (maps, other)
    ]
    assert torch.equal(*values)


READS_DISTANCES = [name for name in LOSSES if "distance_map" in medloss.LOSSES[name].cls.reads_maps]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in READS_DISTANCES), ("boundary", {"normalize": True})],
)
@every_mode
def test_nan_of_a_distance_map_stays_under_a_mask(name: str, options: dict[str, Any], mode: str) -> None:
    drawn = sample(mode, 3)
    mask = mask_like(drawn.index)
    maps = medloss.distance.signed_distance_map(drawn.maps, drawn.spacing)
    found = [
        value_and_gradient(
            make(name, mode, **options), drawn.logits, drawn.index if mode == "softmax" else drawn.maps, mask=mask,
            spacing=drawn.spacing, distance_map=torch.where(mask, maps, hidden),
        )
        for hidden in (0.0, torch.nan)
    ]  # fmt: skip
    assert found[0][0].isfinite()
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("name", READS_DISTANCES)
@every_mode
@pytest.mark.parametrize("side", [-1, 1])
def test_nan_of_a_distance_map_comes_out_where_it_counts(name: str, mode: str, side: int) -> None:
    drawn = sample(mode, 3)
    target = drawn.index if mode == "softmax" else drawn.maps
    maps = medloss.distance.signed_distance_map(drawn.maps, drawn.spacing)
    loss = make(name, mode, reduction="none")
    maps[0, 1][side * maps[0, 1] > 0] = torch.nan
    value = loss(drawn.logits, target, spacing=drawn.spacing, distance_map=maps)
    there = maps.isnan()

    def over_classes(found: Tensor) -> Tensor:
        return found.any(1, True) if mode == "softmax" else found

    if name == "shape_aware":  # the predicted contour runs through it, and matters where the prediction is wrong
        if mode == "softmax":
            hard = drawn.logits.argmax(1, True) == torch.arange(3).view(1, 3, 1, 1, 1)
        else:
            hard = drawn.logits > (0 if mode == "sigmoid" else 0.5)
        expected = over_classes(there.any((2, 3, 4), True)) & over_classes(hard != drawn.maps)
    else:
        expected = over_classes(there) if name in VOXELWISE else there.any((2, 3, 4), True)
    assert expected.any()
    assert torch.equal(value.isnan(), expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in CATEGORICAL_ONLY])
def test_no_labelled_channel_at_all_is_zero(name: str) -> None:
    drawn = sample("sigmoid", 3)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for options in ({}, {"batch": True}, {"reduction": "none"}, {"include_background": False}):
        value, gradient = value_and_gradient(
            make(name, "sigmoid", **options), drawn.logits, torch.zeros_like(drawn.index), labelled_classes=nothing
        )
        assert (value == 0).all()
        assert (gradient == 0).all()


def test_partial_labels_as_the_contract_has_them() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2]], dtype=torch.float64).log().T.view(1, 3, 1, 2)
    index, labelled = torch.tensor([[[[0, 1]]]]), torch.tensor([[True, True, False]])
    for name, value in (("binary_cross_entropy", 0.289909), ("dice", 0.166852)):
        loss = make(name, "softmax")(logits, index, labelled_classes=labelled)
        assert_close(loss, value, rtol=2e-6)


# --- voxel weights -------------------------------------------------------------------------------------------------


def voxel_weight_like(index: Tensor) -> Tensor:
    """Random weights, some of them 0."""
    weight = torch.rand(index.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.where(weight < 0.2, 0.0, 3 * weight)


@every_loss
@every_mode
@both_dims
def test_voxel_weights_equal_the_reference(name: str, mode: str, dims: int) -> None:
    drawn = sample(mode, dims)
    direction = np.random.default_rng(0).standard_normal(drawn.logits.shape)
    weight, labelled = voxel_weight_like(drawn.index), torch.tensor(LABELLED[0])
    for background, reduction, masked, batch, partial in itertools.product(
        (True, False), ("mean", "sum", "none"), (False, True), (False, True), (False, True)
    ):
        if (reduction != "mean" and masked + batch + partial > 1) or (dims == 3 and masked + batch + background != 1):
            continue
        index = partly_labelled(drawn, labelled) if partial else drawn.index
        call: dict[str, Any] = {"voxel_weight": weight, "spacing": drawn.spacing}
        call |= {"mask": mask_like(index)} if masked else {}
        call |= {"labelled_classes": labelled} if partial else {}
        options: dict[str, Any] = {"include_background": background, "reduction": reduction, "batch": batch}
        if masked:
            options["weight"] = class_weights(name, mode, background)
        if masked and not batch:
            options["ignore_index"] = 2
        value, gradient = value_and_gradient(make(name, mode, **options), drawn.logits, index, **call)
        keywords = {key: to_numpy(given) for key, given in call.items()} | options
        assert_close(value, expected(name, mode, drawn.logits, index, **keywords))
        if reduction == "mean":
            derivative = directional_derivative(
                name, drawn.logits.numpy(), direction, index.numpy(), mode=mode, **(SMALL.get(name, {}) | keywords)
            )
            size = np.abs(gradient.numpy() * direction).sum()
            assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dice", {"squared_pred": True}),
        ("dice", {"jaccard": True, "squared_pred": True}),
        ("focal", {"gamma": 0.5}),
        ("sensitivity_specificity", {"squared": False}),
        ("hausdorff_dt", {"one_sided": True}),
        ("hausdorff_er", {"renormalize": True}),
        ("structural_similarity", {"detach_weights": False}),
        ("generalized_dice", {"w_type": "simple", "batch": True}),
        ("generalized_wasserstein_dice", {"dist_matrix": ((0, 2, 2), (2, 0, 0.7), (2, 0.7, 0))}),
        ("generalized_wasserstein_dice", {"weighting_mode": "GDL", "batch": True}),
        ("topk_cross_entropy", {"k": 37.5, "batch": True}),
        ("lovasz", {"classes": "all"}),
        ("lovasz", {"classes": "present", "batch": True}),
        ("unified_focal", {"asymmetric": False, "batch": True}),
        ("l1_ace", {"binning": "soft", "num_bins": 3}),
        ("l1_ace", {"num_bins": 3, "ignore_empty_classes": True}),
        ("cldice", {"iter_": 1, "batch": True}),
        ("boundary", {"subtract_minimum": True, "normalize": True}),
        ("instance_wise", {"cells": "blob"}),
        ("instance_wise", {"loss": "binary_cross_entropy"}),
    ],
)
@every_mode
def test_voxel_weights_equal_the_reference_with_options(name: str, options: dict[str, Any], mode: str) -> None:
    drawn = sample(mode, 3, seed=3)
    direction = np.random.default_rng(1).standard_normal(drawn.logits.shape)
    call = {"voxel_weight": voxel_weight_like(drawn.index), "spacing": [(3.0, 1.0, 0.6), (2.0, 0.5, 1.1)]}
    value, gradient = value_and_gradient(make(name, mode, **options), drawn.logits, drawn.index, **call)
    keywords = SMALL.get(name, {}) | {key: to_numpy(given) for key, given in call.items()} | options
    assert_close(value, expected(name, mode, drawn.logits, drawn.index, **keywords))
    derivative = directional_derivative(
        name, drawn.logits.numpy(), direction, drawn.index.numpy(), mode=mode, **keywords
    )
    size = np.abs(gradient.numpy() * direction).sum()
    assert abs((gradient.numpy() * direction).sum() - derivative) <= 1e-6 * size + 1e-12


@every_loss
@every_mode
def test_voxel_weights_of_one_equal_none_given(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    for dtype in (torch.float64, torch.float32):
        for reduction, batch in (("mean", False), ("mean", True), ("none", False)):
            loss, logits = make(name, mode, reduction=reduction, batch=batch), drawn.logits.to(dtype)
            value, gradient = value_and_gradient(loss, logits, drawn.index, spacing=drawn.spacing)
            ones = torch.ones_like(drawn.index)  # of any type
            other, other_gradient = value_and_gradient(
                loss, logits, drawn.index, spacing=drawn.spacing, voxel_weight=ones
            )
            close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-6}
            assert_close(value, other, **close)
            assert_close(gradient, other_gradient, **close)


# A mask also changes the skeleton of what is around it.
@pytest.mark.parametrize("name", [n for n in LOSSES if medloss.LOSSES[n].family == "region" and n != "cldice"])
@every_mode
def test_a_voxel_counts_as_often_as_it_weighs(name: str, mode: str) -> None:
    drawn = sample(mode, 3, batch=1)
    mask = mask_like(drawn.index)
    for batch in (False, True):
        loss = make(name, mode, batch=batch)
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, voxel_weight=mask.half())
        other, other_gradient = value_and_gradient(loss, drawn.logits, drawn.index, mask=mask)
        assert_close(value, other, rtol=1e-12)
        assert_close(gradient, other_gradient, rtol=1e-10)
        # A volume twice, the second time counting three times, is the volume four times.
        twice = [torch.cat([part, part, part, part], 2) for part in (drawn.logits, drawn.index)]
        weight = torch.cat([torch.ones_like(mask), 3 * torch.ones_like(mask)], 2)
        both = [torch.cat([part, part], 2) for part in (drawn.logits, drawn.index)]
        assert_close(loss(*both, voxel_weight=weight), loss(*twice), rtol=1e-12)


def test_one_plus_the_penalty_map_makes_cross_entropy_a_distance_penalty() -> None:
    drawn = sample("softmax", 3)
    weight = 1 + medloss.distance.penalty_map(drawn.maps[:, 1:], drawn.spacing).amax(1, keepdim=True)
    for options in ({}, {"reduction": "none"}, {"include_background": False}):
        value = make("binary_cross_entropy", "softmax", **options)(drawn.logits, drawn.index, voxel_weight=weight)
        other = make("distance_penalty", "softmax", **options)(drawn.logits, drawn.index, spacing=drawn.spacing)
        assert_close(value, other)


@every_loss
@every_mode
def test_nan_comes_out_from_voxels_of_weight_zero_but_not_from_masked_ones(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    drawn.logits[1, 2, 3, 3, 2] = float("nan")
    weight = torch.ones(drawn.index.shape)
    weight[1, 0, 3, 3, 2] = 0
    for reduction in ("mean", "none"):
        loss = make(name, mode, reduction=reduction)
        assert torch.isnan(loss(drawn.logits, drawn.index, voxel_weight=weight)).any()
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, voxel_weight=weight, mask=weight)
        assert not torch.isnan(value).any() and not torch.isnan(gradient).any()
        weight_with_nan = torch.where(weight == 0, float("nan"), weight)
        assert torch.equal(value, loss(drawn.logits, drawn.index, voxel_weight=weight_with_nan, mask=weight))


@every_loss
@every_mode
def test_an_item_whose_voxels_weigh_nothing_has_no_value_and_no_gradient(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    weight = torch.ones(drawn.index.shape).requires_grad_()  # which gets no gradient
    with torch.no_grad():
        weight[0] = 0
    accepted = medloss.create.accepted_arguments(medloss.LOSSES[name].cls) or set()
    smooth = {"smooth_nr": 0.0, "smooth_dr": 0.0} if "smooth_nr" in accepted else {}
    smooth |= {"smooth": 0.0} if name == "cldice" else {}
    for batch in (False, True):
        loss = make(name, mode, reduction="sum", batch=batch, **smooth)
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, voxel_weight=weight)
        assert (gradient[0] == 0).all()
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        assert gradient[1].abs().max() > 0
        value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, voxel_weight=0 * weight)
        assert value == 0
        assert (gradient == 0).all()
    assert weight.grad is None


def test_voxel_weights_as_the_contract_has_them() -> None:
    logits = torch.tensor([0.8, 0.3], dtype=torch.float64).view(1, 1, 1, 2)
    target, weight = torch.tensor([[[[1, 0]]]]), torch.tensor([[[[2, 1]]]])
    entropy = make("binary_cross_entropy", "probabilities")(logits, target, voxel_weight=weight)
    dice = make("dice", "probabilities", smooth_nr=0.0, smooth_dr=0.0)(logits, target, voxel_weight=weight)
    assert_close(entropy, 0.401481, rtol=2e-6)
    assert_close(dice, 0.179487, rtol=2e-6)


# --- 5: symmetries -------------------------------------------------------------------------------------------------


@every_loss
@every_mode
def test_permuting_foreground_classes_changes_nothing(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    loss = make(name, mode)
    swapped_index = torch.tensor([0, 2, 1])[drawn.index]
    value = loss(drawn.logits, drawn.index, spacing=drawn.spacing)
    assert_close(value, loss(drawn.logits[:, [0, 2, 1]], swapped_index, spacing=drawn.spacing), rtol=1e-10)


@every_loss
@every_mode
def test_flips_and_transpositions_change_nothing_but_the_order(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    loss = make(name, mode)
    value, gradient = value_and_gradient(loss, drawn.logits, drawn.index, spacing=drawn.spacing)
    flip = lambda tensor: tensor.flip(2, 4)  # noqa: E731
    turn = lambda tensor: tensor.permute(0, 1, 4, 2, 3)  # noqa: E731
    spacing = drawn.spacing
    for move, moved_spacing in ((flip, spacing), (turn, (spacing[2], spacing[0], spacing[1]))):
        other, other_gradient = value_and_gradient(loss, move(drawn.logits), move(drawn.index), spacing=moved_spacing)
        assert_close(value, other, rtol=2e-6)
        assert_close(move(gradient), other_gradient, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("structural_similarity", "exponential_logarithmic")])
@every_mode
def test_items_do_not_know_of_each_other(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    loss = make(name, mode)
    spacings = [(3.0, 1.0, 0.6), (2.0, 0.5, 1.1)]
    whole = loss(drawn.logits, drawn.index, spacing=spacings)
    parts = [loss(drawn.logits[[i]], drawn.index[[i]], spacing=spacings[i]) for i in range(2)]
    assert_close(whole, torch.stack(parts).mean(), rtol=1e-10)


# --- 6: right predictions are best ---------------------------------------------------------------------------------


#: By default a perfect prediction's value is negative, or a structure as thick as here has no centre line.
PERFECT_IS_ZERO_WITH: dict[str, dict[str, Any]] = {"boundary": {"subtract_minimum": True}, "cldice": {"iter_": 8}}


@every_loss
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_a_perfect_prediction_is_zero_and_a_wrong_region_is_more(name: str, mode: str) -> None:
    index = torch.zeros(1, 1, 20, 20, 20, dtype=torch.long)
    index[..., 3:17, 3:17, 3:17] = 1
    maps = torch.cat([index == 0, index == 1], 1).float()
    loss = medloss.LOSSES[name].cls(**{mode: True}, **PERFECT_IS_ZERO_WITH.get(name, {}))
    perfect = loss(40 * maps - 20, index)
    assert perfect <= (2e-2 if name == "exponential_logarithmic" else 1e-3)
    missed = index.clone()
    missed[..., 3:17, 3:17, 3:12] = 0
    wrong = torch.cat([missed == 0, missed == 1], 1).float()
    assert loss(40 * wrong - 20, index) > perfect + 1e-3


def _slab(first: int, last: int) -> Tensor:
    label = torch.zeros(1, 1, 12, 12)
    label[..., first:last, :] = 1
    return label


#: Wrong predictions that cost nothing, as the docstrings say: loss, arguments, p of class 1, label.
COSTS_NOTHING: dict[str, tuple[str, dict[str, Any], Tensor, Tensor]] = {
    "a class that is absent": ("lovasz", {"include_background": False}, _slab(3, 9), _slab(0, 0)),
    "the prevalence everywhere": ("l1_ace", {}, 0.5 * _slab(0, 12), _slab(0, 6)),
    "foreground everywhere": ("skeleton_recall", {}, _slab(0, 12), _slab(3, 9)),
    "the right centre line": ("cldice", {"include_background": False}, _slab(5, 6), _slab(4, 7)),
    "no border in the reference": ("boundary", {}, _slab(3, 9), _slab(0, 0)),
}


@pytest.mark.parametrize("case", COSTS_NOTHING)
def test_what_costs_nothing(case: str) -> None:
    name, arguments, p, label = COSTS_NOTHING[case]
    logits = torch.cat([1 - p, p], 1).clamp(min=1e-9).log()
    assert abs(make(name, "softmax", **arguments)(logits, label.long()).item()) < 1e-3
    # Cross entropy would tell.
    assert make("binary_cross_entropy", "softmax")(logits, label.long()) > 0.1


def test_a_perfect_prediction_is_negative_for_the_boundary_loss() -> None:
    label = _slab(3, 9)
    value = make("boundary", "sigmoid")(40 * label - 20, label)
    inside = -medloss.distance.signed_distance_map(label).clamp(max=0)
    assert_close(value, -inside.mean(), rtol=1e-5)


# --- 7: extremes ---------------------------------------------------------------------------------------------------


def _extreme_targets(size: int) -> dict[str, Tensor]:
    empty = torch.zeros(1, 1, size, size, size, dtype=torch.uint8)
    one = empty.clone()
    one[0, 0, size // 2, 1, size - 1] = 1
    half = empty.clone()
    half[:, :, : size // 2] = 1
    return {"empty": empty, "full": torch.ones_like(empty), "one voxel": one, "half": half}


@every_loss
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_logits_give_finite_values_and_gradients(name: str, mode: str, dtype: torch.dtype) -> None:
    loss = make(name, mode)
    generator = torch.Generator().manual_seed(0)
    for kind, target in _extreme_targets(12).items():
        signs = torch.randint(0, 2, (1, 2, 12, 12, 12), generator=generator) * 2.0 - 1
        for logits in (1e4 * signs, torch.full_like(signs, 1e4), torch.full_like(signs, -1e4)):
            value, gradient = value_and_gradient(loss, logits.to(dtype), target)
            assert value.dtype == torch.float32, kind
            assert torch.isfinite(value), kind
            assert gradient.dtype == dtype
            assert torch.isfinite(gradient).all(), kind


@every_loss
def test_large_volumes_stay_finite_in_half_precision_and_under_autocast(name: str) -> None:
    loss = medloss.LOSSES[name].cls(**{"softmax" if name in CATEGORICAL_ONLY else "sigmoid": True})
    # 41^3 voxels are more than float16 counts; Triton's interpreter would take minutes for 128^3.
    interpreted = medloss.kernels.in_use() == "triton" and not torch.cuda.is_available()
    for kind, target in _extreme_targets(128 if EVERYTHING and not interpreted else 41).items():
        logits = torch.where(target > 0, 1e4, -1e4).roll((5, 3), (2, 4))
        if name in CATEGORICAL_ONLY:
            logits = torch.cat([-logits, logits], 1)
        for dtype, autocast in ((torch.float16, False), (torch.bfloat16, True)):
            if autocast and kind != "one voxel":
                continue  # one kind suffices: inside the loss autocast is off
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value, gradient = value_and_gradient(loss, logits.to(dtype), target, spacing=(3.0, 1.0, 0.8))
            assert value.dtype == torch.float32
            assert torch.isfinite(value), kind
            assert torch.isfinite(gradient).all(), kind


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_losses_stay_finite_for_any_exponent(gamma: float) -> None:
    target = _extreme_targets(8)["half"]
    logits = torch.where(torch.cat([target == 0, target == 1], 1), 1e4, -1e4)
    for mode in ("softmax", "sigmoid"):
        for signs in (logits, -logits):
            value, gradient = value_and_gradient(make("focal", mode, gamma=gamma), signs, target)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


@every_loss
@every_mode
def test_nan_comes_out_as_nan(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    drawn.logits[1, 2, 3, 3, 2] = float("nan")
    assert torch.isnan(make(name, mode)(drawn.logits, drawn.index))


@every_loss
def test_a_constant_value_is_still_attached_to_the_graph(name: str) -> None:
    logits = torch.full((1, 2, 6, 6, 6), 30.0).requires_grad_()
    target = torch.cat([torch.zeros(1, 1, 6, 6, 6), torch.ones(1, 1, 6, 6, 6)], 1)
    make(name, "softmax" if name in CATEGORICAL_ONLY else "sigmoid")(logits, target).backward()
    assert logits.grad is not None


# --- 8: spacing ----------------------------------------------------------------------------------------------------

#: The exponent with which a loss grows with the spacing, where it is a pure power.
GROWTH = {"hausdorff_dt": 2.0, "boundary": 1.0}


@every_loss
@every_mode
def test_spacing_scales_as_the_definition_says(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    double = tuple(2 * s for s in drawn.spacing)
    value = make(name, mode)(drawn.logits, drawn.index, spacing=drawn.spacing)
    scaled = {"radii": (2.0, 3.8)} if name == "hausdorff_cv" else {}
    larger = make(name, mode, **scaled)(drawn.logits, drawn.index, spacing=double)
    if name == "shape_aware":
        entropy = make("binary_cross_entropy", mode)(drawn.logits, drawn.index)
        assert_close(larger - entropy, 2 * (value - entropy), rtol=1e-6)
    elif name == "hausdorff_cv":
        assert_close(larger, 4 * value, rtol=1e-6)
    elif name == "log_hausdorff_dt":
        # The logarithm stands between: of each item and class.
        each = [
            make(name, mode, reduction="none")(drawn.logits, drawn.index, spacing=s) for s in (drawn.spacing, double)
        ]
        assert_close(each[1].expm1(), 4 * each[0].expm1(), rtol=1e-6)
    else:
        assert_close(larger, 2 ** GROWTH.get(name, 0.0) * value, rtol=1e-6)


@every_loss
def test_a_loss_says_whether_it_uses_the_spacing(name: str) -> None:
    drawn = sample("softmax", 3)
    if name == "instance_wise":
        drawn.index[:] = 0
        drawn.index[..., 0, 0, 0] = drawn.index[..., -1, 3, 2] = 1
    loss = make(name, "softmax")
    # Of different ratios: some losses count whole steps, or do not see a common factor.
    values = {loss(drawn.logits, drawn.index, spacing=s).item() for s in ((1.0, 1.0, 1.0), (3.0, 1.0, 0.6))}
    assert (len(values) > 1) == loss.uses_spacing


@every_loss
@every_mode
def test_unit_spacing_equals_none(name: str, mode: str) -> None:
    drawn = sample(mode, 3)
    loss = make(name, mode)
    assert torch.equal(loss(drawn.logits, drawn.index), loss(drawn.logits, drawn.index, spacing=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("name", [n for n in LOOKS_AROUND if n not in SINGLE_CELLS])
def test_a_wrong_axis_order_changes_the_value(name: str) -> None:
    drawn = sample("softmax", 3, seed=4)
    drawn.logits = 40 * drawn.maps.roll((2, 1), (2, 3)) - 20
    loss = make(name, "softmax", **({"radii": (2.1,)} if name == "hausdorff_cv" else {}))
    spacing = (3.0, 2.0, 1.0)
    values = {
        round(loss(drawn.logits, drawn.index, spacing=order).item(), 8) for order in itertools.permutations(spacing)
    }
    assert len(values) > 1
    right = expected(
        name,
        "softmax",
        drawn.logits,
        drawn.index,
        spacing=spacing,
        **({"radii": (2.1,)} if name == "hausdorff_cv" else {}),
    )
    assert_close(loss(drawn.logits, drawn.index, spacing=spacing), right)
    assert abs(loss(drawn.logits, drawn.index, spacing=spacing[::-1]).item() - right) > 1e-6


@every_loss
def test_every_loss_takes_every_keyword(name: str) -> None:
    drawn = sample("softmax", 3)
    maps = medloss.distance.signed_distance_map(drawn.maps, SPACING[3])
    loss = make(name, "softmax")
    plain = loss(drawn.logits, drawn.index, spacing=SPACING[3])
    # Given maps and those that a loss computes agree.
    for first in (0, 1) if name in WITHOUT_BACKGROUND else (0,):
        keywords = {
            "distance_map": maps,
            "skeleton_map": medloss.maps.tube_map(drawn.maps, SPACING[3])[:, first:],
            "instance_map": medloss.maps.instance_map(drawn.maps, SPACING[3])[:, first:],
        }
        if first:
            keywords["distance_map"] = maps[:, 1:]
        value = loss(drawn.logits, drawn.index, mask=torch.ones_like(drawn.index), spacing=SPACING[3], **keywords)
        assert_close(value, plain)


# --- 9: the module -------------------------------------------------------------------------------------------------


# How many instances there are depends on the data.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "instance_wise"])
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    drawn = sample("softmax", 3)
    loss = make(name, "softmax")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits, labelled = drawn.logits.float(), torch.tensor(LABELLED[0])
    more = {"labelled_classes": labelled, "voxel_weight": voxel_weight_like(drawn.index)}
    calls = [(drawn.index, {}), (partly_labelled(drawn, labelled), more)]
    for index, keywords in calls:
        value, gradient = value_and_gradient(loss, logits, index, spacing=drawn.spacing, **keywords)
        other, other_gradient = value_and_gradient(compiled, logits, index, spacing=drawn.spacing, **keywords)
        assert_close(value, other, rtol=1e-5)
        assert_close(gradient, other_gradient, rtol=1e-4, atol=1e-7)


@every_loss
def test_copies_and_pickles(name: str) -> None:
    drawn = sample("softmax", 3)
    weights = class_weights(name, "softmax", background=True)
    given: list[Any] = [None, None]
    if weights is not None:
        given = [torch.tensor(weights, requires_grad=True), [1.0] * len(weights)]
    loss, restored = (make(name, "softmax", weight=weight) for weight in given)
    value = loss(drawn.logits, drawn.index)
    restored.load_state_dict(loss.state_dict())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), restored):
        assert torch.equal(value, other(drawn.logits, drawn.index))


# --- the registry --------------------------------------------------------------------------------------------------


@every_loss
def test_is_documented_and_has_a_recipe(name: str) -> None:
    entry = medloss.LOSSES[name]
    text = entry.cls.__doc__ or ""
    for part in ("$$", "References:", "Example:", ">>>", "Raises:"):
        assert part in text, f"{entry.cls.__name__}'s docstring has no {part}"
    assert name in REFERENCES
    assert "arXiv" in entry.paper or "doi" in entry.paper
    assert entry.summary
    assert entry.recipe.note
    assert getattr(medloss, entry.cls.__name__) is entry.cls
    assert isinstance(medloss.create_training_loss(name, num_classes=3), torch.nn.Module)
