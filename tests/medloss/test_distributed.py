"""`batch=True` over data-parallel ranks: two real processes under DDP train as one does on the global batch."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import LIMIT_S, Ranks
from loss_inputs import SMALL, SPACING, assert_close, class_weights, mask_like, sample
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import medloss

_DRAWN = sample("softmax", 3, batch=4)
IMAGES = torch.randn(4, 1, *_DRAWN.index.shape[2:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
LABELS = _DRAWN.index.clone()
LABELS[2:] = 0  # the second rank has no foreground
TUBES = (torch.arange(3).view(1, 3, 1, 1, 1) == LABELS) & (torch.arange(LABELS.shape[-1]) % 2 == 0)
MASKS = {
    "none": torch.ones_like(LABELS, dtype=torch.bool),
    "random": mask_like(LABELS),
    # Of the second rank no voxel counts.
    "second": (torch.arange(4) < 2).view(4, 1, 1, 1, 1).expand(LABELS.shape),
}
WEIGHTS = torch.rand(LABELS.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
WEIGHTS[2] = 0
#: By item and class: the first rank's items label all classes, and no item of the second rank class 2.
LABELLED = torch.tensor([[True] * 3, [True] * 3, [True, True, False], [True, False, False]])


@dataclass(frozen=True)
class Case:
    """A loss, and which part of the four items each rank gets.

    Attributes:
        loss: a registered name, or a sum.
        arguments: of the loss, in addition to `batch=True`.
        mask: a key of `MASKS`.
        first: items of the first rank.
        deep: whether the network has an output of half the size, too.
        compiled: whether the loss goes through torch's compiler.
        labelled: whether not every item labels all classes.
        weighted: whether voxels have weights; those of the second rank's first item are 0.
    """

    loss: str
    arguments: dict[str, Any] = field(default_factory=dict)
    mask: str = "none"
    first: int = 2
    deep: bool = False
    compiled: bool = False
    labelled: bool = False
    weighted: bool = False

    @property
    def parts(self) -> list[slice]:
        """The items of each rank."""
        return [slice(0, self.first), slice(self.first, 4)]

    def make(self) -> nn.Module:
        """The loss."""
        activation = {} if {"sigmoid", "other_act"} & set(self.arguments) else {"softmax": True}
        arguments = activation | SMALL.get(self.loss, {}) | {"batch": True} | self.arguments
        single = self.loss in medloss.LOSSES
        loss = medloss.LOSSES[self.loss].cls(**arguments) if single else medloss.CombinedLoss(self.loss, **arguments)
        if self.deep:
            return medloss.DeepSupervision(loss)
        return torch.compile(loss, fullgraph=True, backend="aot_eager") if self.compiled else loss  # type: ignore[return-value]

    def run(self, network: nn.Module, items: slice) -> tuple[Tensor, Tensor]:
        """Value and the network's gradient."""
        network.zero_grad()
        logits: Any = network(IMAGES[items])
        if self.deep:
            logits = [logits, nn.functional.avg_pool3d(logits, 2)]
        mask = MASKS[self.mask][items]
        # Whether a rank was given a mask at all must make no difference.
        keywords: dict[str, Any] = {} if bool(mask.all()) else {"mask": mask}
        if self.labelled and not bool(LABELLED[items].all()):
            keywords["labelled_classes"] = LABELLED[items]
        weights = WEIGHTS.clone()
        if self.loss == "dice":
            weights[:2] = 1  # of the first rank, which is then given none
        if self.weighted and not bool((weights[items] == 1).all()):
            keywords["voxel_weight"] = weights[items]
        if not self.compiled:
            keywords["spacing"] = SPACING[3]
        if self.loss == "skeleton_recall":  # which else needs scikit-image
            keywords["skeleton_map"] = TUBES[items]
        value = self.make()(logits, LABELS[items], **keywords)
        value.mean().backward()
        return value.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def of_family(*families: str) -> list[str]:
    return [name for name, entry in medloss.LOSSES.items() if entry.family in families]


#: With `batch=True` they choose or sort within each rank's batch.
OF_THE_RANK = ("topk_cross_entropy", "lovasz")
#: The losses that have regions to sum over the batch.
REGIONS = [name for name in of_family("region", "compound") if name not in OF_THE_RANK]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "foreground": {"arguments": {"include_background": False}},
    "weighted": {"arguments": {"weight": [0.5, 2.0, 1.5]}},
    "sigmoid": {"arguments": {"sigmoid": True}},
    "activation": {"arguments": {"other_act": torch.sigmoid}},
    "ignore": {"arguments": {"ignore_index": 2}},
    "masked": {"mask": "random"},
    "nothing_counts": {"mask": "second"},
    "uneven": {"first": 3},
    "uneven_masked": {"first": 1, "mask": "random"},
    "sum": {"arguments": {"reduction": "sum"}},
    "none": {"arguments": {"reduction": "none"}},
    "deep": {"deep": True},
    "labelled": {"labelled": True},
    "voxel_weight": {"weighted": True},
    "labelled_sigmoid": {"labelled": True, "arguments": {"sigmoid": True}},
}


def has_meaning(name: str, variant: str) -> bool:
    if variant == "weighted":
        return len(class_weights(name, "softmax", background=True) or ()) == 3
    return not (medloss.LOSSES[name].cls.categorical_only and variant in ("sigmoid", "activation", "labelled_sigmoid"))


CASES = {
    f"{name}-{variant}": Case(name, **options)
    for name in REGIONS
    for variant, options in VARIANTS.items()
    if has_meaning(name, variant)
}
CASES |= {
    "dice-squared": Case("dice", {"squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-5}),
    "dice-jaccard": Case("dice", {"jaccard": True, "smooth_nr": 0.5, "smooth_dr": 2.0}),
    "sensitivity_specificity-quotients": Case("sensitivity_specificity", {"squared": False, "r": 0.3}),
    "exponential_logarithmic-frequencies": Case("exponential_logarithmic", {"frequencies": (0.7, 0.2, 0.1)}),
    "generalized_wasserstein_dice-matrix": Case(
        "generalized_wasserstein_dice",
        {"dist_matrix": ((0, 1, 1), (1, 0, 0.4), (1, 0.4, 0)), "weighting_mode": "GDL"},
        first=3,
        mask="random",
    ),
    "one_pass": Case("dice+0.5*tversky"),
    "two_compounds": Case("combo+0.5*exponential_logarithmic", first=3, mask="random"),
    "dice-compiled": Case("dice", compiled=True),
    "exponential_logarithmic-compiled": Case("exponential_logarithmic", mask="random", compiled=True),
}
#: Their voxelwise part differs between ranks, so the values differ though the gradients' mean does not.
MEANS = {"with_cross_entropy": Case("0.5*dice+binary_cross_entropy")}
MEANS |= {
    f"{name}-means": Case(name) for name in of_family("distribution", "boundary", "wrapper") if name not in OF_THE_RANK
}
MEANS["balanced-labelled"] = Case("balanced_cross_entropy", labelled=True)
#: It divides by the number of voxels that it selects, whatever `batch` says.
del MEANS["structural_similarity-means"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1, dtype=torch.float64)


def validate(items: slice) -> Tensor:
    with torch.no_grad():
        return Case("combo").make()(network()(IMAGES[items]), LABELS[items])


def balance(network: nn.Module, items: slice) -> list[Tensor]:
    """The weights of a balanced sum, in its first epoch and after it."""
    loss = medloss.CombinedLoss(["hausdorff_dt", "dice"], schedule="balanced", softmax=True, batch=True)
    seen = []
    for epoch in range(2):
        loss.start_epoch(epoch)
        for scale in (1.0, 3.0):
            loss(scale * network(IMAGES[items]), LABELS[items], spacing=SPACING[3])
        seen.append(loss.weights.clone())
    return seen


def rank_process(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT_S))
    rank = dist.get_rank()
    parallel = DistributedDataParallel(network())
    with medloss.kernels.use("eager"):
        results: dict[str, Any] = {name: case.run(parallel, case.parts[rank]) for name, case in (CASES | MEANS).items()}
        if rank == 0:  # alone: it must not wait for the other
            results["validation"] = validate(slice(0, 2))
        results["weights"] = balance(parallel, slice(2 * rank, 2 * rank + 2))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    done = Ranks(rank_process, folder).join()
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def close(actual: Sequence[Any] | Tensor, expected: Sequence[Any] | Tensor) -> None:
    assert_close(actual, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_one_process_on_the_global_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    case = replace(CASES[name], compiled=False)
    with medloss.kernels.use("eager"):
        value, gradient = case.run(network(), slice(0, 4))
        apart = [case.run(network(), part) for part in case.parts]
    for results in ranks:
        close(results[name][0], value)
        close(results[name][1], gradient)
    # Not because there is nothing to see: the loss of each part has another gradient.
    error = (torch.stack([part for _, part in apart]).mean(0) - gradient).abs().max()
    assert error > 1e-3 * gradient.abs().max()


@pytest.mark.parametrize("name", MEANS)
def test_means_over_items_need_no_more_than_the_mean_over_ranks(name: str, ranks: list[dict[str, Any]]) -> None:
    with medloss.kernels.use("eager"):
        value, gradient = MEANS[name].run(network(), slice(0, 4))
    close(torch.stack([results[name][0] for results in ranks]).mean(), value)
    for results in ranks:
        close(results[name][1], gradient)


def test_a_validation_is_each_ranks_own(ranks: list[dict[str, Any]]) -> None:
    with medloss.kernels.use("eager"):
        close(ranks[0]["validation"], validate(slice(0, 2)))
        assert not torch.isclose(validate(slice(0, 2)), validate(slice(0, 4)))


def test_a_balanced_sum_has_the_same_weights_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    with medloss.kernels.use("eager"):
        weights = balance(network(), slice(0, 4))
    for results in ranks:
        for actual, expected in zip(results["weights"], weights, strict=True):
            close(actual, expected)


@pytest.mark.parametrize("name", REGIONS)
def test_one_process_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    seen = []
    with medloss.kernels.use("eager"):
        for compiled in (False, True):
            logits = _DRAWN.logits.clone().requires_grad_()
            # The skeletons that are not given need scikit-image.
            value = Case(name, compiled=compiled).make()(logits, LABELS, mask=MASKS["random"], skeleton_map=TUBES)
            seen.append((value.detach(), *torch.autograd.grad(value, logits)))
    for actual, expected in zip(*seen, strict=True):
        close(actual, expected)
