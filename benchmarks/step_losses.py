"""The sides of the benchmark of a training step: each loss as ours, MONAI's or torch's, and compiled by torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import medloss
from benchmarks.cases import EXACT
from benchmarks.contenders import monai_loss
from benchmarks.plain_torch import PLAIN
from benchmarks.step_results import COMPILED, OURS
from benchmarks.step_run import Loss, TrainingStep
from benchmarks.step_settings import DISTANCE_LOSSES, Setting
from medloss.distance.maps import signed_distance_map
from medloss.kernels import dispatch

#: By side and name.
Losses = dict[tuple[str, str], Loss]


def losses_of(setting: Setting, regime: str, step: TrainingStep) -> tuple[Losses, dict[str, str]]:
    """All sides of a setting's losses; and by loss, why the compiled side is missing."""
    losses: Losses = {}
    notes: dict[str, str] = {}
    maps: dict[str, Tensor] = {}
    target = step.target
    if setting.prepared:
        maps["distance_map"] = signed_distance_map(torch.cat([target == c for c in range(setting.classes)], 1))
    for loss in setting.losses:
        for kernels in setting.kernels:
            side = f"{OURS}, {kernels or dispatch.in_use()}"
            losses[side, loss] = _ours(medloss.create_loss(loss, softmax=True), target, kernels, maps)
        if loss in DISTANCE_LOSSES and loss != "hausdorff_dt":
            continue
        if loss == "binary_cross_entropy":
            losses["torch", loss] = _elsewhere(PLAIN[loss], target)
        else:
            losses["MONAI", loss] = _elsewhere(monai_loss(loss, setting.classes), target)
        if not setting.compiled or regime == EXACT or loss not in PLAIN:
            continue
        function = _elsewhere(torch.compile(PLAIN[loss]), target)
        try:
            function(step.outputs()).backward()
        except Exception as error:  # whatever the compiler or the C++ compiler raises
            notes[loss] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        else:
            losses[COMPILED, loss] = function
    return losses, notes


def _ours(loss: nn.Module, target: Tensor, kernels: str, maps: dict[str, Tensor]) -> Loss:
    supervised = medloss.DeepSupervision(loss)

    def function(outputs: list[Tensor]) -> Tensor:
        with dispatch.use(kernels or "auto"):
            single = len(outputs) == 1
            value: Tensor = loss(outputs[0], target, **maps) if single else supervised(outputs, target, **maps)
            return value

    return function


def _elsewhere(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> Loss:
    """Float32 logits, and one loss per scale on a target that is resized in each step, as MONAI's wrapper does."""

    def function(outputs: list[Tensor]) -> Tensor:
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for number, out in enumerate(outputs):
            grid = out.shape[2:]
            label = target
            if grid != target.shape[2:]:
                label = F.interpolate(target.float(), size=tuple(grid), mode="nearest-exact").to(target.dtype)
            total = total + 0.5**number * loss(out.float(), label)
        return total

    return function
