"""Binary cross entropy, and its form for several classes."""

from typing import Unpack

from medloss.base import CommonArguments
from medloss.loss_entry import register
from medloss.voxelwise import VoxelwiseLoss, checked_label_smoothing


@register(
    "binary_cross_entropy",
    family="distribution",
    paper="Ma Yi-de et al. 2004, doi 10.1109/ISIMP.2004.1434171",
    summary="cross entropy per voxel: softmax where classes exclude each other, else a sigmoid per channel",
)
class BinaryCrossEntropyLoss(VoxelwiseLoss):
    r"""Cross entropy between the labels and the predicted distribution, per voxel.

    Independent channels (`sigmoid=True`, or probabilities):

    $$-[y \ln p + (1 - y) \ln(1 - p)]$$

    Categorical (`softmax=True`): $-\sum_c y_c \ln p_c$.

    y: target; p: probability; c: class. Computed from logits, so it stays finite for any of them. With
    `include_background=False` and softmax, background voxels have the value 0 and still count in the mean: a
    false positive on background then costs nothing.

    The values are those of torch's `BCEWithLogitsLoss` and, with softmax, `CrossEntropyLoss`.

    Args:
        label_smoothing: e in [0, 1]: the target y becomes (1 - e) y + e / C with softmax, where C is the number of
            (labelled) classes, as in torch, else (1 - e) y + e / 2. A perfect prediction then does not give 0.
            Default 0.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `label_smoothing` outside [0, 1].

    References:
        Ma Yi-de, Liu Qing and Qian Zhi-bai (2004), Automated image segmentation using improved PCNN model based
        on cross-entropy, doi 10.1109/ISIMP.2004.1434171.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.BinaryCrossEntropyLoss(softmax=True)
        >>> logits, label = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
        >>> round(loss(logits, label).item(), 4)  # ln 2
        0.6931
    """

    def __init__(self, *, label_smoothing: float = 0.0, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        self.label_smoothing = checked_label_smoothing(label_smoothing)
