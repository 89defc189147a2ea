"""`LOSSES`: every loss by name. A new loss is one file, named like the loss, and one line here, in its section."""

# The lines' order within a set is that of tables and comparisons, and `names.py` reads them: no sorting.
# isort: off
# survey: the losses of the survey.
from medloss.distribution.weighted_cross_entropy import WeightedCrossEntropyLoss as WeightedCrossEntropyLoss
from medloss.distribution.balanced_cross_entropy import BalancedCrossEntropyLoss as BalancedCrossEntropyLoss
from medloss.distribution.binary_cross_entropy import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
from medloss.distribution.distance_penalty import DistancePenaltyLoss as DistancePenaltyLoss
from medloss.distribution.focal import FocalLoss as FocalLoss
from medloss.distribution.structural_similarity import StructuralSimilarityLoss as StructuralSimilarityLoss
from medloss.region.dice import DiceLoss as DiceLoss
from medloss.region.tversky import TverskyLoss as TverskyLoss
from medloss.region.focal_tversky import FocalTverskyLoss as FocalTverskyLoss
from medloss.region.log_cosh_dice import LogCoshDiceLoss as LogCoshDiceLoss
from medloss.region.sensitivity_specificity import SensitivitySpecificityLoss as SensitivitySpecificityLoss
from medloss.boundary.hausdorff_cv import HausdorffCVLoss as HausdorffCVLoss
from medloss.boundary.hausdorff_dt import HausdorffDTLoss as HausdorffDTLoss
from medloss.boundary.hausdorff_er import HausdorffERLoss as HausdorffERLoss
from medloss.boundary.shape_aware import ShapeAwareLoss as ShapeAwareLoss
from medloss.compound.combo import ComboLoss as ComboLoss
from medloss.compound.exponential_logarithmic import ExponentialLogarithmicLoss as ExponentialLogarithmicLoss

# more: all others.
from medloss.distribution.topk_cross_entropy import TopKCrossEntropyLoss as TopKCrossEntropyLoss
from medloss.distribution.l1_ace import L1ACELoss as L1ACELoss
from medloss.region.generalized_dice import GeneralizedDiceLoss as GeneralizedDiceLoss
from medloss.region.matthews_correlation import MatthewsCorrelationLoss as MatthewsCorrelationLoss
from medloss.region.generalized_wasserstein_dice import GeneralizedWassersteinDiceLoss as GeneralizedWassersteinDiceLoss
from medloss.region.lovasz import LovaszLoss as LovaszLoss
from medloss.region.cldice import ClDiceLoss as ClDiceLoss
from medloss.region.skeleton_recall import SkeletonRecallLoss as SkeletonRecallLoss
from medloss.boundary.log_hausdorff_dt import LogHausdorffDTLoss as LogHausdorffDTLoss
from medloss.boundary.boundary import BoundaryLoss as BoundaryLoss
from medloss.compound.unified_focal import UnifiedFocalLoss as UnifiedFocalLoss
from medloss.wrappers.instance_wise import InstanceWiseLoss as InstanceWiseLoss

# isort: on
from medloss.loss_entry import REGISTERED, LossEntry
from medloss.names import loss_names

#: Name to entry, family by family, in each the survey's losses first.
LOSSES: dict[str, LossEntry] = {name: REGISTERED[name] for name in loss_names()}
