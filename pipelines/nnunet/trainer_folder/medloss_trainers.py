"""The one module that nnU-Net finds through `nnUNet_extTrainer`: the trainers' classes, by any of their names.

nnU-Net drops it again after a search; the classes belong to `pipelines.nnunet.trainers`, which stays.
"""

from pipelines.nnunet import trainers
from pipelines.nnunet.losses import PREFIX

globals().update({name: made for name, made in vars(trainers).items() if name.startswith(PREFIX)})

# Names with a number of epochs, and sums, are made when they are asked for.
__getattr__ = trainers.__getattr__
