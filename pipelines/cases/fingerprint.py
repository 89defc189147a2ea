"""What a data set is like: the facts from which a training is planned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.cases.cache import EntryCache
from pipelines.cases.reading import read_case
from pipelines.cases.store import content_key
from pipelines.dataset.manifest import Case, Manifest
from pipelines.training.run_config import Clip

_VERSION = "facts 1"
#: So many foreground intensities of a case are looked at, evenly spread: with hundreds of cases that is plenty.
_MOST_INTENSITIES = 5_000
#: An axis more than so much coarser than the coarsest of the others is not sampled up to the median: nnU-Net's bound
#: for anisotropy.
ANISOTROPIC = 3.0


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the training cases; the validation cases are not looked at.

    Attributes:
        shapes: voxels an axis.
        spacings: mm an axis.
        intensities: of voxels of foreground, over all cases; evenly spread samples.
    """

    shapes: list[tuple[int, ...]]
    spacings: list[tuple[float, ...]]
    intensities: np.ndarray

    def target_spacing(self) -> tuple[float, ...]:
        """The spacing (mm an axis) to train at: the median; along a coarse axis the 10th percentile.

        As in nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): where one axis is both three times as
        coarse as the coarsest of the others and three times as short, its median would make most cases' slices anew.
        """
        spacings, shapes = np.array(self.spacings), np.array(self.shapes)
        target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
        worst = int(target.argmax())
        others = [axis for axis in range(len(target)) if axis != worst]
        if target[worst] > ANISOTROPIC * target[others].max() and size[worst] * ANISOTROPIC < size[others].min():
            target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
        return tuple(float(value) for value in target)

    def clip(self) -> Clip:
        """How intensities that mean something, such as Hounsfield units, are clipped and scaled; as in nnU-Net."""
        values = self.intensities if len(self.intensities) else np.zeros(1)
        low, high = np.percentile(values, [0.5, 99.5])
        clipped = values.clip(low, high)
        return Clip(low=low, high=high, mean=clipped.mean(), std=max(float(clipped.std()), 1e-8))


def take_fingerprint(
    manifest: Manifest,
    cases: Sequence[Case],
    root: Path,
    cache: EntryCache | None = None,
    keys: dict[str, list[str]] | None = None,
) -> Fingerprint:
    """Read the cases once, one at a time, and take their facts.

    Args:
        manifest: whose labels hold.
        cases: those that train.
        root: the data root.
        cache: where facts are kept.
        keys: as `CaseStore`'s.

    Raises:
        UserError: a case that cannot be read.
    """
    shapes, spacings, intensities = [], [], []
    for case in cases:

        def compute(case: Case = case) -> dict[str, Any]:
            return _facts(read_case(manifest, case, root))

        if cache is None:
            facts = compute()
        else:
            content = (keys or {}).get(case.id) or content_key(case, root)
            facts = cache.get([_VERSION, str(manifest.label_values), *content], compute)
        shapes.append(tuple(facts["shape"]))
        spacings.append(tuple(facts["spacing"]))
        intensities.append(facts["intensities"].numpy())
    return Fingerprint(shapes, spacings, np.concatenate(intensities))


def _facts(case: dict[str, Any]) -> dict[str, Any]:
    values = case["image"][case["label"] > 0]
    step = max(1, len(values) // _MOST_INTENSITIES)
    return {
        "shape": list(case["label"].shape[1:]),
        "spacing": case["spacing"].tolist(),
        "intensities": values[::step].to(torch.float32).clone(),
    }
