"""Sums of losses, with weights that may change from epoch to epoch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medloss.compound.shared_pass import values_of
from medloss.create import create_loss
from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.ranks import sum_over_ranks
from medloss.spacing import Spacing

SCHEDULES = ("constant", "linear", "balanced")


class CombinedLoss(nn.Module):
    r"""A weighted sum of losses: $\sum_i \lambda_i L_i$.

    Schedules of the weights, which `start_epoch` moves on:

    - `constant`: as given.
    - `linear`: from the given weights to `final_weights`, in equal steps over `epochs` epochs.
    - `balanced`: each epoch, every term but the first is weighted so that it weighs as much as the first, by
      the means of the epoch before, times its given weight (Karimi 2019); until the first epoch is over, by the
      means so far. In a data-parallel training the means are over all ranks.

    Args:
        losses: an expression such as `"hausdorff_dt+0.5*dice"`, or names, dotted paths and modules.
        weights: one number a loss; None: those of the expression, else 1.
        schedule: `constant`, `linear` or `balanced`.
        final_weights: the weights at the end of a linear schedule.
        epochs: the length of a linear schedule.
        **arguments: what every loss that is made here gets (`softmax=True`, say).

    Raises:
        InputError: no loss, an unknown one or schedule, a wrong number of weights; from the call, terms whose unreduced
            values have different shapes.

    References:
        Karimi and Salcudean (2019), arXiv 1904.10030, for `balanced`.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.CombinedLoss("0.2*focal+0.8*dice", softmax=True)
        >>> logits, label = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
        >>> parts = [part(logits, label) for part in loss.losses]
        >>> bool(loss(logits, label).isclose(0.2 * parts[0] + 0.8 * parts[1]))
        True
    """

    weights: Tensor
    given_weights: Tensor
    sums: Tensor
    settled: Tensor

    def __init__(
        self,
        losses: str | Sequence[str | nn.Module],
        *,
        weights: Sequence[float] | None = None,
        schedule: str = "constant",
        final_weights: Sequence[float] | None = None,
        epochs: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if isinstance(losses, str):
            terms = parse_expression(losses)
            losses = [term.name for term in terms]
            weights = [term.weight for term in terms] if weights is None else weights
        made = [loss if isinstance(loss, nn.Module) else create_loss(loss, **arguments) for loss in losses]
        if not made:
            raise InputError("losses: got none; expected one or more")
        weights = [1.0] * len(made) if weights is None else list(weights)
        if schedule not in SCHEDULES:
            raise InputError(f"schedule: got '{schedule}'; expected one of {', '.join(SCHEDULES)}")
        if schedule == "linear" and (final_weights is None or not epochs or epochs < 1):
            raise InputError("schedule: 'linear' needs final_weights and epochs >= 1")
        for name, numbers in (("weights", weights), ("final_weights", final_weights)):
            if numbers is not None and (len(numbers) != len(made) or not all(w >= 0 for w in numbers)):
                raise InputError(f"{name}: got {list(numbers)}; expected {len(made)} numbers >= 0, one a loss")
        self.losses = nn.ModuleList(made)
        self.schedule = schedule
        self.final_weights = None if final_weights is None else tuple(final_weights)
        self.epochs = epochs
        given = torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("given_weights", given)
        self.register_buffer("weights", given.clone())
        # Sums of the terms' values in this epoch, and whether a whole epoch has set the weights.
        self.register_buffer("sums", torch.zeros(len(made), dtype=torch.float64))
        self.register_buffer("settled", torch.tensor(False))

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        spacing: Spacing | None = None,
        distance_map: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum; arguments as `SegmentationLoss.forward`."""
        own = values_of(list(self.losses), logits, target, mask=mask, spacing=spacing, distance_map=distance_map)
        if any(value.shape != own[0].shape for value in own):
            shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(value.shape for value in own))
            raise InputError(f"reduction: the terms' values have the shapes {shapes}; expected one: 'mean' or 'sum'")
        values = torch.stack(own)
        if self.schedule == "balanced" and self.training:
            means = values.detach().to(self.sums).reshape(len(self.losses), -1).mean(1)
            # The mean over ranks, so that all of them train with the same weights.
            total, ranks = sum_over_ranks(logits, means, means.new_ones(()))
            self.sums += total / ranks
            if not self.settled:
                self._balance()
        weights = self.weights.to(values).view(-1, *(1,) * (values.ndim - 1))
        return (weights * values).sum(0)

    def start_epoch(self, epoch: int) -> None:
        """Set the weights for an epoch, counted from 0; call it before the epoch's first batch."""
        if self.schedule == "linear":
            assert self.final_weights is not None and self.epochs is not None
            share = min(epoch / max(self.epochs - 1, 1), 1.0)
            final = self.given_weights.new_tensor(self.final_weights)
            self.weights.copy_(torch.lerp(self.given_weights, final, share))
        elif self.schedule == "balanced" and bool((self.sums != 0).any()):
            self._balance()
            self.settled.fill_(True)
            self.sums.zero_()

    def _balance(self) -> None:
        # A term that is 0, or not finite, keeps its weight.
        ratio = self.given_weights * self.sums[0] / self.sums
        usable = torch.isfinite(ratio) & (ratio > 0)
        usable[0] = False
        self.weights.copy_(torch.where(usable, ratio, self.weights))
