"""Presets: the arguments that a loss has elsewhere, by a name: `dice@nnunet`, `medloss.DiceLoss.preset("monai")`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medloss.errors import InputError

_SMOOTH = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}


@dataclass(frozen=True)
class Preset:
    """Arguments of several losses, by the losses' names.

    Attributes:
        summary: whose they are, and what they do not set.
        arguments: of each loss that the preset has; None: of every loss, which keeps its defaults.
        with_softmax: arguments in addition, where classes exclude each other.
    """

    summary: str
    arguments: Mapping[str, Mapping[str, Any]] | None = None
    with_softmax: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_NNUNET: dict[str, dict[str, Any]] = {
    "binary_cross_entropy": {},
    "topk_cross_entropy": {"k": 10.0, "batch": True},
}
_WITHOUT_BACKGROUND = {"dice": {"include_background": False}}

PRESETS: dict[str, Preset] = {
    "survey": Preset("medloss's defaults"),
    # Also what is a default here, where a recipe has something else.
    "monai": Preset(
        "MONAI's defaults, where MONAI has the loss; docs/parity.md lists what still differs",
        {
            "binary_cross_entropy": {},
            "focal": {"gamma": 2.0, "alpha": None},
            "dice": _SMOOTH,
            "tversky": {"alpha": 0.5, "beta": 0.5, **_SMOOTH},
            "generalized_dice": {"w_type": "square", **_SMOOTH},
            "generalized_wasserstein_dice": _SMOOTH,
            "matthews_correlation": {"smooth_dr": 1e-5},
            "cldice": {"iter_": 3, "smooth": 1.0},
            "hausdorff_dt": {"alpha": 2.0, "include_background": False},
            "log_hausdorff_dt": {"alpha": 2.0, "include_background": False},
            "boundary": {"include_background": True},
            "unified_focal": {"alpha": 0.5, "delta": 0.7, "gamma": 0.5, "smooth_nr": 1e-7, "smooth_dr": 1e-7},
        },
    ),
    "nnunet": Preset(
        "nnU-Net's; pass batch=True where its plan has batch_dice: the sums are then over all ranks, as there (its "
        "trainers do)",
        {"dice": _SMOOTH, **_NNUNET},
        _WITHOUT_BACKGROUND,
    ),
    # nnU-Net has no 1e-8 in a denominator that is larger.
    "nnunet_nosmooth": Preset(
        "as nnunet, without smoothing (nnUNetTrainerDiceCELoss_noSmooth)",
        {"dice": {"smooth_nr": 0.0, "smooth_dr": 1e-8}, **_NNUNET},
        _WITHOUT_BACKGROUND,
    ),
}


def preset_arguments(preset: str, loss: str, *, softmax: bool) -> dict[str, Any]:
    """The arguments of a loss by a preset.

    Args:
        preset: a name of `PRESETS`.
        loss: a registered loss's name.
        softmax: whether classes exclude each other.

    Raises:
        InputError: there is no such preset, or it does not have the loss.

    Example:
        >>> from medloss.presets import preset_arguments
        >>> preset_arguments("nnunet", "dice", softmax=False)
        {'smooth_nr': 1e-05, 'smooth_dr': 1e-05}
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the presets are {', '.join(PRESETS)}"
        raise InputError(f"{loss}@{preset}: no preset '{preset}'; {hint}")
    found = PRESETS[preset]
    if found.arguments is None:
        return {}
    if loss not in found.arguments:
        having = ", ".join(_having(loss))
        raise InputError(f"{loss}@{preset}: {preset} has no {loss}; the presets that have it are {having}")
    return dict(found.arguments[loss]) | (dict(found.with_softmax.get(loss, {})) if softmax else {})


def presets_of(loss: str) -> dict[str, dict[str, Any]]:
    """The presets that have a loss, and their arguments with a softmax."""
    return {name: preset_arguments(name, loss, softmax=True) for name in _having(loss)}


def _having(loss: str) -> list[str]:
    return [name for name, preset in PRESETS.items() if preset.arguments is None or loss in preset.arguments]
