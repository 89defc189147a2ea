"""Binary cross entropy, and its form for several classes."""

from medloss.loss_entry import register
from medloss.voxelwise import VoxelwiseLoss


@register(
    "binary_cross_entropy",
    family="distribution",
    paper="Ma Yi-de et al. 2004, doi 10.1109/ISIMP.2004.1434171",
    summary="cross entropy of each voxel",
)
class BinaryCrossEntropyLoss(VoxelwiseLoss):
    r"""Cross entropy between the labels and the predicted distribution, per voxel.

    Independent channels (`sigmoid=True`, or probabilities):

    $$-[y \ln p + (1 - y) \ln(1 - p)]$$

    Categorical (`softmax=True`): $-\sum_c y_c \ln p_c$.

    y: target; p: probability; c: class. Computed from logits, so it stays finite for any of them. With
    `include_background=False` and softmax, background voxels have the value 0 and still count in the mean: a
    false positive on background then costs nothing.

    Takes the arguments of `SegmentationLoss`, and no others. Soft targets are allowed. The values are those
    of torch's `BCEWithLogitsLoss` and, with softmax, `CrossEntropyLoss`.

    Raises:
        InputError: as `SegmentationLoss`.

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
