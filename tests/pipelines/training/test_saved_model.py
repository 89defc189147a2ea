"""`model.pt`: what it keeps, and what is refused as one."""

import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_manifest
from torch import Tensor, nn

from pipelines.data.manifest import Manifest, load_manifest
from pipelines.preprocessing import Clip
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.networks import create_network
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import NAME, channels_last, load_model, save_model
from pipelines.utils import UserError

CPU = torch.device("cpu")
CLIP = Clip(low=-50.0, high=150.5, mean=31.25, std=17.75)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Manifest]:
    folder = tmp_path_factory.mktemp("model")
    # Values with gaps: they are not the channels' numbers.
    classes = {0: "background", 2: "organ", 5: "shell", 300: "lesion"}
    return {dims: load_manifest(tiny_manifest(folder, dims, classes=classes)) for dims in (2, 3)}


def _config(dims: int = 2, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "manifest": "/somebody/set.yaml", "data_root": "/somebody/data", "cache_dir": "/somebody/cache", "levels": 3,
        "base_channels": 4, "patch_size": (16,) * dims, "precision": "float32",
    }  # fmt: skip
    return RunConfig(**(settings | changes))


def _saved(path: Path, config: RunConfig, manifest: Manifest, processed: Preprocessing | None = None) -> nn.Module:
    torch.manual_seed(7)
    network = create_network(config, manifest.dimensions, manifest.scheme.channels)
    network = network.to(memory_format=channels_last(manifest.dimensions))  # type: ignore[call-overload]
    save_model(path, network, config, manifest, processed or Preprocessing(dimensions=manifest.dimensions))
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"network": "unet"},
        {"network": "vnet"},
        {"network": "dynunet"},
        {"network": "dynunet", "levels": 4, "deep_supervision": 2},
    ],
    ids=["unet", "vnet", "dynunet", "deep"],
)
def test_round_trip(tmp_path: Path, manifests: dict[int, Manifest], changes: dict[str, Any], dims: int) -> None:
    config, manifest = _config(dims, **changes), manifests[dims]
    processed = Preprocessing(dimensions=dims, spacing=(3.0, 1.0, 2.0)[:dims], clip=CLIP)
    network = _saved(tmp_path / NAME, config, manifest, processed)
    model = load_model(tmp_path / NAME, CPU)
    weights = network.state_dict()
    kept = model.network.state_dict()
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    # What only training uses is gone; else nothing is.
    assert {name for name in weights if name not in kept} == {
        name for name in weights if "heads" in name or "super_head" in name
    }
    assert model.scheme.classes == {0: "background", 2: "organ", 5: "shell", 300: "lesion"}
    assert model.preprocessing == processed
    assert model.dtype is None
    image = torch.rand(1, *(20, 16, 23)[:dims])
    logits = model.logits(image)
    assert logits.shape == (4, *image.shape[1:])
    window = torch.rand(1, *(16,) * dims)
    with torch.no_grad():
        expected = network(window[None].to(memory_format=channels_last(dims)))[0]
    torch.testing.assert_close(model.logits(window), expected)


def test_averaged_weights_are_the_ones_kept(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 2, cases=3)
    config = _config(
        manifest=str(manifest), data_root=str(tmp_path / "data"), cache_dir=None, epochs=2, ema=0.9, batch_size=2,
        threads=1, device="cpu",
    )  # fmt: skip
    train_run(config, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    kept = load_model(tmp_path / "run", CPU).network.state_dict()
    average, last = state["training"]["average"], state["training"]["network"]
    assert kept.keys() == average.keys()
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_nothing_of_the_machine_is_in_it(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    _saved(tmp_path / NAME, _config(), manifests[2])
    assert b"somebody" not in (tmp_path / NAME).read_bytes()
    once = (tmp_path / NAME).read_bytes()
    _saved(tmp_path / NAME, _config(manifest="/elsewhere/set.yaml"), manifests[2])
    assert (tmp_path / NAME).read_bytes() == once


def test_flips_average_the_mirrored_images(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    _saved(tmp_path / NAME, _config(3, flip_axes=(0, 2)), manifests[3])
    model = load_model(tmp_path / NAME, CPU)
    image = torch.rand(1, 16, 16, 16)
    expected = sum(model.logits(image.flip(axes)).flip(axes) for axes in ([], [1], [3], [1, 3]))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(model.logits(image, flips=True), expected / 4)
    assert not torch.allclose(model.logits(image, flips=True), model.logits(image))


def test_windows_at_once_decide_nothing(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    _saved(tmp_path / NAME, _config(), manifests[2])
    model = load_model(tmp_path / NAME, CPU)
    image = torch.rand(1, 50, 37)
    torch.testing.assert_close(model.logits(image, windows=1), model.logits(image, windows=7))


def test_precision(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    _saved(tmp_path / NAME, _config(patch_size=(32, 32)), manifests[2])
    assert load_model(tmp_path / NAME, CPU).dtype is None
    model = load_model(tmp_path / NAME, CPU, "bfloat16")
    assert model.dtype is torch.bfloat16
    image = torch.rand(1, 40, 32, generator=torch.Generator().manual_seed(0))
    half, whole = model.logits(image), load_model(tmp_path / NAME, CPU).logits(image)
    assert half.dtype is torch.float32
    assert not torch.equal(half, whole)
    assert (half - whole).norm() < 0.05 * whole.norm()
    with pytest.raises(UserError, match="precision: got float16"):
        load_model(tmp_path / NAME, CPU, "float16")
    # Trained on a GPU in a precision that a CPU does not support: it still predicts.
    _saved(tmp_path / NAME, _config(precision="float16"), manifests[2])
    assert load_model(tmp_path / NAME, CPU).dtype in (None, torch.bfloat16)


def _message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, CPU)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_no_model(tmp_path: Path) -> None:
    assert _message(tmp_path / NAME) == "no model there; a run writes one when it is finished"
    message = "damaged, or no model(: .*)?; expected the file model.pt|refused: damaged"
    for content in (b"", b"hello", b"\x80\x02"):
        (tmp_path / NAME).write_bytes(content)
        assert re.match(message, _message(tmp_path / NAME))
    torch.save({"network": {}}, tmp_path / NAME)
    assert _message(tmp_path / NAME) == "no model of this version of medloss (format 1)"


def test_every_flipped_bit_is_reported_or_harmless(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    path = tmp_path / NAME
    weights = _saved(path, _config(levels=2, base_channels=2), manifests[2]).state_dict()
    whole = path.read_bytes()
    messages: set[str] = set()
    for at in range(13, len(whole), 71):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            model = load_model(path, CPU)
        except UserError as error:
            messages.add(str(error).removeprefix(f"{path}: ")[:8])
            continue
        # In the archive's padding, for example: then nothing else has changed.
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.network.state_dict().items())
        assert model.scheme.classes == {0: "background", 2: "organ", 5: "shell", 300: "lesion"}
    assert "damaged:" in messages  # by the SHA-256: Torch itself does not notice


def test_truncated_files(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    path = tmp_path / NAME
    _saved(path, _config(levels=2, base_channels=2), manifests[2])
    whole = path.read_bytes()
    for length in range(1, len(whole), 997):
        path.write_bytes(whole[:length])
        assert re.match("damaged|refused: damaged", _message(path))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NAME
    torch.save({"format": 1, "network": _Evil()}, path)
    assert _message(path) == "refused: damaged, or it holds more than tensors, numbers and text, perhaps code"
    path.write_bytes(pickle.dumps(_Evil()))
    assert re.match("refused: |damaged, or no model: ", _message(path))
    torch.save(nn.Conv2d(1, 1, 1), path)
    assert _message(path).startswith("refused: ")
    assert not (tmp_path / "pwned").exists()


def _resaved(path: Path, change: Any) -> str:
    """A whole file, checksum and all, with another content."""
    from pipelines.training import saved_model

    state = torch.load(path, weights_only=True)
    change(state)
    state.pop("sha256")
    state["sha256"] = saved_model._digest(state)
    torch.save(state, path)
    return _message(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["config"].update(network="resnet"), "network"),
        (lambda s: s["config"].update(unheard_of=1), "unheard_of"),
        (lambda s: s.pop("preprocessing"), "preprocessing"),
        (lambda s: s["preprocessing"].update(spacing="x"), "spacing"),
        (lambda s: s["classes"].pop(300), "size mismatch"),
        (lambda s: s["network"].popitem(), "Missing key"),
        # Would take a machine's memory, if it were made before it is looked at.
        (lambda s: s["config"].update(base_channels=10**6), "size mismatch"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, manifests: dict[int, Manifest], change: Any, message: str) -> None:
    _saved(tmp_path / NAME, _config(), manifests[2])
    reason = _resaved(tmp_path / NAME, change)
    assert reason.startswith("no model of this version of medloss: ")
    assert message in reason
    assert len(reason) < 300


def test_clipped_intensities(tmp_path: Path, manifests: dict[int, Manifest]) -> None:
    _saved(tmp_path / NAME, _config(), manifests[2], Preprocessing(dimensions=2, clip=CLIP))
    image = load_model(tmp_path / NAME, CPU).preprocessing.image(torch.tensor([[[-1000.0, 31.25], [49, 1000]]]), (1, 1))
    expected = [(value - 31.25) / 17.75 for value in (-50, 31.25, 49, 150.5)]
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(image.flatten().tolist(), expected, strict=True))
