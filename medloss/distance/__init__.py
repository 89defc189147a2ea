"""Distance maps in mm, on anisotropic voxels."""

from typing import TYPE_CHECKING, Any

from medloss.distance.maps import boundary_distance_map as boundary_distance_map
from medloss.distance.maps import distance_map as distance_map
from medloss.distance.maps import penalty_map as penalty_map
from medloss.distance.maps import signed_distance_map as signed_distance_map

if TYPE_CHECKING:
    from medloss.distance.transforms import DistanceMapd as DistanceMapd
else:

    def __getattr__(name: str) -> Any:
        # A transform of MONAI's, whose import takes seconds that no loss needs.
        if name != "DistanceMapd":
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from medloss.distance.transforms import DistanceMapd

        return DistanceMapd
