"""One training step, as the engines make it, of MONAI's networks and of nnU-Net's."""

import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.scenes import scene
from benchmarks.step_settings import NNUNET, NNUNETS, Setting
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last

#: A loss as a function of the network's outputs, finest first.
Loss = Callable[[list[Tensor]], Tensor]

#: The package of nnU-Net's networks. With torch it has all that they import, not all that it asks for.
NNUNET_PACKAGE = "dynamic_network_architectures"
#: nnU-Net's planner: channels of the finest level and at most, voxels per axis of the coarsest level at least.
_CHANNELS, _MOST_CHANNELS, _LEAST_SIZE = 32, 320, 4
#: Blocks per stage of its residual encoders.
_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6)


def missing_package(setting: Setting) -> str:
    """Why the setting's network cannot be created here, in a line; empty where it can."""
    if setting.network not in NNUNETS or importlib.util.find_spec(NNUNET_PACKAGE) is not None:
        return ""
    return f"{NNUNET_PACKAGE} is not installed: pip install --no-deps {NNUNET_PACKAGE.replace('_', '-')}"


class TrainingStep:
    """A network in training mode with its optimizer, an image and a target.

    Attributes:
        target: `[B, 1, *spatial]`, an index map.
        constant: gradients of the outputs with which a step without a loss begins its backward pass; as large as a
            loss's, and in the layout and type of the outputs.
    """

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        layout = channels_last(len(setting.size))
        self._network = _network(setting).train()
        self._network.to(memory_format=layout)  # type: ignore[call-overload]
        image, self.target = scene(setting.size, setting.classes, setting.batch)
        # Any image will do: a network's time does not depend on what it sees.
        self._image = image[:, :1].clone().contiguous(memory_format=layout)
        self._dtype = torch.bfloat16 if setting.precision == "bfloat16" else None
        self._optimizer = torch.optim.AdamW(self._network.parameters())
        self._outputs = 1 + setting.heads
        self.constant = [torch.randn_like(out) * 1e-6 for out in self.outputs()]

    def outputs(self) -> list[Tensor]:
        """The network's outputs that are trained, finest first."""
        self._optimizer.zero_grad()
        with torch.autocast("cpu", dtype=self._dtype, enabled=self._dtype is not None):
            out = self._network(self._image)
        return [out] if isinstance(out, Tensor) else list(out)[: self._outputs]

    def run(self, loss: Loss | None) -> tuple[float, float]:
        """Seconds of a step, and of the loss in it: from the outputs to its value, and back to their gradients."""
        start = time.perf_counter()
        outputs, place = self.outputs(), 0.0
        gradients: Sequence[Tensor] = self.constant
        if loss is not None:
            before = time.perf_counter()
            # Not `backward()`: with coarser outputs it runs parts of the network before the loss is finished.
            gradients = torch.autograd.grad(loss(outputs), outputs)
            place = time.perf_counter() - before
        torch.autograd.backward(outputs, gradients)
        self._optimizer.step()
        return time.perf_counter() - start, place

    def run_untimed(self, loss: Loss | None) -> None:
        """A step whose memory is that of an engine's: `run` keeps the outputs' gradients to its end."""
        outputs = self.outputs()
        if loss is None:
            torch.autograd.backward(outputs, self.constant)
        else:
            loss(outputs).backward()
        self._optimizer.step()


def _network(setting: Setting) -> nn.Module:
    if setting.network in NNUNETS:
        return _nnunet(setting)
    chosen = {"network": setting.network, "precision": setting.precision, "deep_supervision": setting.heads}
    config = RunConfig.model_validate({"manifest": "phantom"} | chosen)
    return create_network(config, len(setting.size), setting.classes)


def _nnunet(setting: Setting) -> nn.Module:
    """nnU-Net's network as its planner configures it for isotropic patches of this size.

    With deep supervision its network has outputs on all levels but the coarsest; its loss gives the last weight 0.
    """
    architectures = importlib.import_module(f"{NNUNET_PACKAGE}.architectures.unet")
    strides = nnunet_strides(setting.size)
    stages = len(strides)
    plain = setting.network == NNUNET
    kind = architectures.PlainConvUNet if plain else architectures.ResidualEncoderUNet
    blocks = {"n_conv_per_stage": 2} if plain else {"n_blocks_per_stage": _BLOCKS[:stages]}
    network: nn.Module = kind(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[min(_CHANNELS * 2**level, _MOST_CHANNELS) for level in range(stages)],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=strides,
        num_classes=setting.classes,
        n_conv_per_stage_decoder=2 if plain else 1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=setting.heads > 0,
        **blocks,
    )
    return network.apply(kind.initialize)


def nnunet_strides(size: Sequence[int]) -> list[tuple[int, ...]]:
    """Strides per stage: each axis is halved as long as its coarsest level keeps four voxels."""
    strides = [(1,) * len(size)]
    while any(n >= 2 * _LEAST_SIZE for n in size):
        strides.append(tuple(2 if n >= 2 * _LEAST_SIZE else 1 for n in size))
        size = [n // stride for n, stride in zip(size, strides[-1], strict=True)]
    return strides
