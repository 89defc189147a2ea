"""A short training on a GPU; it needs torch, MONAI and numpy alone."""

import gzip
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import medloss
from benchmarks.gpu_checks import Machine, Skipped


def training(machine: Machine, data: Path | None, seconds: float) -> str:
    """A U-Net on the hippocampus for some seconds; the mean Dice of cases that it has not seen."""
    if data is None or not (data / "imagesTr").is_dir():
        raise Skipped("no Task04_Hippocampus: --data FOLDER")
    from monai.networks.nets import UNet

    paths = sorted(p for p in (data / "imagesTr").glob("*.nii.gz") if not p.name.startswith("."))
    paths = paths[: 6 if machine.dry else 120]
    cases = [_load_case(path, data, (16, 16, 16) if machine.dry else (40, 56, 40)) for path in paths]
    held = max(len(cases) // 5, 1)
    images, labels = (torch.stack(part).to(machine.device) for part in zip(*cases, strict=True))
    torch.manual_seed(0)
    width = 4 if machine.dry else 16
    network = UNet(3, 1, 3, (width, 2 * width, 4 * width), (2, 2), num_res_units=1).to(machine.device)
    loss_function = medloss.CombinedLoss("dice+binary_cross_entropy", softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    start, steps, first, last = time.perf_counter(), 0, None, math.nan
    with medloss.kernels.use("eager" if machine.dry else "auto"):
        while time.perf_counter() - start < seconds or steps < 2:
            index = held + torch.randint(len(cases) - held, (2 if machine.dry else 8,)).to(machine.device)
            with torch.autocast(machine.device.type, torch.bfloat16):
                output = network(images[index])
            loss = loss_function(output, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps, last = steps + 1, loss.item()
            first = last if first is None else first
    assert math.isfinite(last), f"the loss became {last}"
    network.eval()
    with torch.no_grad():
        scores = [_mean_dice(network(images[i : i + 1]).argmax(1), labels[i, 0][None]) for i in range(held)]
    score = float(np.mean(scores))
    assert machine.dry or score > 0.6, f"mean Dice {score:.3f} after {steps} steps; expected more than 0.6"
    return f"{steps} steps, loss {first:.3f} to {last:.3f}, mean Dice {score:.3f} of {held} other cases"


def _mean_dice(found: Tensor, truth: Tensor) -> float:
    overlaps = [(2 * ((found == c) & (truth == c)).sum(), (found == c).sum() + (truth == c).sum()) for c in (1, 2)]
    return float(np.mean([float(a) / max(float(b), 1.0) for a, b in overlaps]))


def _load_case(path: Path, data: Path, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Image and label, padded or cropped to a size; without nibabel, which may not be installed."""
    image, label = (_read_nifti(folder / path.name) for folder in (path.parent, data / "labelsTr"))
    image = (image - image.mean()) / image.std()
    fitted = []
    for array in (image.astype(np.float32), label.astype(np.int64)):
        out = np.zeros(size, array.dtype)
        box = tuple(slice(0, min(a, b)) for a, b in zip(array.shape, out.shape, strict=True))
        out[box] = array[box]
        fitted.append(torch.from_numpy(out)[None])
    return fitted[0], fitted[1]


def _read_nifti(path: Path) -> Any:
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, np.int16, 8, 40)
    kind = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64}[
        int(np.frombuffer(data, "<i2", 1, 70)[0])
    ]
    offset = int(np.frombuffer(data, "<f4", 1, 108)[0])
    size = tuple(int(n) for n in shape[1:4])
    return np.frombuffer(data, kind, math.prod(size), offset).reshape(size, order="F")
