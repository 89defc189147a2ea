"""Distance maps in mm, on anisotropic voxels."""

from medloss.distance.maps import boundary_distance_map as boundary_distance_map
from medloss.distance.maps import distance_map as distance_map
from medloss.distance.maps import penalty_map as penalty_map
from medloss.distance.maps import signed_distance_map as signed_distance_map
from medloss.distance.transforms import DistanceMapd as DistanceMapd
