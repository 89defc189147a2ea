"""nnU-Net's trainers of a made plan, without data, and a batch for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.scenes import scene

_STAGES = 4


@dataclass(frozen=True)
class Setting:
    """What is measured on.

    Attributes:
        patch: voxels an axis.
        classes: labels, or regions and the background.
        batch: patches.
        features: of the network's first stage; they double with each.
        regions: overlapping regions in the place of labels.
        ignore: with an ignore label.
        batch_dice: the plan's.
        device: `cpu` or `cuda`.
    """

    patch: tuple[int, ...]
    classes: int
    batch: int
    features: int
    regions: bool
    ignore: bool
    batch_dice: bool
    device: str

    def __str__(self) -> str:
        patch = " x ".join(str(n) for n in self.patch)
        kind = f"{self.classes - 1} regions" if self.regions else f"{self.classes} classes"
        extras = [text for text, on in (("an ignore label", self.ignore), ("batch_dice", self.batch_dice)) if on]
        return ", ".join([f"Patches of {patch}, batch {self.batch}, {kind}", *extras, f"{self.features} features"])

    @property
    def labels(self) -> dict[str, Any]:
        """As a `dataset.json` has them."""
        values = range(1, self.classes)
        labels: dict[str, Any] = {"background": 0}
        for value in values:
            labels[f"class_{value}"] = list(range(value, self.classes)) if self.regions else value
        return labels | ({"ignore": self.classes} if self.ignore else {})


def make_trainer(setting: Setting, loss: str | None) -> Any:
    """nnU-Net's own trainer (None), or ours with a loss; with network and optimizer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from pipelines.nnunet.trainers import trainer_class

    dataset: dict[str, Any] = {"labels": setting.labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    if setting.regions:
        dataset["regions_class_order"] = list(range(1, setting.classes))
    cls: Any = nnUNetTrainer if loss is None else trainer_class(loss)
    trainer = cls(_plans(setting), "made", 0, dataset, torch.device(setting.device))
    heads = trainer.label_manager.num_segmentation_heads
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, heads, True)
    trainer.network = network.to(trainer.device)
    if trainer._do_i_compile():
        trainer.network = torch.compile(trainer.network)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    return trainer


def made_batch(setting: Setting) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """An image, and outputs and targets a scale: structures, and a prediction that nearly hits them."""
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    logits, label = scene(setting.patch, setting.classes, setting.batch)
    label = label.to(torch.int16)
    if setting.ignore:
        label[:, :, : setting.patch[0] // 4] = setting.classes
    if setting.regions:
        regions = [value for name, value in setting.labels.items() if name != "background"]
        convert = ConvertSegmentationToRegionsTransform(regions)
        label = torch.stack([convert(segmentation=one)["segmentation"] for one in label])
        logits = logits[:, 1:]
    shrink = DownsampleSegForDSTransform([[0.5**i] * len(setting.patch) for i in range(_STAGES - 1)])
    items = [shrink(segmentation=one)["segmentation"] for one in label]
    targets = [torch.stack(scale) for scale in zip(*items, strict=True)]
    outputs = [functional.interpolate(logits, target.shape[2:]).contiguous() for target in targets]
    return logits[:, :1].clone(), outputs, targets


def made_plans(
    spacing: Sequence[float],
    patch: Sequence[int],
    *,
    strides: Sequence[Sequence[int]],
    features: Sequence[int],
    convolutions: int,
    batch: int,
    batch_dice: bool,
) -> dict[str, Any]:
    """Plans as nnU-Net writes them, with one configuration, `made`, of a U-Net.

    Args:
        spacing: mm an axis of the patch.
        patch: voxels an axis.
        strides: an axis, of each stage.
        features: of each stage.
        convolutions: of each stage, on either side.
        batch: patches.
        batch_dice: whether Dice is of the batch.
    """
    axes, stages = len(patch), len(strides)
    configuration = {
        "data_identifier": "made",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(features),
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": [[3] * axes] * stages,
                "strides": [list(stride) for stride in strides],
                "n_conv_per_stage": [convolutions] * stages,
                "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset001_made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"made": configuration},
        "label_manager": "LabelManager",
        "continue_training": False,
    }


def _plans(setting: Setting) -> dict[str, Any]:
    axes = len(setting.patch)
    return made_plans(
        [1.0, 0.8, 1.2][:axes],
        setting.patch,
        strides=[[1] * axes, *([[2] * axes] * (_STAGES - 1))],
        features=[setting.features * 2**i for i in range(_STAGES)],
        convolutions=2,
        batch=setting.batch,
        batch_dice=setting.batch_dice,
    )
