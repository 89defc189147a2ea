"""A loss per connected component of the reference, so that small instances count as much as large ones."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.inputs import LossInputs
from medloss.kernels.segment_sums import segment_sums
from medloss.kernels.sum_spec import Row, VoxelTerms
from medloss.loss_entry import Recipe, register
from medloss.maps.instances import check_connectivity, component_map, instance_map
from medloss.reduction import reduce_items, weighted
from medloss.voxel_sums import VoxelSums
from medloss.wrappers.sums_groups import fitting_groups, shareable, united


@register(
    "instance_wise",
    family="wrapper",
    paper="CC-DiceCE 2025, arXiv 2511.17146",
    summary="another loss, averaged over the reference's connected components",
    recipe=Recipe(
        "dice+binary_cross_entropy+instance_wise",
        terms={"instance_wise": {"loss": "dice@nnunet_nosmooth+binary_cross_entropy"}},
        note="After its authors: next to Dice and cross entropy, all of the same weight, and without smoothing of the "
        "instances' Dice",
    ),
)
class InstanceWiseLoss(SegmentationLoss):
    r"""The mean of a loss over the connected components of the reference, of each item and class.

    $$\frac{1}{K} \sum_{k=1}^{K} L(z, y; A_k)$$

    L: the inner loss, of one channel, on the voxels of the area A_k alone (its mask); K: the instances, that is the
    connected components of y that have a counted voxel; y: target. Without an instance there is one area: all voxels.
    Voxel weights are passed to the inner loss; the instances and their areas do not depend on them.

    Areas: `voronoi`, the voxels nearest to the component, in mm (those at the same distance from two belong to either;
    voxels nearest to a component without a counted voxel, outside of a crop, are in no area); or `blob`, the component
    and all of the background, y = 0.

    z: with independent channels the channel's logit; with softmax one class against the rest,
    $z_c - \ln \sum_{k \ne c} \exp z_k$, whose sigmoid is p_c. With softmax class 0 never counts, whatever
    `include_background`: C' = C - 1.

    `instance_map` spares the components and cells (`medloss.maps.InstanceMapd` computes them once for the whole
    volume); without it they are computed here, on the CPU. `spacing` (mm) matters for `voronoi`.

    Args:
        loss: the inner loss: a registered name or a sum of them. Default `dice+binary_cross_entropy` (the authors').
        cells: `voronoi` (CC-DiceCE) or `blob` (blob loss).
        connectivity: of a component's voxels: 26 (in 2D 8), or 6 (4) for face neighbours only.
        terms: keyword arguments of single losses of the sum, by their names, such as `{"dice": {"smooth_nr": 0}}`.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored. Targets must be hard. With
            `reduction="none"` the shape is `[B, C', 1, 1(, 1)]`.

    Raises:
        InputError: an inner loss that is unknown, of another package, or needs a softmax; an unknown `cells` or
            `connectivity`; `terms` for a loss that is not in the sum, or with `reduction="none"` or `batch=True`; a
            soft target.

    References:
        CC-DiceCE (2025), arXiv 2511.17146. Kofler et al. (2022), blob loss: instance imbalance aware loss functions for
        semantic segmentation, arXiv 2205.08209. One class against the rest: arXiv 2604.24276.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.InstanceWiseLoss(sigmoid=True, loss="dice", terms={"dice": {"smooth_nr": 0, "smooth_dr": 0}})
        >>> label = torch.tensor([[[[1.0, 1, 1, 0, 0, 0, 0, 1]]]])
        >>> logits = torch.tensor([[[[0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.2]]]]).logit()
        >>> round(loss(logits, label).item(), 4)  # (1 - 5.4 / 5.9 + 1 - 0.4 / 1.4) / 2: the small one is missed
        0.3995
    """

    soft_targets = False
    uses_spacing = True

    def __init__(
        self,
        *,
        loss: str = "dice+binary_cross_entropy",
        cells: str = "voronoi",
        connectivity: int = 26,
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if cells not in ("voronoi", "blob"):
            raise InputError(f"cells: got '{cells}'; expected 'voronoi' or 'blob'")
        check_connectivity(connectivity)
        self.loss = loss
        self.cells = cells
        self.connectivity = connectivity
        # Maps from elsewhere have the default connectivity.
        self.reads_maps = ("instance_map",) if connectivity == 26 else ()
        self.terms = None if terms is None else {name: dict(arguments) for name, arguments in terms.items()}
        parts = parse_expression(loss)
        if unknown := sorted(set(terms or {}) - {part.name for part in parts}):
            raise InputError(f"terms: got '{unknown[0]}', which is not in '{loss}'; expected names of its losses")
        self.losses = nn.ModuleList(self._inner(part.name) for part in parts)
        self.term_weights = tuple(part.weight for part in parts)
        if self.softmax:
            self.include_background = False

    def _inner(self, name: str) -> nn.Module:
        # Not above: the registry, which `create` reads, imports this file.
        from medloss.create import create_loss, loss_class

        cls = loss_class(name)
        if not issubclass(cls, SegmentationLoss) or cls.categorical_only or issubclass(cls, InstanceWiseLoss):
            raise InputError(f"loss: '{name}' cannot be taken per instance; expected a loss of medloss for one channel")
        arguments: dict[str, Any] = {"sigmoid": self.sigmoid or self.softmax, "validate": False}
        loss = create_loss(name, **(arguments | (self.terms or {}).get(name, {})))
        assert isinstance(loss, SegmentationLoss)
        if loss.reduction == "none" or loss.batch:
            # Ranks with different numbers of instances would wait for each other's sums forever.
            raise InputError(f"terms: '{name}' has reduction='none' or batch=True; expected one value per instance")
        return loss

    def compute(self, inputs: LossInputs) -> Tensor:
        """The mean over each map's instances, weighted and reduced."""
        masks = inputs.included(inputs.target_masks())
        numbers = self._numbers(masks, inputs)
        scores = _scores(inputs)
        left, maps = scores.shape[1], []
        for z, (item, c) in zip(_one_by_one(scores), itertools.product(range(len(scores)), range(left)), strict=True):
            counted = None if inputs.mask is None else inputs.mask[item, 0]
            weight = None if inputs.voxel_weight is None else inputs.voxel_weight[item, 0]
            maps.append(_Map(z, masks[item, c], numbers[item, c], counted, weight, self.cells == "blob"))
        values = torch.zeros(len(maps), dtype=scores.dtype, device=scores.device)
        by_sums = [i for i, loss in enumerate(self.losses) if shareable(loss) and not loss.reads_voxels_again]
        for group in fitting_groups([self.losses[i] for i in by_sums]):
            values = values + self._from_sums([by_sums[i] for i in group], maps)
        others = [i for i in range(len(self.losses)) if i not in by_sums]
        if others:
            spacing = [inputs.spacing[number // left] for number in range(len(maps))]
            around = [
                {
                    "spacing": spacing[number],
                    "distance_map": _of_class(inputs.distance_map, number // left, number % left, left),
                    "skeleton_map": _of_class(inputs.skeleton_map, number // left, number % left, left),
                }
                for number in range(len(maps))
            ]
            values = values + torch.stack([self._mean(others, *one) for one in zip(maps, around, strict=True)])
        return reduce_items(weighted(values.view(-1, left), inputs), inputs, self.reduction)

    def _numbers(self, masks: Tensor, inputs: LossInputs) -> Tensor:
        if inputs.instance_map is not None:
            return inputs.instance_map[:, -masks.shape[1] :].to(torch.int32)
        if self.cells == "blob":
            return component_map(masks, self.connectivity)
        return instance_map(masks, inputs.spacing, self.connectivity)

    def _mean(self, losses: Sequence[int], map_: "_Map", around: Mapping[str, Any]) -> Tensor:
        """Losses of one map, averaged over its areas, each by itself."""
        if not map_.areas:
            return map_.z.sum() * 0  # z is 0 where it is masked
        total = map_.z.new_zeros(())
        for i in losses:
            loss = self.losses[i]
            given = around if loss.uses_spacing or loss.looks_around else None
            if given is None:
                _ = map_.segments  # what areas share is made before: a checkpoint would not make it twice
            # Computed again in the backward pass: K areas keep no K copies of what they share.
            values = [checkpoint(map_.value, loss, area, given, use_reentrant=False) for area in map_.areas]
            total = total + self.term_weights[i] * torch.stack(values).mean()
        return total

    def _from_sums(self, group: Sequence[int], maps: Sequence["_Map"]) -> Tensor:
        """Losses that are functions of sums, `[maps]`: one pass over each map, and one formula for all areas."""
        losses: list[Any] = [self.losses[i] for i in group]
        requested = losses[0].requested()
        for loss in losses[1:]:
            requested = united(requested, loss.requested())
        z = maps[0].z
        # Besides the sums a loss reads how many voxels there are, and what they weigh.
        room = z.detach().new_zeros(1, 1, 1, 1)
        prepared = _AreaInputs(**vars(losses[0].prepare(room, room.to(torch.uint8))))
        terms = requested.terms(prepared)
        found = [map_.area_sums(terms) for map_ in maps]
        rows, voxels, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
        rows = torch.where(voxels[:, None] > 0, rows, 1.0)  # or 0/0 would have a gradient

        def value(rows: Tensor, voxels: Tensor, weight: Tensor) -> Tensor:
            one = replace(prepared, voxels=voxels, voxel_weight=weight.view(1, 1, 1, 1) if maps[0].weighted else None)
            sums = VoxelSums(dict(zip(Row, rows.view(-1, 1, 1), strict=True)), one)
            parts = [
                self.term_weights[i]
                * loss.from_sums(replace(sums, inputs=replace(one, class_weight=loss.class_weight)))
                for i, loss in zip(group, losses, strict=True)
            ]
            return torch.stack(parts).sum()

        values = torch.vmap(value)(rows, voxels, weights)
        means = []
        for part, (_, counts, _) in zip(values.split([len(part) for part, *_ in found]), found, strict=True):
            # Only where there is no instance at all an area may be without voxels.
            means.append(torch.where(counts > 0, part, 0.0).mean())
        return torch.stack(means)


@dataclass(frozen=True)
class _AreaInputs(LossInputs):
    """The inputs of an area of which the sums are known: how many voxels it has stands for them."""

    voxels: Tensor | None = None  # []

    def counts(self) -> Tensor:
        """Number of voxels, `[1, 1]`."""
        assert self.voxels is not None
        return self.voxels.view(1, 1)


class _Map:
    """One item's logits and target of one class, cut into segments of which the areas are made.

    Args:
        z: `[*spatial]`.
        y: bool, as `z`.
        numbers: of the nearest component, or of that at y, as `z`.
        counted: bool, as `z`; None when all voxels count.
        weight: of the voxels, as `z`; None for 1.
        blob: whether an area is a component with all of the background.
    """

    def __init__(
        self, z: Tensor, y: Tensor, numbers: Tensor, counted: Tensor | None, weight: Tensor | None, blob: bool
    ) -> None:
        self.z, self.y, self.weight = z, y, weight
        present = _present(numbers, y if counted is None else y & counted)
        self.number, self.blob = len(present), blob
        segment = _places_in(present, numbers)
        if not self.number:
            segment = torch.zeros_like(segment)
        elif blob:
            segment = _with_background(segment, y, self.number)
        self.segment = segment if counted is None else torch.where(counted, segment, -1)

    @property
    def weighted(self) -> bool:
        """Whether voxels have weights."""
        return self.weight is not None

    def area_sums(self, terms: VoxelTerms) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of each area, `[K, ROWS]`, how many voxels it has, `[K]`, and what they weigh."""
        count = self.number + self.blob if self.number else 1
        z, y, segment = (part.reshape(-1).contiguous() for part in (self.z, self.y, self.segment))
        weight = None if self.weight is None else self.weight.reshape(-1).contiguous()
        sums, voxels = segment_sums(terms, z, y, segment, count, weight)
        weights = voxels
        if weight is not None:
            kept = segment >= 0
            weights = torch.zeros_like(voxels).index_add_(0, segment[kept].long(), weight[kept])
        if self.blob and self.number:
            # Each component with all of the background.
            sums, voxels, weights = (part[:-1] + part[-1:] for part in (sums, voxels, weights))
        return sums, voxels, weights

    @cached_property
    def order(self) -> Tensor:
        """The places of the voxels, segment by segment."""
        segment = self.segment.flatten()
        places = (segment >= 0).nonzero()[:, 0]
        return places[segment[places].argsort(stable=True)]

    @cached_property
    def sizes(self) -> list[int]:
        """How many voxels a segment has."""
        sizes: list[int] = torch.bincount(self.segment[self.segment >= 0], minlength=1).tolist()
        return sizes

    @cached_property
    def areas(self) -> list[list[int]]:
        """The segments of each area; there may be no background, or no voxel at all."""
        areas = [[i, self.number] if self.blob and self.number else [i] for i in range(max(self.number, 1))]
        return [left for area in areas if (left := [i for i in area if i < len(self.sizes) and self.sizes[i]])]

    @cached_property
    def segments(self) -> tuple[Tensor, ...]:
        """The logits of each segment."""
        return self.z.flatten()[self.order].split(self.sizes)

    def value(self, loss: nn.Module, area: Sequence[int], around: Mapping[str, Any] | None) -> Tensor:
        """A loss of an area: of its voxels alone, or by a mask, with keywords, where what is around them matters."""
        if around is None:
            value: Tensor = loss(*self.voxels(area), voxel_weight=self.weights(area))
        else:
            weight = None if self.weight is None else self.weight[None, None]
            value = loss(self.z[None, None], self.y[None, None], mask=self.mask(area), voxel_weight=weight, **around)
        return value

    def voxels(self, area: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits and target of an area's voxels, as images of one row."""
        y = self.y.flatten()[self._places(area)]
        return torch.cat([self.segments[i] for i in area]).view(1, 1, 1, -1), y.view(1, 1, 1, -1)

    def weights(self, area: Sequence[int]) -> Tensor | None:
        """What the voxels of `voxels` weigh."""
        return None if self.weight is None else self.weight.flatten()[self._places(area)].view(1, 1, 1, -1)

    def _places(self, area: Sequence[int]) -> Tensor:
        return torch.cat([self.order.split(self.sizes)[i] for i in area])

    def mask(self, area: Sequence[int]) -> Tensor:
        """Where an area is, `[1, 1, *spatial]`."""
        mask = torch.zeros(self.y.numel(), dtype=torch.bool, device=self.y.device)
        for i in area:
            mask[self.order.split(self.sizes)[i]] = True
        return mask.view(1, 1, *self.y.shape)


def _one_by_one(maps: Tensor) -> Sequence[Tensor]:
    """Maps `[B, C, *spatial]` one by one; selected, each would have a gradient of the size of all."""
    spatial = maps.shape[2:]
    return [maps.reshape(spatial)] if len(maps) * maps.shape[1] == 1 else maps.reshape(-1, *spatial).unbind()


def _by_numpy(maps: Tensor) -> bool:
    """Whether NumPy is to work on maps: there it is faster than torch, which also waits for all of its threads."""
    return maps.device.type == "cpu" and type(maps) is Tensor and not torch.compiler.is_compiling()


def _present(numbers: Tensor, chosen: Tensor) -> Tensor:
    """The different numbers of the chosen voxels, in their order."""
    if _by_numpy(numbers):
        return torch.from_numpy(np.unique(numbers.numpy()[chosen.numpy()]))
    return torch.unique(numbers[chosen])


def _with_background(segment: Tensor, y: Tensor, background: int) -> Tensor:
    """The segments, and that of the background where not y."""
    if _by_numpy(segment):
        return torch.from_numpy(np.where(y.numpy(), segment.numpy(), np.int32(background)))
    return torch.where(y, segment, background)


def _places_in(present: Tensor, numbers: Tensor) -> Tensor:
    """Where each number stands among those that are present, in their order; -1 where it does not. int32."""
    if not len(present):
        return torch.full_like(numbers, -1, dtype=torch.int32)
    bounds = (numbers.numpy().min(), numbers.numpy().max()) if _by_numpy(numbers) else numbers.aminmax()
    least, most = (int(bound) for bound in bounds)
    if most - least > 2 * numbers.numel():  # ids far apart, as scanners' software gives them: no table of all between
        places = torch.searchsorted(present, numbers.to(present.dtype)).clamp(max=len(present) - 1)
        return torch.where(present[places] == numbers, places, -1).to(torch.int32)
    if 0 < least <= numbers.numel():
        least = 0  # as numbers usually begin at 1: a longer table costs less than a subtraction
    table = torch.full((most - least + 1,), -1, dtype=torch.int32, device=numbers.device)
    table[present.long() - least] = torch.arange(len(present), dtype=torch.int32, device=numbers.device)
    shifted = numbers - least if least else numbers
    return table.index_select(0, shifted.flatten()).view(numbers.shape)


def _of_class(maps: Tensor | None, item: int, c: int, left: int) -> Tensor | None:
    """The map of one item and the c-th of `left` classes, `[1, 1, *spatial]`; `maps` are of these, or of all."""
    return None if maps is None else maps[item, maps.shape[1] - left + c][None, None]


class _OneAgainstRest(torch.autograd.Function):
    """The logit of each class from `first` on against all others together, `z_c - ln sum_(k != c) exp z_k`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, first: int) -> Tensor:
        classes = z.shape[1]
        later = [torch.full_like(z[:, 0], -torch.inf)]
        for c in range(classes - 1, first, -1):
            later.append(torch.logaddexp(later[-1], z[:, c]))
        earlier, margins = torch.full_like(z[:, 0], -torch.inf), torch.empty_like(z[:, first:])
        for c in range(classes):
            if c >= first:
                margins[:, c - first] = z[:, c] - torch.logaddexp(earlier, later.pop())
            earlier = torch.logaddexp(earlier, z[:, c])
        ctx.save_for_backward(z, margins)
        return margins

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, margins = ctx.saved_tensors
        first = z.shape[1] - margins.shape[1]
        result = torch.zeros_like(z)
        for c in range(first, z.shape[1]):
            by_c = gradient[:, c - first]
            rest = z[:, c] - margins[:, c - first]
            for k in range(z.shape[1]):
                # At most 1; of an unlabelled class c the rest is not known by its margin.
                result[:, k] += by_c if k == c else -by_c * (z[:, k] - rest).clamp(max=0).exp()
        return result, None


def _scores(inputs: LossInputs) -> Tensor:
    """The logits of one channel per class that counts, or the given probabilities; 0 where masked."""
    z = inputs.counted(inputs.logits).to(inputs.dtype)
    if not inputs.categorical:
        return inputs.included(z)
    margins: Tensor = _OneAgainstRest.apply(z, z.shape[1] - inputs.included(z).shape[1])
    return inputs.counted(margins)
