"""Cross entropy on the voxels whose neighbourhood looks least like the reference's."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.kernels import dispatch, self_check
from medloss.local_statistics import gaussian_window, structural_error, structure
from medloss.loss_entry import Recipe, register
from medloss.per_map import fixed_probabilities
from medloss.voxel_sums import Requested, voxel_sums, weighted_cross_entropy


@register(
    "structural_similarity",
    family="distribution",
    paper="Zhao et al. 2019, arXiv 1910.08711",
    summary="cross entropy where the local structure is wrong",
    recipe=Recipe(
        "0.5*binary_cross_entropy+0.5*structural_similarity",
        note="Zhao 2019: together with cross entropy; the equal shares are our choice",
    ),
)
class StructuralSimilarityLoss(SegmentationLoss):
    r"""Correlation-maximised structural similarity loss: cross entropy where the structure is wrong.

    $$\frac{\sum e f\, \mathrm{CE}}{\sum f}, \quad
    e = \left|\frac{y - m_y + C}{s_y + C} - \frac{p - m_p + C}{s_p + C}\right|, \quad f = 1[e > b\, e_{max}]$$

    y: target; p: probability; m, s: mean and standard deviation under a Gaussian window around the voxel
    (replicate padding); e_max: the largest e of an item, over its channels and counted voxels; CE: cross
    entropy per voxel. Categorical: e is the mean over the classes that count. The sums run over batch and
    channels. No voxel selected: 0, with zero gradient. `reduction="none"` is e f CE per voxel.

    Pitfall: two constants look alike, whatever their values: a constant prediction on a constant target gives 0,
    right or wrong. So it is trained together with cross entropy.

    Args:
        constant: C > 0, keeps the quotients finite. Default 0.01 (ours: the paper's could not be read).
        threshold: b in [0, 1). Default 0.1 (ours, likewise).
        window: window size in voxels per side, odd. Default 3 (ours).
        sigma: standard deviation of the Gaussian in voxels. Default 1.5 (ours).
        detach_weights: whether e and f are weights without gradient (ours; True by default).
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed; `batch` is ignored.

    Raises:
        InputError: an argument outside its range.

    References:
        Zhao, Wu, Chen, Cai and He (2019), Correlation Maximized Structural Similarity Loss for Semantic
        Segmentation, arXiv 1910.08711.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 8, 8)
        >>> label[..., 2:6, 2:6] = 1
        >>> loss = medloss.StructuralSimilarityLoss(sigmoid=True)
        >>> (loss(40 * label - 20, label) < 1e-3).item(), (loss(20 - 40 * label, label) > 1).item()
        (True, True)
    """

    looks_around = True

    def __init__(
        self,
        *,
        constant: float = 0.01,
        threshold: float = 0.1,
        window: int = 3,
        sigma: float = 1.5,
        detach_weights: bool = True,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not constant > 0:
            raise InputError(f"constant: got {constant}; expected a positive number")
        if not 0 <= threshold < 1:
            raise InputError(f"threshold: got {threshold}; expected a number in [0, 1)")
        if window < 1 or window % 2 == 0:
            raise InputError(f"window: got {window}; expected an odd number of voxels")
        if not sigma > 0:
            raise InputError(f"sigma: got {sigma}; expected a positive number of voxels")
        self.constant = float(constant)
        self.threshold = float(threshold)
        self.window = int(window)
        self.sigma = float(sigma)
        self.detach_weights = detach_weights

    def compute(self, inputs: LossInputs) -> Tensor:
        """Mean of e CE over the selected voxels."""
        error = inputs.counted(self._structural_error(inputs))
        pairs = inputs.pairs()
        fixed = self.detach_weights and self.reduction != "none"
        if fixed and pairs is None and inputs.mask is None and dispatch.direct(inputs.logits, "selection"):
            weight, number = _selected(error, self.threshold)
            total = voxel_sums(inputs, Requested(entropy="plain"), weight).cross_entropy().sum()
            return total if self.reduction == "sum" else total / max(number, 1)
        if pairs is not None and inputs.categorical:
            # The mean is over the labelled classes; the others have an error of 0.
            scale = pairs.shape[1] / pairs.sum(1, keepdim=True).clamp(min=1).to(error.dtype)
            error = error * scale.view(-1, *(1,) * (error.ndim - 1))
        elif pairs is not None:
            error = inputs.labelled_only(error)
        selected = _large(error.detach(), self.threshold)
        if inputs.mask is not None:
            selected &= inputs.mask
        weight = torch.where(selected, error, 0.0)
        if fixed:
            total = voxel_sums(inputs, Requested(entropy="plain"), weight).cross_entropy().sum()
        else:
            values = weight * weighted_cross_entropy(inputs)
            if self.reduction == "none":
                return values
            total = values.sum()
        return total if self.reduction == "sum" else total / selected.sum().clamp(min=1)

    def _structural_error(self, inputs: LossInputs) -> Tensor:
        window = gaussian_window(self.window, self.sigma)
        indexed = inputs.target.shape[1] != inputs.logits.shape[1]
        y = inputs.included(inputs.target_masks() if indexed else inputs.target_maps())
        if self.detach_weights:
            p = fixed_probabilities(inputs)
            return structural_error(p, y, window, self.constant, average=inputs.categorical)
        p = inputs.included(inputs.probabilities())
        error = (structure(y.to(p), window, self.constant) - structure(p, window, self.constant)).abs()
        return error.mean(1, keepdim=True) if inputs.categorical else error


def _large(error: Tensor, threshold: float) -> Tensor:
    """Which errors are above a share of their item's largest."""
    largest = error.amax(tuple(range(1, error.ndim)), keepdim=True)
    # "Not at most" keeps NaN selected: NaN in the logits must come out.
    return ~(error <= threshold * largest)


def _selected(error: Tensor, threshold: float) -> tuple[Tensor, int]:
    """The errors above a share of their item's largest, else 0, in the errors' memory; and their number."""
    from medloss.kernels.numba.voxel_weights import keep_large

    return error, keep_large(error, threshold)


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    error = (torch.arange(2 * 3 * 315, dtype=torch.float64, device="cpu") * 0.37).sin().abs().view(2, 3, 5, 7, 9)
    error = error.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    if dispatch.direct(error, "selection"):
        weight, number = _selected(error, 0.6)
        return [weight, torch.tensor(number, dtype=torch.float64)]
    selected = _large(error, 0.6)
    return [torch.where(selected, error, 0.0), selected.sum().cpu().double()]


self_check.register("selection", _small_case)
