"""The logarithm of the Hausdorff distance loss by distance transforms."""

from typing import Unpack

from medloss.base import CommonArguments
from medloss.boundary.base import karimi_recipe
from medloss.boundary.hausdorff_dt import HausdorffDTLoss
from medloss.loss_entry import register


@register(
    "log_hausdorff_dt",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="the logarithm of one plus hausdorff_dt: outliers weigh less",
    recipe=karimi_recipe("log_hausdorff_dt"),
)
class LogHausdorffDTLoss(HausdorffDTLoss):
    r"""The logarithm of one plus the Hausdorff distance loss of each item and class.

    $$\ln(1 + H)$$

    H: the value of `HausdorffDTLoss` per item and class, before class weights and the mean. Where H is large, the
    gradient is divided by 1 + H: an item with a far error does not outweigh the others.

    Replaces MONAI's `LogHausdorffDTLoss`, which takes the logarithm of the mean over items and classes.

    Pitfall: as of `HausdorffDTLoss`.

    Args:
        alpha: the exponent of the distances, > 0. Default 2 (the paper's).
        one_sided: only the reference's map: half the work.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored.

    Raises:
        InputError: `alpha` not positive; a soft target.

    References:
        Karimi and Salcudean (2019), Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks, arXiv 1904.10030. The logarithm is MONAI's.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 1, 5)
        >>> label[..., 0] = 1
        >>> logits = 40 * label - 20
        >>> logits[..., 3] = 20
        >>> round(medloss.LogHausdorffDTLoss(sigmoid=True)(logits, label, spacing=(1.0, 0.5)).item(), 4)  # ln 1.5
        0.4055
    """

    def __init__(self, *, alpha: float = 2.0, one_sided: bool = False, **common: Unpack[CommonArguments]) -> None:
        super().__init__(alpha=alpha, one_sided=one_sided, log=True, **common)
