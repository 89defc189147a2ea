"""Lovász losses: the convex extension of the Jaccard index."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode
from medloss.kernels.lovasz_operator import lovasz_extensions
from medloss.kernels.lovasz_spec import LovaszTerms
from medloss.loss_entry import register
from medloss.reduction import reduce_regions, sum_regions, weighted


@register(
    "lovasz",
    family="region",
    paper="Berman et al. 2018, arXiv 1705.08790",
    summary="the convex extension of the Jaccard index: sorted errors, each weighted by what it costs",
)
class LovaszLoss(SegmentationLoss):
    r"""The Lovász extension of one minus the Jaccard index, of each item and class.

    $$\sum_i e_{(i)} (J_i - J_{i-1}), \quad
    J_i = 1 - \frac{G - \sum_{j \le i} y_{(j)}}{G + \sum_{j \le i} (1 - y_{(j)})}, \quad e = |y - p|$$

    p: probability; y: target; (i): the voxel of the i-th largest error e; G = sum y; J_i: the Jaccard index's loss if
    the i largest errors, and no others, were errors; J_0 = 0. For a hard prediction it is one minus the Jaccard index.
    Masked voxels leave before the sort, and a voxel of weight w counts w times. The gradient goes through e alone. Of
    an empty class (G = 0) the value is the largest e, and one voxel has the gradient.

    Pitfall: with `classes="present"`, the default with softmax, a class that the item has not costs nothing, and where
    no class is left the value is 0.

    Args:
        classes: which classes enter an item's mean: `present` (those with a voxel in the item, 0 where there are none;
            the authors') or `all`. `"default"`: `present` with softmax, else `all`. Weights multiply a class's term.
        hinge: e = max(0, 1 - z (2y - 1)), z the logit: the authors' loss of binary problems. Needs `sigmoid=True`.
        **common: the arguments of `SegmentationLoss`. With `batch=True` the voxels of the batch (of each rank) are
            sorted together. Targets must be hard.

    Raises:
        InputError: an unknown `classes`, `hinge` without `sigmoid=True`; a soft target.

    References:
        Berman, Rannen Triki and Blaschko (2018), The Lovász-Softmax loss: A tractable surrogate for the optimization of
        the intersection-over-union measure in neural networks, arXiv 1705.08790.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.LovaszLoss(sigmoid=True)
        >>> label = torch.tensor([[[[1.0, 1.0, 0.0]]]])
        >>> round(loss(torch.tensor([[[[0.8, 0.4, 0.3]]]]).logit(), label).item(), 4)  # 0.6 / 2 + 0.3 / 6 + 0.2 / 3
        0.4167
    """

    soft_targets = False

    def __init__(self, *, classes: str = "default", hinge: bool = False, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if classes not in ("default", "present", "all"):
            raise InputError(f"classes: got '{classes}'; expected 'present', 'all' or 'default'")
        if hinge and not self.sigmoid:
            raise InputError("hinge: it is defined on the logits of independent channels; expected sigmoid=True")
        self.classes = classes if classes != "default" else "present" if self.softmax else "all"
        self.hinge = hinge

    def compute(self, inputs: LossInputs) -> Tensor:
        """The extension of each map, and the mean over classes and items."""
        assert not self.hinge or inputs.mode is Mode.BERNOULLI
        mode = Mode.PROBABILITIES if self.hinge else inputs.mode
        terms = LovaszTerms(mode.value, 0 if inputs.include_background else 1, self.hinge, self.batch)
        values, positives = lovasz_extensions(terms, inputs.logits, inputs.target, inputs.mask, inputs.voxel_weight)
        values, positives = inputs.included(values), inputs.included(positives)
        _, voxels, items = sum_regions(inputs, (), batch=False)
        if self.batch:
            voxels, items = voxels.sum(0, keepdim=True), items.sum(0, keepdim=True)
        if self.classes == "all":
            return reduce_regions(weighted(values, inputs), inputs, voxels, items, self.reduction)
        present = (positives > 0) & (items > 0)
        # Selected: NaN comes out of the classes that count.
        values = weighted(torch.where(present, values, 0.0), inputs)
        if self.reduction != "mean":
            return reduce_regions(values, inputs, voxels, items, self.reduction)
        means = values.sum(1) / present.sum(1).clamp(min=1)
        return means.mean() if inputs.labelled is None else means.sum() / (items > 0).any(1).sum().clamp(min=1)
