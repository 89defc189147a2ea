"""MONAI dictionary transforms that compute maps of a label before cropping."""

from collections.abc import Sequence

import torch
from monai.config import KeysCollection

from medloss.distance.transforms import LabelMapTransform
from medloss.maps.borders import border_weight_map, check_border
from medloss.maps.instances import check_connectivity, instance_map
from medloss.maps.skeletons import check_radius, tube_map
from medloss.maps.smoothing import check_sigma, smoothed_label


class SkeletonMapd(LabelMapTransform):
    """Add the tubes around the centre lines of each class of a label, from the whole volume.

    Put it as `DistanceMapd`, and before flips in any case: thinning does not follow them. Crops, pads, flips and
    rotations by 90 degrees treat the map as they treat a label. It needs scikit-image
    (`pip install 'medloss[skeleton]'`).

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        radius: of the tubes, mm; None: 2 smallest spacings (the authors of Skeleton Recall take 2 voxels).
        postfix: the map of `label` is stored as `label` + `postfix`; default `_skeleton`.
        allow_missing_keys: don't raise when a key is missing.

    The map is a uint8 `MetaTensor` `[C, *spatial]` with the label's affine: pass it to a loss as `skeleton_map`.

    Raises:
        InputError: a bad radius; from the call, as `DistanceMapd`, and where scikit-image is missing.

    References:
        Kirchhoff et al. (2024), Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of
        Thin Tubular Structures, arXiv 2404.03010.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        radius: float | None = None,
        postfix: str = "_skeleton",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, num_classes, postfix, allow_missing_keys)
        check_radius(radius)
        self.radius = radius

    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The tubes."""
        return tube_map(masks, spacing, self.radius)


class InstanceMapd(LabelMapTransform):
    """Add the number of the nearest connected component of each class of a label, from the whole volume.

    Put it as `DistanceMapd`. Crops, pads, flips and rotations by 90 degrees treat the map as they treat a label.

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        connectivity: of a component's voxels: 26 (in 2D 8), or 6 (4) for face neighbours only.
        postfix: the map of `label` is stored as `label` + `postfix`; default `_instances`.
        allow_missing_keys: don't raise when a key is missing.

    The map is an int32 `MetaTensor` `[C, *spatial]` with the label's affine, numbers from 1, 0 where a class is empty:
    pass it to a loss as `instance_map`.

    Raises:
        InputError: an unknown connectivity; from the call, as `DistanceMapd`.

    Example:
        >>> import torch
        >>> from medloss.maps import InstanceMapd
        >>> label = torch.tensor([[[1, 0, 0, 0, 0, 1, 1]]])
        >>> InstanceMapd("label", num_classes=2)({"label": label})["label_instances"][1].tolist()
        [[1, 1, 1, 2, 2, 2, 2]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        connectivity: int = 26,
        postfix: str = "_instances",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, num_classes, postfix, allow_missing_keys)
        check_connectivity(connectivity)
        self.connectivity = connectivity

    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The numbers."""
        return instance_map(masks, spacing, self.connectivity)


class BorderWeightMapd(LabelMapTransform):
    r"""Add weights of voxels that grow between components that lie close together, from the whole volume.

    $w_c + w_0 \exp(-(d_1 + d_2)^2 / (2 \sigma^2))$, as `border_weight_map` has it. Put it as `DistanceMapd`.

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        w0: weight at a gap of no width. Default 10 (the paper's).
        sigma: mm; None: 5 smallest spacings (the paper: 5 pixels).
        class_weight: w_c, one number, or one per class.
        postfix: the map of `label` is stored as `label` + `postfix`; default `_border_weight`.
        allow_missing_keys: don't raise when a key is missing.

    The map is a float32 `MetaTensor` `[1, *spatial]` with the label's affine: weights of a loss's voxels.

    Raises:
        InputError: a negative weight, a sigma that is not positive; from the call, as `DistanceMapd`.

    References:
        Ronneberger, Fischer and Brox (2015), U-Net: Convolutional Networks for Biomedical Image Segmentation, arXiv
        1505.04597.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        w0: float = 10.0,
        sigma: float | None = None,
        class_weight: float | Sequence[float] = 1.0,
        postfix: str = "_border_weight",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, num_classes, postfix, allow_missing_keys)
        check_border(w0, sigma)
        self.w0 = w0
        self.sigma = sigma
        self.class_weight = class_weight

    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The weights."""
        return border_weight_map(masks, spacing, w0=self.w0, sigma=self.sigma, class_weight=self.class_weight)


class SmoothedLabeld(LabelMapTransform):
    """Add soft maps of a label: half the label, half the Gaussian mean of its neighbours' labels.

    Put it as `DistanceMapd`.

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        sigma: of the Gaussian, mm; None: the smallest spacing (ours).
        postfix: the maps of `label` are stored as `label` + `postfix`; default `_soft`.
        allow_missing_keys: don't raise when a key is missing.

    The maps are a float32 `MetaTensor` `[C, *spatial]` with the label's affine: a target of losses that take soft ones.

    Raises:
        InputError: a sigma that is not positive; from the call, as `DistanceMapd`.

    References:
        Islam and Glocker (2021), Spatially Varying Label Smoothing: Capturing Uncertainty from Expert Annotations,
        arXiv 2104.05788.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        sigma: float | None = None,
        postfix: str = "_soft",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, num_classes, postfix, allow_missing_keys)
        check_sigma(sigma)
        self.sigma = sigma

    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The soft maps."""
        return smoothed_label(masks, spacing, self.sigma)
