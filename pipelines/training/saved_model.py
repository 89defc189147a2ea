"""A trained network: its file, and sliding-window inference with it."""

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from pydantic import ValidationError
from torch import Tensor, nn

from pipelines.data.label_scheme import LabelScheme
from pipelines.data.manifest import Manifest
from pipelines.preprocessing.resampling import Preprocessing, largest, resampled
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run_config import RunConfig, stored_config
from pipelines.utils import UserError
from pipelines.utils.files import write_atomically

#: The file of a trained network in a run's folder.
NAME = "model.pt"
_FORMAT = 1
#: Overlap of sliding windows, as a fraction of their size; centres count more. nnU-Net's is 0.5, which makes up to
#: (0.75 / 0.5)^3 = 3.4 times as many windows in 3D.
OVERLAP = 0.25
#: Windows per forward pass.
WINDOWS = 4


class AutocastInferer(Inferer):
    """Runs a network under autocast on any device: MONAI's engines support CUDA only."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.dtype, self.device, self.memory_format = dtype, device, memory_format

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits in the type that the network computes in, or a list of them where it returns one."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return network(inputs.contiguous(memory_format=self.memory_format), *args, **kwargs)


class WindowInferer(Inferer):
    """Logits `[B, C, *grid]`, float32, of images `[B, K, *grid]` of any size, by sliding windows.

    Validation and prediction share this class, so they agree. The logits are stitched on the network's device, or in
    main memory where a GPU's does not suffice. Images smaller than a window are padded with zeros, as in training.

    Args:
        patch: the window, voxels.
        run: runs the network on a batch of windows.
        windows: windows per forward pass.
        flip_axes: average over the windows flipped along each subset of these spatial axes; takes 2^n times as long.
    """

    def __init__(
        self, patch: Sequence[int], run: AutocastInferer, *, windows: int = WINDOWS, flip_axes: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.patch, self.windows = tuple(patch), windows
        self._run = run
        self._flips: list[list[int]] = [[]]
        for axis in flip_axes:
            self._flips += [[*axes, 2 + axis] for axes in self._flips]

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Logits of whole images."""

        def predict(window: Tensor) -> Tensor:
            total: Tensor = self._run(window, network, *args, **kwargs).float()
            # Window by window: flipped copies of the whole case's logits would take twice its memory.
            for axes in self._flips[1:]:
                total = total + self._run(window.flip(axes), network, *args, **kwargs).float().flip(axes)
            return total / len(self._flips) if len(self._flips) > 1 else total

        device = self._run.device
        slide = partial(SlidingWindowInferer, self.patch, self.windows, OVERLAP, "gaussian", sw_device=device)
        try:
            return slide(device=device)(inputs, predict)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        return slide(device=torch.device("cpu"))(inputs.cpu(), predict)


def channels_last(spatial_dims: int) -> torch.memory_format:
    """The memory format in which convolutions are fastest: a step takes 0.7 of the time of the default format."""
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


def label_map(logits: Tensor, shape: Sequence[int], scheme: LabelScheme | None = None) -> Tensor:
    """The class indices on another grid, `[*shape]`, whole numbers, of logits `[C, *grid]`.

    Of classes it is that of the largest logit. Of the regions of a scheme, those with a logit above 0 are written in
    their order, each as the class of `region_order`, later ones over earlier ones.
    """
    # Channel by channel: all of them on a large image's grid would take C times its size.
    if scheme is not None and scheme.regions:
        written = torch.zeros(tuple(shape), dtype=torch.uint8, device=logits.device)
        for channel, value in enumerate(scheme.region_order):
            inside = resampled(logits[channel : channel + 1], shape)[0] > 0
            written.masked_fill_(inside, scheme.values.index(value))
        return written
    dtype = torch.uint8 if len(logits) <= 256 else torch.int32
    return largest((resampled(logits[c : c + 1], shape) for c in range(len(logits))), dtype)[0]


def probabilities(logits: Tensor, scheme: LabelScheme) -> Tensor:
    """The probabilities of logits `[C, *spatial]`, computed in place: a softmax of classes, a sigmoid of regions."""
    if scheme.sigmoid:
        return logits.sigmoid_()
    logits.sub_(logits.amax(0, keepdim=True)).exp_()
    return logits.div_(logits.sum(0, keepdim=True))


@dataclass
class Model:
    """A trained network, ready to predict.

    Attributes:
        network: in evaluation mode, on `device`.
        config: the run's planned config.
        preprocessing: applied to every image first.
        scheme: the classes or regions that it predicts.
        channels: names of an image's channels, in their order; empty if the model was saved without them.
        dtype: under autocast; None for float32.
    """

    network: nn.Module
    config: RunConfig
    preprocessing: Preprocessing
    scheme: LabelScheme
    channels: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype | None = None

    @property
    def in_channels(self) -> int:
        """Number of channels of an image."""
        return max(1, len(self.channels))

    def logits(self, image: Tensor, *, flips: bool = False, windows: int = WINDOWS) -> Tensor:
        """Logits `[C, *grid]` of an image `[K, *grid]` from `preprocessing.image`, as validation makes them.

        With `flips` they are averaged over images flipped along the axes that training flipped; `windows` is the number
        of windows per forward pass.
        """
        patch = self.config.patch_size or ()
        run = AutocastInferer(self.dtype, self.device, channels_last(len(patch)))
        slide = WindowInferer(patch, run, windows=windows, flip_axes=self.config.flip_axes if flips else ())
        with torch.inference_mode():
            return slide(image[None], self.network)[0]


def save_model(path: Path, network: nn.Module, config: RunConfig, manifest: Manifest, processed: Preprocessing) -> None:
    """Write a network with its planned config, its manifest's classes and its preprocessing, atomically."""
    # Prediction needs neither the heads of coarser outputs nor folders of this machine.
    unused = {"deep_supervision": 0, "data_root": None, "cache_dir": None, "manifest": manifest.name}
    slim = config.model_copy(update=unused)
    with torch.device("meta"):
        inputs = len(manifest.image_channels)
        names = create_network(slim, manifest.dimensions, manifest.scheme.channels, inputs).state_dict().keys()
    weights = network.state_dict()
    state: dict[str, Any] = {
        "format": _FORMAT,
        "config": slim.model_dump(mode="json"),
        "preprocessing": processed.model_dump(mode="json"),
        "classes": {value: manifest.classes[value] for value in manifest.label_values},
        "channels": [channel.name for channel in manifest.image_channels],
        "regions": {name: list(values) for name, values in manifest.regions.items()},
        "region_order": list(manifest.region_order),
        "network": {name: weights[name].detach().cpu().contiguous() for name in names},
    }
    state["sha256"] = _digest(state)
    write_atomically(path, lambda file: torch.save(state, file))


def load_model(path: Path, device: torch.device, precision: str | None = None) -> Model:
    """Read a model from its file or a finished run's folder; no code in the file is run.

    `precision` is as in `RunConfig`; None: the run's, or `auto` where the device does not support that.

    Raises:
        UserError: there is none, it is damaged, of another version, or holds more than plain data; or the device does
            not compute in the precision.
    """
    path = path / NAME if path.is_dir() else path
    state = _read(path)
    try:
        config = stored_config(state["config"])
        processed = Preprocessing.model_validate(state["preprocessing"])
        # Models of older versions have one channel and no regions.
        regions = {"regions": state.get("regions", {}), "region_order": state.get("region_order", ())}
        scheme = LabelScheme(classes=state["classes"], **regions)
        channels = tuple(state.get("channels", ()))
        # Without memory or random numbers: the weights are assigned as they are, once their shapes match.
        with torch.device("meta"):
            network = create_network(config, processed.dimensions, scheme.channels, max(1, len(channels)))
        network.load_state_dict(state["network"], assign=True)
    except (ValidationError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no model of this version of medloss: {reason}") from None
    network = network.to(device, torch.float32).to(memory_format=channels_last(processed.dimensions))  # type: ignore[call-overload]
    dtype = _dtype(config, device, precision)
    return Model(network.eval(), config, processed, scheme, channels, device, dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no model there; a run writes one when it is finished") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: damaged, or it holds more than tensors, numbers and text, perhaps code"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # damaged bytes may raise anything in torch
        message = " ".join(str(error).split())[:200]
        reason = f": {message}" if any(mark.isalpha() for mark in message) else ""
        raise UserError(f"{path}: damaged, or no model{reason}; expected the file {NAME} of a finished run") from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise UserError(f"{path}: no model of this version of medloss (format {_FORMAT})")
    # Torch reads tensors without checking their checksums: a weight of 1e30 would go unnoticed.
    with suppress(KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        if state.pop("sha256") == _digest(state):
            return state
    raise UserError(f"{path}: damaged: its content does not match its SHA-256")


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of the content of a model's file."""
    plain = {name: value for name, value in state.items() if name != "network"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(state["network"].items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _dtype(config: RunConfig, device: torch.device, precision: str | None) -> torch.dtype | None:
    patch = config.patch_size or ()
    if precision is None:
        try:
            return autocast_dtype(config, device, patch)
        except UserError:
            precision = "auto"  # trained on a GPU in a precision that this processor does not support
    return autocast_dtype(config.model_copy(update={"precision": precision}), device, patch)
