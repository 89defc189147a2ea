"""The module that nnU-Net finds through `nnUNet_extTrainer`: the classes of all trainers, by name.

nnU-Net unloads it after a search; the classes belong to `pipelines.nnunet.trainers`, which stays loaded.
"""

from pipelines.nnunet import trainers
from pipelines.nnunet.losses import PREFIX

globals().update({name: made for name, made in vars(trainers).items() if name.startswith(PREFIX)})

# Classes for sums, and for a number of epochs, are created on demand.
__getattr__ = trainers.__getattr__
