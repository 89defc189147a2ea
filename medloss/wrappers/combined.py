"""Sums of losses, with weights that may change from epoch to epoch."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from medloss.buffers import UncastBuffers
from medloss.call_arguments import CallArguments
from medloss.checks import first_argument
from medloss.create import create_loss, pass_epoch_on
from medloss.distributed import sum_over_ranks
from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.loss_entry import family_of
from medloss.wrappers.shared_pass import values_of

SCHEDULES = ("constant", "linear", "ramp", "balanced")
#: Of the epochs: where a ramp begins, and where it is over. Ours; users ask for such a warm-up, and no paper fixes it.
RAMP = (0.1, 0.5)
#: In a batch, a balanced term counts for at most so many times the anchor. Ours: where the errors of most batches
#: vanish, as those of `hausdorff_er` do, its weight grows by orders of magnitude; one batch would outweigh an epoch.
_MOST_SHARE = 100.0


class CombinedLoss(UncastBuffers):
    r"""A weighted sum of losses: $\sum_i \lambda_i L_i$.

    Schedules of the weights, which `start_epoch` sets (e: the epoch, from 0; w: the given weights; w': the final ones):

    - `constant`: as given.
    - `ramp`: $w + (w' - w)\,\mathrm{clip}((e - a)/(b - a), 0, 1)$ with `ramp=(a, b)`. Without `final_weights` the
      boundary-based terms rise from 0 to their given weights, next to the others, which keep theirs.
    - `linear`: a ramp from the first to the last of `epochs` epochs.
    - `balanced`: one term, the anchor, keeps its given weight. Each epoch every other one is weighted so that it weighs
      as much as the anchor, by the means of the epoch before, times its given weight (Karimi 2019: both terms weigh
      the same); until the first epoch is over, by the means so far. Only calls in training whose logits have a
      gradient are counted. In data-parallel training the means are over all ranks.

    The anchor of `balanced` is the first region-based term (Dice and related losses), wherever it stands in the sum;
    without one, the first term that is not boundary-based; else the first. Region-based losses are bounded: they begin
    near 1 and end at some tenths. A Hausdorff loss falls by orders of magnitude meanwhile. Were Dice scaled to it, the
    whole sum would fall, and an adaptive optimizer would slow down: AdamW's second moment remembers the large early
    gradients for a thousand steps. (Measured on the phantom: steps of a third to an eighth of the usual size with
    `hausdorff_dt`, of a fifth to a tenth with `hausdorff_er`.) Scaled to Dice, the sum stays near twice Dice. In a
    single batch no term counts for more than a hundred times the anchor (ours): where most batches have no errors that
    the term sees, a batch that has some would outweigh an epoch.

    A term of weight 0 is not called, unless the schedule is `balanced`.

    Args:
        losses: an expression such as `"hausdorff_dt+0.5*dice"`, or names, dotted paths and modules.
        weights: one number per loss; None: those of the expression, else 1.
        schedule: `constant`, `ramp`, `linear` or `balanced`.
        final_weights: the weights at the end of a ramp; `linear` needs them.
        epochs: the length of the run, in epochs; `linear` needs it, and so does a `ramp` without `ramp`.
        ramp: the epochs (a, b) between which the weights change, 0 <= a < b; None: 0.1 and 0.5 of `epochs` (ours).
        **arguments: what every loss that is made here gets, such as `softmax=True`.

    Raises:
        InputError: no loss, an unknown one or schedule, a wrong number of weights; a ramp without `final_weights` where
            no term, or every term, is boundary-based; from the call, terms whose unreduced values have different
            shapes, and a mask for a term from elsewhere that takes none.

    References:
        Karimi and Salcudean (2019), arXiv 1904.10030, for `balanced`.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.CombinedLoss("0.2*focal+0.8*dice", softmax=True)
        >>> logits, label = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
        >>> parts = [part(logits, label) for part in loss.losses]
        >>> bool(loss(logits, label).isclose(0.2 * parts[0] + 0.8 * parts[1]))
        True
        >>> loss = medloss.CombinedLoss("dice+binary_cross_entropy+hausdorff_dt", schedule="ramp", epochs=100)
        >>> for epoch in (0, 30, 50):
        ...     loss.start_epoch(epoch)
        ...     print(loss.weights.tolist())
        [1.0, 1.0, 0.0]
        [1.0, 1.0, 0.5]
        [1.0, 1.0, 1.0]
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
        ramp: tuple[float, float] | None = None,
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
            if numbers is not None and (len(numbers) != len(made) or not all(0 <= w < math.inf for w in numbers)):
                raise InputError(f"{name}: got {list(numbers)}; expected {len(made)} finite numbers >= 0, one per loss")
        families = [family_of(loss) for loss in made]
        if schedule == "balanced" and any(
            getattr(part, "negative_values", False) for loss in made for part in loss.modules()
        ):
            raise InputError(
                "schedule: 'balanced' scales terms by their values, and a boundary loss has values below 0; expected "
                "it with subtract_minimum=True"
            )
        if schedule == "ramp" and final_weights is None:
            final_weights = weights
            weights = [0.0 if family == "boundary" else w for family, w in zip(families, weights, strict=True)]
            if families.count("boundary") in (0, len(made)):
                what = "no term is" if "boundary" not in families else "every term is"
                raise InputError(
                    f"schedule: 'ramp' raises boundary-based terms next to others, and {what} boundary-based; "
                    "expected a sum such as dice+binary_cross_entropy+hausdorff_dt"
                )
        self.losses = nn.ModuleList(made)
        self.schedule = schedule
        self.final_weights = None if final_weights is None else tuple(float(w) for w in final_weights)
        self.ramp = _ramp(schedule, ramp, epochs)
        self.anchor = _anchor(families)
        given = torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("given_weights", given)
        self.register_buffer("weights", given.clone())
        # Sums of the terms' values in this epoch, and whether a whole epoch has set the weights.
        self.register_buffer("sums", torch.zeros(len(made), dtype=torch.float32))
        self.register_buffer("settled", torch.tensor(False))
        self._find_called(weights)

    def forward(
        self,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        *,
        input: Tensor | None = None,
        **given: Unpack[CallArguments],
    ) -> Tensor:
        """The weighted sum; arguments as `SegmentationLoss.forward`, or as the terms take them (a list of outputs)."""
        logits = first_argument(logits, input)
        losses = [self.losses[i] for i in self._called]
        parts = values_of(losses, logits, target, **given)
        if any(value.shape != parts[0].shape for value in parts):
            shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(value.shape for value in parts))
            raise InputError(f"reduction: the terms' values have the shapes {shapes}; expected one: 'mean' or 'sum'")
        values, weights = torch.stack(parts), self.weights[self._called]
        # Without gradients nothing is trained: such a call must not affect the weights. A validation loop
        # may leave `no_grad` before it calls the loss, or never call `eval()` on it.
        if self.schedule == "balanced" and self.training and torch.is_grad_enabled() and values.requires_grad:
            means = values.detach().to(self.sums).reshape(len(self.losses), -1).mean(1)
            # The mean over ranks, so that all of them train with the same weights.
            total, ranks = sum_over_ranks(values, means, means.new_ones(()))
            means = total / ranks
            self.sums += means
            if not self.settled:
                self._balance()
            most = _MOST_SHARE * self.given_weights * means[self.anchor] / means
            weights = torch.where(most > 0, torch.minimum(self.weights, most), self.weights)
        return (weights.to(values).view(-1, *(1,) * (values.ndim - 1)) * values).sum(0)

    def start_epoch(self, epoch: int) -> None:
        """Set the weights for an epoch, counted from 0; call it before the epoch's first batch.

        Sums among the terms are passed the epoch, too.
        """
        for loss in self.losses:
            pass_epoch_on(loss, epoch)
        if self.schedule in ("ramp", "linear"):
            assert self.final_weights is not None
            begin, end = self.ramp
            share = min(max((epoch - begin) / (end - begin), 0.0), 1.0)
            final = self.given_weights.new_tensor(self.final_weights)
            self.weights.copy_(torch.lerp(self.given_weights, final, share))
            self._find_called(self.weights.tolist())
        elif self.schedule == "balanced" and bool((self.sums != 0).any()):
            self._balance()
            self.settled.fill_(True)
            self.sums.zero_()

    def _balance(self) -> None:
        # A term that is 0, or not finite, keeps its weight.
        ratio = self.given_weights * self.sums[self.anchor] / self.sums
        usable = torch.isfinite(ratio) & (ratio > 0)
        self.weights.copy_(torch.where(usable, ratio, self.weights))
        self.weights[self.anchor] = self.given_weights[self.anchor]

    def _find_called(self, weights: Sequence[float]) -> None:
        """Which terms are called; kept as Python numbers, so that no step has to wait for a GPU."""
        everything = list(range(len(self.losses)))
        if self.schedule == "balanced":
            self._called = everything
        else:
            self._called = [i for i, weight in enumerate(weights) if weight] or everything

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._find_called(self.weights.tolist())


def _ramp(schedule: str, ramp: tuple[float, float] | None, epochs: int | None) -> tuple[float, float]:
    """Between which epochs the weights change."""
    if schedule != "ramp":
        return 0.0, float(max((epochs or 1) - 1, 1))
    if ramp is None and (epochs is None or epochs < 1):
        raise InputError("schedule: 'ramp' needs epochs >= 1, or ramp=(a, b), the epochs between which weights change")
    given = tuple(share * (epochs or 1) for share in RAMP) if ramp is None else ramp
    if len(given) != 2 or not 0 <= given[0] < given[1] < math.inf:
        raise InputError(f"ramp: got {tuple(given)}; expected epochs (a, b) with 0 <= a < b")
    return float(given[0]), float(given[1])


def _anchor(families: Sequence[str | None]) -> int:
    """The term of a balanced sum that keeps its weight."""
    ranks = {"region": 0, "boundary": 2}
    return min(range(len(families)), key=lambda i: ranks.get(families[i] or "", 1))
