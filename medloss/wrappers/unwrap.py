"""Losses inside the modules that torch wraps around them."""

from torch import nn


def unwrapped(loss: nn.Module) -> nn.Module:
    """What `torch.compile`, `DataParallel` and `DistributedDataParallel` were given; any other module as it is."""
    while True:
        if isinstance(loss, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = loss.module
        else:
            inner = loss._modules.get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return loss
        loss = inner
