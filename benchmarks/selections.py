"""Which cases are run: the goals' table in some minutes, or everything in some hours."""

import math
from collections.abc import Callable

from benchmarks.cases import Case, Contender
from benchmarks.contenders import kernel_sets, sides_of

#: Losses that are a formula a voxel, or of a region's sums.
POINTWISE = (
    "binary_cross_entropy", "weighted_cross_entropy", "balanced_cross_entropy", "focal", "tversky", "focal_tversky",
    "sensitivity_specificity", "log_cosh_dice", "combo", "exponential_logarithmic",
)  # fmt: skip
#: Losses whose definition has a distance map or a local statistic in it.
MAPPED = ("distance_penalty", "structural_similarity", "shape_aware")
HAUSDORFF = ("hausdorff_dt", "hausdorff_er", "hausdorff_cv")
#: Region and voxelwise losses of the second set.
SECOND = (
    "topk_cross_entropy", "generalized_dice", "lovasz", "l1_ace", "unified_focal", "matthews_correlation",
    "generalized_wasserstein_dice",
)  # fmt: skip
#: The side lengths, and the numbers of classes, over which growth is shown.
SIDES = (32, 48, 64, 96, 128, 192)
CLASSES = (2, 4, 8, 16, 32)


def goals(device: str) -> list[Case]:
    """The three losses that others have, too, against all of them."""
    return [
        Case("goals", sides_of(loss, device, "float32"), (96,) * 3, classes, device=device)
        for loss in ("dice", "tversky", "focal")
        for classes in (3, 14)
    ]


def entropy(device: str) -> list[Case]:
    """Cross entropy against torch's own; one class is a sigmoid."""
    losses = [("binary_cross_entropy", classes) for classes in (1, 3, 14)] + [("weighted_cross_entropy", 3)]
    return [
        Case("entropy", sides_of(loss, device, "float32"), (96,) * 3, classes, device=device)
        for loss, classes in losses
    ]


def others(device: str) -> list[Case]:
    """Every other voxelwise and region loss against our Dice."""
    return [
        Case(
            "others", _ours(("dice", *POINTWISE), kernels), (96,) * 3, classes, device=device, rounds=11, least=3
        )
        for kernels in kernel_sets(device, "float32")
        for classes in (3, 14)
    ]  # fmt: skip


def more(device: str) -> list[Case]:
    """The region and voxelwise losses of the second set against our Dice."""
    best = kernel_sets(device, "float32")[0]
    return [
        Case("more", _ours(("dice", *SECOND), best), (96,) * 3, classes, device=device, rounds=11, least=5)
        for classes in (3, 14)
    ]


def lovasz(device: str) -> list[Case]:
    """Ours against kornia's and segmentation_models_pytorch's."""
    sides = sides_of("lovasz", device, "float32", ("kornia", "smp"))
    return [Case("lovasz", sides, (96,) * 3, 3, device=device, rounds=7, least=3)]


def instances(device: str) -> list[Case]:
    """A loss averaged over a hundred components, against the same loss of the volume."""
    best = kernel_sets(device, "float32")[0]
    sides = (
        Contender("medloss", "dice+binary_cross_entropy", best),
        Contender("medloss", "instance_wise", best, cached_map=True),
        Contender("medloss", "instance_wise", best),
    )
    return [Case("instances", sides, (96,) * 3, 1, 1, device=device, rounds=11, least=5)]


def mapped(device: str) -> list[Case]:
    """The losses with a distance map or a local statistic, against our Dice."""
    cases = []
    for kernels in kernel_sets(device, "float32"):
        sides = (*_ours(("dice", *MAPPED), kernels), Contender("medloss", "distance_penalty", kernels, cached_map=True))
        cases.append(Case("mapped", sides, (96,) * 3, 3, device=device, rounds=7, least=3))
    return cases


def hausdorff(device: str) -> list[Case]:
    """By distance transforms against MONAI's, and the other two against it."""
    best = kernel_sets(device, "float32")[0]
    cached = Contender("medloss", "hausdorff_dt", best, cached_map=True)
    return [
        Case("hausdorff", (*sides_of("hausdorff_dt", device, "float32"), cached), (64,) * 3, 3, 1, device=device),
        Case("hausdorff", (*_ours(HAUSDORFF, best), cached), (96,) * 3, 3, 1, device=device, rounds=7, least=3),
    ]


def grid(device: str) -> list[Case]:
    """The four common losses over sizes, classes and types."""
    cases = []
    for loss in ("dice", "tversky", "focal", "binary_cross_entropy"):
        for size, classes, batch, dtype in _grid_points():
            sides = sides_of(loss, device, dtype)
            warmup = 8 if batch * classes * math.prod(size) < 1e8 else 2
            cases.append(Case("grid", sides, size, classes, batch, dtype, device, warmup, least=3, seconds=10.0))
    return cases


def growth(device: str) -> list[Case]:
    """Our losses over voxels, and over classes."""
    best = kernel_sets(device, "float32")[0]
    fast, slow = ("dice", "focal", "exponential_logarithmic"), ("structural_similarity", *HAUSDORFF)
    points = [((side,) * 3, 3) for side in SIDES] + [((64,) * 3, classes) for classes in CLASSES]
    cases = [Case("growth", _ours(fast, best), size, classes, 1, device=device) for size, classes in points]
    for size, classes in points:
        warmup = 8 if math.prod(size) * classes <= 3 * 96**3 else 2  # large ones ask the system each time anyway
        cases.append(Case("growth", _ours(slow, best), size, classes, 1, "float32", device, warmup, 7, 3))
    return cases


def gpu(device: str) -> list[Case]:
    """What the goals for a GPU ask for."""
    if device != "cuda":
        return []
    sides = _ours(("dice", "binary_cross_entropy", "hausdorff_dt"), kernel_sets(device, "bfloat16")[0])
    transform = (Contender("medloss", "signed_distance_map"),)
    return [
        Case("gpu", sides, (128,) * 3, 14, 2, "bfloat16", device),
        Case("transform", transform, (256,) * 3, 14, 1, "float32", device, warmup=2, rounds=5),
    ]


GROUPS: dict[str, Callable[[str], list[Case]]] = {
    function.__name__: function
    for function in (goals, entropy, others, more, lovasz, instances, mapped, hausdorff, gpu, grid, growth)
}
QUICK = ("goals", "entropy", "others", "more", "lovasz", "instances", "mapped", "hausdorff", "gpu")
FULL = tuple(GROUPS)


def _ours(losses: tuple[str, ...], kernels: str) -> tuple[Contender, ...]:
    return tuple(Contender("medloss", loss, kernels) for loss in losses)


def _grid_points() -> list[tuple[tuple[int, ...], int, int, str]]:
    """Size, classes, batch, type. With 104 classes, and at 192^3, one item is what memory allows."""
    points: list[tuple[tuple[int, ...], int, int, str]] = []
    for side in (64, 96, 128, 192):
        for classes in (2, 3, 14, 104):
            batch = 1 if classes == 104 or side == 192 else 2
            points.append(((side,) * 3, classes, batch, "float32"))
            if side in (96, 128) and (classes != 104 or side == 96):
                points.append(((side,) * 3, classes, batch, "bfloat16"))
    for classes in (2, 3, 14, 104):
        batch = 2 if classes == 104 else 8
        points += [((512, 512), classes, batch, dtype) for dtype in ("float32", "bfloat16")]
    return points
