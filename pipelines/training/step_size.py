"""How far an optimizer's step moves the weights: no loss should be judged by an optimizer that stood still."""

import torch
from torch import Tensor, nn


class StepSize:
    r"""The ratio of a step's update to the weights: $\|w' - (1 - \eta \lambda) w\| / \|w\|$.

    w, w': the weights before and after the step; eta: the learning rate; lambda: the decoupled weight decay, which
    AdamW applies whatever the gradient is, and which is therefore no part of the update here (0 for SGD, whose decay is
    a part of the gradient). Norms are over all parameters that are trained. Three passes over the weights, and a copy
    of them while the step is made.

    Args:
        optimizer: at its next step; `ratio` is to be called after that.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.kept: list[Tensor] = []
        self.weights: list[Tensor] = []
        for group in optimizer.param_groups:
            weights = [w.detach() for w in group["params"] if w.grad is not None]
            if weights:
                decay = group["lr"] * group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
                self.kept += torch._foreach_mul(weights, 1 - float(decay))
                self.weights += weights
        self.size = nn.utils.get_total_norm(self.weights)

    def ratio(self) -> Tensor:
        """The ratio of the step that was made meanwhile; a number on the weights' device."""
        torch._foreach_sub_(self.kept, self.weights)
        return nn.utils.get_total_norm(self.kept) / self.size
