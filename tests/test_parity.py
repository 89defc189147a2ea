"""The same loss elsewhere: MONAI's and torch's values, where the hyper-parameters agree."""

import itertools
from typing import Any

import pytest
import torch
from loss_inputs import assert_close, sample
from monai import losses as monai_losses

import medloss

PAIRS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dice", {"smooth_nr": 1e-5, "smooth_dr": 1e-5}, "DiceLoss", {}),
    ("dice", {}, "DiceLoss", {"smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("dice", {"squared_pred": True}, "DiceLoss", {"squared_pred": True, "smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("dice", {"jaccard": True}, "DiceLoss", {"jaccard": True, "smooth_nr": 1.0, "smooth_dr": 1.0}),
    ("tversky", {}, "TverskyLoss", {"alpha": 0.3, "beta": 0.7, "smooth_nr": 1.0, "smooth_dr": 1.0}),
]


@pytest.mark.parametrize(("ours", "own", "theirs", "other"), PAIRS)
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_region_losses_equal_monais(
    ours: str, own: dict[str, Any], theirs: str, other: dict[str, Any], mode: str
) -> None:
    for dims, background, reduction, batch in itertools.product(
        (2, 3), (True, False), ("mean", "sum", "none"), (True, False)
    ):
        drawn = sample(mode, dims)
        common = {mode: True, "include_background": background, "reduction": reduction, "batch": batch}
        mine = medloss.create_loss(ours, **common, **own)(drawn.logits, drawn.index)
        monai = getattr(monai_losses, theirs)(to_onehot_y=True, **common, **other)(drawn.logits, drawn.index)
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


def test_gamma_zero_is_cross_entropy_exactly() -> None:
    for mode in ("softmax", "sigmoid"):
        drawn = sample(mode, 3)
        focal = medloss.FocalLoss(gamma=0.0, alpha=None, **{mode: True})(drawn.logits, drawn.index)
        assert torch.equal(focal, medloss.BinaryCrossEntropyLoss(**{mode: True})(drawn.logits, drawn.index))


def test_masks_equal_monais_ignored_labels() -> None:
    drawn = sample("softmax", 3)
    index = drawn.index.clone()
    index[:, :, :2] = 255
    ours = medloss.DiceLoss(softmax=True, ignore_index=255)(drawn.logits, index)
    monai = monai_losses.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=255, smooth_nr=1.0, smooth_dr=1.0)(
        drawn.logits, index
    )
    assert_close(ours, monai)
