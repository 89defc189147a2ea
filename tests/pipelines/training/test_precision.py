"""Where bfloat16 is chosen, and that its gradients are right there."""

import pytest
import torch
from torch import Tensor

from pipelines.training import networks as module
from pipelines.training.networks import autocast_dtype, create_network, has_maps_below_kernels
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last
from pipelines.utils import UserError

CPU = torch.device("cpu")


def _config(network: str, precision: str = "auto") -> RunConfig:
    return RunConfig(manifest="phantom", network=network, precision=precision)


# The U-Net's kernels are of 3 voxels, on maps down to a quarter of the patch; the V-Net's of 5, down to a sixteenth.
@pytest.mark.parametrize(
    ("network", "patch", "below"),
    [
        ("unet", (12, 12, 12), False),
        ("unet", (8, 64, 64), True),
        ("unet", (64, 64, 8), True),
        ("unet", (12, 12), False),
        ("unet", (8, 96), True),
        ("vnet", (64, 96, 96), True),
        ("vnet", (80, 80, 80), False),
        ("vnet", (80, 80), False),
        ("vnet", (96, 64), True),
    ],
)
def test_maps_smaller_than_kernels(network: str, patch: tuple[int, ...], below: bool) -> None:
    state = torch.get_rng_state()
    assert has_maps_below_kernels(_config(network), patch) == below
    assert torch.equal(torch.get_rng_state(), state)  # a look that changes no run


@pytest.mark.parametrize("capable", [True, False])
def test_what_auto_chooses(monkeypatch: pytest.MonkeyPatch, capable: bool) -> None:
    monkeypatch.setattr(module, "processor_has_bfloat16", lambda: capable)
    chosen = torch.bfloat16 if capable else None
    assert autocast_dtype(_config("unet", "auto"), CPU, (40, 56, 40)) is chosen
    assert autocast_dtype(_config("unet", "auto"), CPU, (8, 56, 40)) is None
    assert autocast_dtype(_config("vnet", "auto"), CPU, (32, 64, 64)) is None
    assert autocast_dtype(_config("unet", "float32"), CPU, (40, 56, 40)) is None
    assert autocast_dtype(_config("unet", "bfloat16"), CPU, (40, 56, 40)) is torch.bfloat16
    with pytest.raises(UserError, match="got float16, which trains on GPUs only"):
        autocast_dtype(_config("unet", "float16"), CPU, (40, 56, 40))
    with pytest.raises(UserError, match=r"got bfloat16, and 'vnet' with patches of \(32, 64, 64\)"):
        autocast_dtype(_config("vnet", "bfloat16"), CPU, (32, 64, 64))


def _gradients(network: str, patch: tuple[int, ...], dtype: torch.dtype | None) -> list[Tensor]:
    torch.manual_seed(3)
    dims = len(patch)
    net = create_network(_config(network), dims, 3).eval()  # without dropout
    net.to(memory_format=channels_last(dims))  # type: ignore[call-overload]
    image = torch.randn(2, 1, *patch)
    # What freed memory holds: a gradient that is never set shows.
    junk = [torch.full((1 << size,), 1e30) for size in range(6, 16)]
    del junk
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits = net(image)
    torch.nn.functional.cross_entropy(logits.float(), torch.randint(0, 3, (2, *patch))).backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("network", "patch"), [("unet", (12, 12, 12)), ("unet", (12, 20, 36)), ("unet", (12, 12)), ("vnet", (80, 80))]
)
def test_gradients_in_bfloat16_are_those_in_float32(network: str, patch: tuple[int, ...]) -> None:
    assert not has_maps_below_kernels(_config(network), patch)
    exact, rough = (_gradients(network, patch, dtype) for dtype in (None, torch.bfloat16))
    assert len(exact) == len(rough) > 10
    scale = max(float(gradient.abs().max()) for gradient in exact)
    for one, other in zip(exact, rough, strict=True):
        assert (one - other).abs().max() <= 0.2 * one.abs().max() + 0.02 * scale
