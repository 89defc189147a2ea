"""What is planned from the data: grid, patch, batch, depth; and what is left as it was asked for."""

from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.manifest import load_manifest
from pipelines.preprocessing.case_store import Fingerprint
from pipelines.training.auto_config import activations_gb, divisor, planned, topology
from pipelines.training.networks import SupervisedDynUNet, create_network
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

CPU = torch.device("cpu")
PHANTOM = load_manifest("phantom")
FLAT = load_manifest("phantom_2d")


def _fingerprint(shapes: list[tuple[int, ...]], spacings: list[tuple[float, ...]]) -> Fingerprint:
    return Fingerprint(shapes, spacings, np.linspace(-1000, 2000, 3001, dtype=np.float32)[None])


def _planned(shape: tuple[int, ...], mm: tuple[float, ...], **settings: Any) -> RunConfig:
    manifest = PHANTOM if len(shape) == 3 else FLAT
    config = RunConfig(**({"manifest": manifest.name, "levels": None, "network": "dynunet"} | settings))
    return planned(config, manifest, _fingerprint([shape], [mm]), CPU)


def test_fine_axes_are_halved_first() -> None:
    # 3 mm slices wait until the others, of 0.8 mm, have come up to them.
    strides, kernels = topology((24, 160, 160), (3.0, 0.8, 0.8))
    assert strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert kernels[:3] == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    # An axis twice as coarse waits, too; one a little finer does not.
    assert topology((32, 32, 32), (2.0, 1.0, 1.0))[0][1] == (1, 2, 2)
    assert topology((32, 32, 32), (1.9, 1.0, 1.0))[0][1] == (2, 2, 2)


def test_equal_axes_are_halved_together_while_maps_are_large_enough() -> None:
    strides, kernels = topology((40, 56, 40), (1, 1, 1))
    assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(kernels) == {(3, 3, 3)}
    size = np.array((40, 56, 40)) // np.prod(strides, axis=0)
    assert size.tolist() == [5, 7, 5]
    assert len(topology((512, 512), (1, 1))[0]) == 6
    assert topology((7, 7), (1, 1))[0] == ((1, 1),)


@pytest.mark.parametrize("network", ["unet", "dynunet", "vnet"])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((36, 50, 35), (1, 1, 1)),
        ((20, 320, 320), (3.6, 0.6, 0.6)),
        ((300, 512, 512), (1.5, 0.8, 0.8)),
        ((13, 67, 82), (3, 0.5, 0.5)),
        ((9, 9, 9), (1, 1, 1)),
        ((8, 8, 8), (1, 1, 1)),
        ((5, 6), (1, 1)),
        ((512, 480), (0.4, 0.4)),
        ((40, 2000), (1, 1)),
    ],
)
def test_networks_take_what_is_planned_for_them(
    network: str, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    config = _planned(shape, spacing, network=network)
    assert config.patch_size is not None
    assert all(n % by == 0 for n, by in zip(config.patch_size, divisor(config, len(shape)), strict=True))
    assert activations_gb(config, config.patch_size) * 2 <= (config.memory_gb or 0) or network == "vnet"
    assert config.batch_size in (2, 3, 4)
    with torch.device("meta"):
        net = create_network(config, len(shape), 3).eval()
        assert net(torch.empty(1, 1, *config.patch_size)).shape == (1, 3, *config.patch_size)


def test_a_patch_holds_a_median_case_where_memory_allows() -> None:
    shapes = [(30, 40, 50), (36, 50, 35), (80, 80, 80)]
    config = RunConfig(manifest="phantom", levels=None, network="dynunet")
    done = planned(config, PHANTOM, _fingerprint(shapes, [(1.0, 1.0, 1.0)] * 3), CPU)
    assert done.patch_size == (40, 56, 56)
    assert done.batch_size == 4
    large = _planned((300, 300, 300), (1, 1, 1))
    larger = _planned((300, 300, 300), (1, 1, 1), memory_gb=16)
    assert large.patch_size is not None and larger.patch_size is not None
    assert np.prod(large.patch_size) < np.prod(larger.patch_size) <= 16 / 2 * np.prod(large.patch_size) * 1.2
    assert large.batch_size == 2


def test_coarse_axes_take_a_low_percentile() -> None:
    spacings = [(z, 0.5, 0.5) for z in (2.0, 3.0, 4.0, 5.0, 6.0)]
    thin = _fingerprint([(20, 300, 300)] * 5, spacings)
    assert thin.target_spacing() == pytest.approx((2.4, 0.5, 0.5))
    cube = _fingerprint([(200, 300, 300)] * 5, spacings)
    assert cube.target_spacing() == pytest.approx((4.0, 0.5, 0.5))


def test_what_is_asked_for_is_kept() -> None:
    asked = {"patch_size": (16, 32, 32), "batch_size": 7, "spacing": (2.0, 2.0, 2.0), "base_channels": 8, "levels": 3}
    done = _planned((36, 50, 35), (1, 1, 1), **asked, learning_rate=0.5, intensity="clip")
    assert {name: getattr(done, name) for name in asked} == asked
    assert done.learning_rate == 0.5
    assert done.intensity_clip is not None
    assert (done.intensity_clip.low, done.intensity_clip.high) == pytest.approx((-985, 1985), abs=1)


def test_a_ct_is_clipped_by_its_foreground() -> None:
    manifest = PHANTOM.model_copy(update={"modality": "CT"})
    done = planned(RunConfig(manifest="x"), manifest, _fingerprint([(8, 8, 8)], [(1.0, 1.0, 1.0)]), CPU)
    assert done.intensity == "clip" and done.intensity_clip is not None
    assert _planned((8, 8, 8), (1, 1, 1)).intensity_clip is None


def test_each_loss_may_have_a_rate_of_its_own() -> None:
    rates = {"learning_rates": {"focal": 0.01}}
    assert _planned((16, 16, 16), (1, 1, 1), loss="focal", **rates).learning_rate == 0.01
    assert _planned((16, 16, 16), (1, 1, 1), loss="dice", **rates).learning_rate == 3e-3
    assert _planned((16, 16, 16), (1, 1, 1), loss="dice", optimizer="sgd").learning_rate == 1e-2


def test_a_plan_is_planned_no_further() -> None:
    done = _planned((20, 320, 320), (3.6, 0.6, 0.6))
    assert planned(done, PHANTOM, _fingerprint([(64, 64, 64)], [(1.0, 1.0, 1.0)]), CPU) == done
    assert RunConfig.model_validate_json(done.model_dump_json()) == done


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deep_supervision": 2, "network": "unet"}, "deep supervision: 'unet' has one output"),
        ({"levels": 2}, "levels: got 2; 'dynunet' has at least 3"),
        ({"spacing": (1.0, 1.0)}, r"spacing: got \(1.0, 1.0\); expected 3 numbers"),
        ({"patch_size": (22, 22, 22)}, "needs 3 numbers divisible by 4"),
        ({"patch_size": (32, 32)}, "needs 3 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _planned((36, 50, 35), (1, 1, 1), **changes)


def test_deep_supervision_has_coarser_outputs_while_it_trains() -> None:
    config = _planned((36, 50, 35), (1, 1, 1), deep_supervision=5)
    network = create_network(config, 3, 3)
    assert isinstance(network, SupervisedDynUNet)
    image = torch.zeros(1, 1, 40, 56, 40)
    shapes = [tuple(scale.shape) for scale in network.train()(image)]
    assert shapes == [(1, 3, 40, 56, 40), (1, 3, 20, 28, 20), (1, 3, 10, 14, 10)]
    assert network.eval()(image).shape == (1, 3, 40, 56, 40)
