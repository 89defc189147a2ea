"""What `medloss` exports; `medloss/__init__.py` imports it when the first of these names is used."""

from medloss import kernels as kernels
from medloss.base import SegmentationLoss as SegmentationLoss
from medloss.create import call_loss as call_loss
from medloss.create import create_loss as create_loss
from medloss.errors import InputError as InputError
from medloss.loss_entry import LossEntry as LossEntry
from medloss.loss_entry import Recipe as Recipe
from medloss.names import FAMILIES as FAMILIES
from medloss.registry import *  # noqa: F403  the losses' classes: the registry is the one list of them
from medloss.registry import LOSSES as LOSSES
from medloss.training_loss import create_training_loss as create_training_loss
from medloss.wrappers.combined import CombinedLoss as CombinedLoss
from medloss.wrappers.deep_supervision import DeepSupervision as DeepSupervision
from medloss.wrappers.fixed_spacing import FixedSpacing as FixedSpacing
