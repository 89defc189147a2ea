"""The share of a training step that is the loss's, as `benchmarks.losses` reports it: the loss by its recipe."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import medloss
from benchmarks.cases import Case, Contender, Row, row
from benchmarks.contenders import build
from benchmarks.measure import Stopwatch, summary
from benchmarks.scenes import scene
from medloss.kernels import dispatch
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import channels_last


def training_rows(case: Case, regime: str) -> list[Row]:
    """Rows whose `forward`, `backward` and `total` are the loss's, and whose `step` is the whole step's."""
    device = torch.device(case.device)
    logits, target = scene(case.size, case.classes, case.batch)
    layout = channels_last(len(case.size))
    torch.manual_seed(0)
    # Any image will do: a network's time does not hang on what it sees.
    image = logits[:, :1].clone().to(device).contiguous(memory_format=layout)
    target = target.to(device)
    config = RunConfig(manifest="phantom")
    network = create_network(config, len(case.size), case.classes).to(device)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    dtype = autocast_dtype(config, device, case.size)
    optimizer = torch.optim.AdamW(network.parameters())
    losses = {contender: _loss(contender, target, case.classes) for contender in case.contenders}

    def step(contender: Contender) -> tuple[float, float, float]:
        watch = Stopwatch(device)
        with dispatch.use(contender.kernels or "auto"):
            watch.mark()
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                output = network(image)
            # The graph is cut at the logits, so that the loss's backward pass ends where the network's begins.
            cut = output.float().detach().requires_grad_()
            watch.mark()
            value = losses[contender](cut)
            watch.mark()
            value.backward()
            watch.mark()
            output.backward(cut.grad.to(output.dtype))
            optimizer.step()
            watch.mark()
        parts = watch.seconds()
        return parts[1], parts[2], sum(parts)

    times: dict[Contender, list[tuple[float, float, float]]] = {contender: [] for contender in case.contenders}
    for number in range(case.warmup + case.rounds):
        for contender in case.contenders:
            measured = step(contender)
            if number >= case.warmup:
                times[contender].append(measured)
    return [
        row(case, contender, regime, **summary([t[:2] for t in ts]), step=statistics.median(t[2] for t in ts))
        for contender, ts in times.items()
    ]


def _loss(contender: Contender, target: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """The loss as a network is trained with it: ours by its recipe."""
    if contender.library != "medloss":
        return build(contender, target, classes).function
    loss = medloss.create_training_loss(contender.loss, num_classes=classes)
    return lambda logits: loss(logits, target)
