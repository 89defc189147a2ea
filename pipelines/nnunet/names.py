"""Names of trainers: `nnUNetTrainerMedloss_<loss>`, with `_<N>epochs` at the end or without."""

import re
from dataclasses import dataclass

from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.names import loss_names, unknown_loss

PREFIX = "nnUNetTrainerMedloss_"
_EPOCHS = re.compile(r"(?P<losses>.+)_(?P<epochs>[1-9][0-9]*)epochs?")
#: A class's name has letters, digits and `_` alone: these words stand for `+`, `*` and `.`.
_PLUS, _TIMES, _POINT = "_plus_", "_times_", "p"
_TERM = re.compile(rf"(?:(?P<weight>[0-9]+(?:{_POINT}[0-9]+)?){_TIMES})?(?P<name>\w+)")


@dataclass(frozen=True)
class TrainerName:
    """What a trainer's name says.

    Attributes:
        loss: a registered loss, or a sum such as `0.2*focal+0.8*dice`.
        epochs: how many; None for nnU-Net's 1000.
    """

    loss: str
    epochs: int | None = None

    def __str__(self) -> str:
        parts = []
        for term in parse_expression(self.loss):
            if term.name not in loss_names():
                raise InputError(f"loss: '{term.name}' is no registered loss, so no trainer is named after it")
            weight = "" if term.weight == 1 else f"{_number(term.weight)}{_TIMES}"
            parts.append(f"{weight}{term.name}")
        ending = "" if self.epochs is None else f"_{self.epochs}epochs"
        return f"{PREFIX}{_PLUS.join(parts)}{ending}"


def trainer_name(name: str) -> TrainerName | None:
    """Read a trainer's name; None where it is none of ours.

    Example:
        >>> from pipelines.nnunet.names import trainer_name
        >>> trainer_name("nnUNetTrainerMedloss_dice_plus_0p5_times_focal_20epochs")
        TrainerName(loss='dice+0.5*focal', epochs=20)
    """
    if not name.startswith(PREFIX):
        return None
    losses, epochs = name.removeprefix(PREFIX), None
    if found := _EPOCHS.fullmatch(losses):
        losses, epochs = found["losses"], int(found["epochs"])
    terms = []
    for part in losses.split(_PLUS):
        term = _TERM.fullmatch(part)
        if term is None or term["name"] not in loss_names():
            return None
        weight = term["weight"]
        if weight is not None and float(weight.replace(_POINT, ".")) == 0:
            return None
        terms.append(term["name"] if weight is None else f"{weight.replace(_POINT, '.')}*{term['name']}")
    return TrainerName("+".join(terms), epochs)


def hint(name: str) -> str:
    """What to say of a name that starts as ours do, and is none: the nearest loss of the unknown one."""
    losses = name.removeprefix(PREFIX)
    if found := _EPOCHS.fullmatch(losses):
        losses = found["losses"]
    names = [part.rsplit(_TIMES, 1)[-1] for part in losses.split(_PLUS)]
    unknown = next((one for one in names if one not in loss_names()), None)
    if unknown is None:
        return f"medloss: no trainer '{name}': expected weights above 0, such as 0{_POINT}5{_TIMES}{names[0]}"
    return f"medloss: no trainer '{name}': {unknown_loss(unknown)}"


def _number(weight: float) -> str:
    text = f"{weight:.10f}".rstrip("0").rstrip(".")
    if float(text) != weight:
        raise InputError(f"loss: the weight {weight!r} has too many digits for a trainer's name")
    return text.replace(".", _POINT)
