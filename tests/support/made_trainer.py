"""Trainers of small plans, in nnU-Net's own format, without data."""

from dataclasses import dataclass, field
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from benchmarks.nnunet_plan import made_plans

#: mm, three different ones, in the order of the plan's axes.
SPACING = (3.0, 1.5, 0.8)
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
PATCH = (8, 16, 16)


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Attributes:
        dimensions: 2 or 3.
        regions: overlapping regions instead of labels.
        ignore: whether there is an ignore label.
        batch_dice: the plan's.
    """

    dimensions: int = 3
    regions: bool = False
    ignore: bool = False
    batch_dice: bool = False

    @property
    def labels(self) -> dict[str, Any]:
        """As a `dataset.json` has them."""
        labels: dict[str, Any] = {"background": 0, "organ": 1, "shell": 2, "lesions": 3}
        if self.regions:
            labels = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "lesions": 3}
        return labels | ({"ignore": 4} if self.ignore else {})

    @property
    def heads(self) -> int:
        """The network's outputs."""
        return 3 if self.regions else 4


@dataclass
class Batch:
    """Outputs and targets of a step, a list over the scales; the outputs are leaves that require gradients."""

    outputs: list[Tensor]
    targets: list[Tensor] = field(default_factory=list)


def plans(task: Task) -> dict[str, Any]:
    """Plans with one configuration, `made`."""
    axes = task.dimensions
    return made_plans(
        SPACING[-axes:],
        PATCH[-axes:],
        strides=[stride[-axes:] for stride in STRIDES],
        features=[4, 8, 8, 8],
        convolutions=1,
        batch=2,
        batch_dice=task.batch_dice,
    )


def make_trainer(cls: type[nnUNetTrainer], task: Task) -> Any:
    """A trainer as `nnUNetv2_train` makes it, on the CPU."""
    dataset: dict[str, Any] = {"labels": task.labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    if task.regions:
        dataset["regions_class_order"] = [1, 2, 3]
    return cls(plans(task), "made", 0, dataset, torch.device("cpu"))


def made_batch(task: Task, *, items: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Random outputs and blocks of labels on all scales, as nnU-Net's loader gives them."""
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    generator = torch.Generator().manual_seed(seed)
    axes = task.dimensions
    grid = PATCH[-axes:]
    coarse = torch.randint(0, 5 if task.ignore else 4, (items, 1, *(n // 4 for n in grid)), generator=generator)
    for axis in range(axes):
        coarse = coarse.repeat_interleave(4, 2 + axis)
    label = coarse.to(torch.int16)
    if task.ignore:
        label[0] = 4  # of the first item nothing counts
    scales = torch.tensor([stride[-axes:] for stride in STRIDES]).cumprod(0)[:-1]
    rows = []
    for one in label:
        if task.regions:
            regions = [[1, 2, 3], [2, 3], 3, *([4] if task.ignore else [])]
            one = ConvertSegmentationToRegionsTransform(regions)(segmentation=one)["segmentation"]
        rows.append(DownsampleSegForDSTransform((1 / scales).tolist())(segmentation=one)["segmentation"])
    targets = [torch.stack(scale) for scale in zip(*rows, strict=True)]
    outputs = [
        torch.randn(items, task.heads, *target.shape[2:], generator=generator, dtype=dtype).requires_grad_()
        for target in targets
    ]
    return Batch(outputs, targets)
