"""Maps of a label that losses read, next to distances: tubes, instances, border weights, soft labels."""

from typing import TYPE_CHECKING, Any

from medloss.maps.borders import border_weight_map as border_weight_map
from medloss.maps.instances import instance_map as instance_map
from medloss.maps.skeletons import tube_map as tube_map
from medloss.maps.smoothing import smoothed_label as smoothed_label

if TYPE_CHECKING:
    from medloss.maps.transforms import BorderWeightMapd as BorderWeightMapd
    from medloss.maps.transforms import InstanceMapd as InstanceMapd
    from medloss.maps.transforms import SkeletonMapd as SkeletonMapd
    from medloss.maps.transforms import SmoothedLabeld as SmoothedLabeld
else:

    def __getattr__(name: str) -> Any:
        # Transforms of MONAI's, whose import takes seconds that no loss needs.
        if name not in ("BorderWeightMapd", "InstanceMapd", "SkeletonMapd", "SmoothedLabeld"):
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from medloss.maps import transforms

        return getattr(transforms, name)
