"""A MONAI dictionary transform that computes the reference's distance maps before cropping, and its like's base."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medloss.distance.maps import signed_distance_map
from medloss.errors import InputError
from medloss.spacing import resolve_spacing


class LabelMapTransform(MapTransform):
    """Adds a map of each label; a subclass computes it, from one map per class.

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        postfix: the map of `label` is stored as `label` + `postfix`.
        allow_missing_keys: don't raise when a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int | None, postfix: str, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.postfix = postfix

    @abstractmethod
    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The maps `[1, C or 1, *spatial]` of `masks`, `[1, C, *spatial]`; the spacing in mm."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the maps to a copy of `data`."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}{self.postfix}"] = self._map(out[key], key)
        return out

    def _map(self, label: torch.Tensor, key: Hashable) -> torch.Tensor:
        spatial_dims = label.ndim - 1
        plain = (
            label.as_tensor()
            if isinstance(label, MetaTensor)
            else torch.as_tensor(label, device=getattr(label, "device", "cpu"))
        )
        (spacing,) = resolve_spacing(None, label, 1, spatial_dims)
        if not plain.numel():
            raise InputError(f"'{key}': got shape {tuple(plain.shape)}, which is empty; expected one or more voxels")
        if plain.shape[0] == 1:
            plain = self._one_hot(plain, key)
        maps = self.compute(plain[None], spacing)[0]
        return MetaTensor(maps, affine=label.affine, device=maps.device) if isinstance(label, MetaTensor) else maps

    def _one_hot(self, index: torch.Tensor, key: Hashable) -> torch.Tensor:
        if self.num_classes is None:
            raise InputError(f"num_classes: '{key}' is an index map; expected the number of classes")
        if index.is_floating_point() and not bool((index == index.round()).all()):
            raise InputError(f"'{key}': got labels that are no whole numbers; expected 0 to {self.num_classes - 1}")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(f"'{key}': got labels from {low} to {high}; expected 0 to {self.num_classes - 1}")
        return index == torch.arange(self.num_classes, device=index.device).view(-1, *(1,) * (index.ndim - 1))


class DistanceMapd(LabelMapTransform):
    """Add the signed distance map of each class of a label, in mm, from the whole volume.

    Put it after loading and orienting, before cropping, so that a crop's loss knows of borders outside the crop, and
    before the random transforms of a caching data set, so that it is computed once. Crops, pads, flips and rotations by
    90 degrees treat the map as they treat an image; pad with `mode="edge"` or in a region that the mask leaves out.
    Zooms, affine and elastic transforms change distances: recompute the maps after them.

    Args:
        keys: the labels: index maps `[1, *spatial]`, or one map per class `[C, *spatial]`.
        num_classes: C, background included, for index maps.
        postfix: the map of `label` is stored as `label` + `postfix`; default `_distance`.
        allow_missing_keys: don't raise when a key is missing.

    The spacing is the label's (`MetaTensor.pixdim`), else 1. The map is a float32 `MetaTensor` `[C, *spatial]`
    with the label's affine: pass it to a loss as `distance_map`.

    Raises:
        InputError: an empty label, an index map without `num_classes`, a label outside 0..C-1, a slice of a
            `MetaTensor` whose axes' spacings differ.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from medloss.distance import DistanceMapd
        >>> label = MetaTensor(torch.tensor([[[0, 1, 1, 0]]]), affine=torch.diag(torch.tensor([2.0, 0.5, 1.0, 1.0])))
        >>> DistanceMapd("label", num_classes=2)({"label": label})["label_distance"][1].tolist()
        [[0.5, -0.5, -0.5, 0.5]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        postfix: str = "_distance",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, num_classes, postfix, allow_missing_keys)

    def compute(self, masks: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        """The signed distances."""
        return signed_distance_map(masks, spacing)
