"""`CallArguments`: what a loss is called with besides logits and target. A new argument is one line here."""

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from torch import Tensor

from medloss.spacing import Spacing


@dataclass(frozen=True)
class CallArgument:
    """How one argument of a call is handled.

    Attributes:
        lost: what a loss from elsewhere that does not take it would do instead, where that is wrong: such a call is
            refused. Empty: the loss is called without it.
        resize: how deep supervision brings it to another grid: `nearest`, `max`, or empty for an argument that has no
            grid.
        of_target: whether it is a map per class of the target, which the loss computes where it is not given.
    """

    lost: str = ""
    resize: str = ""
    of_target: bool = False


class CallArguments(TypedDict, total=False):
    """The keyword arguments of a call; `SegmentationLoss.forward` documents them."""

    mask: Annotated[Tensor | None, CallArgument(lost="count every voxel", resize="nearest")]
    spacing: Annotated[Spacing | None, CallArgument()]
    distance_map: Annotated[Tensor | None, CallArgument(resize="nearest", of_target=True)]
    # A thin line falls between nearest neighbours.
    skeleton_map: Annotated[Tensor | None, CallArgument(resize="max", of_target=True)]
    instance_map: Annotated[Tensor | None, CallArgument(resize="nearest", of_target=True)]
    labelled_classes: Annotated[Tensor | None, CallArgument(lost="count every class")]
    voxel_weight: Annotated[Tensor | None, CallArgument(lost="count every voxel alike", resize="nearest")]


#: By name, in the order above.
CALL_ARGUMENTS: dict[str, CallArgument] = {
    name: hint.__metadata__[0] for name, hint in CallArguments.__annotations__.items()
}
#: The names of the target's maps.
TARGET_MAPS = tuple(name for name, argument in CALL_ARGUMENTS.items() if argument.of_target)


def tensors_of(given: CallArguments) -> dict[str, Any]:
    """The arguments of a call that must be tensors: all but the spacing, which may be numbers.

    Raises:
        TypeError: there is an argument of another name.
    """
    refuse_other_names(given)
    return {name: value for name, value in given.items() if name != "spacing"}


def refuse_other_names(given: CallArguments) -> None:
    """Raise a `TypeError` for an argument of another name, as Python does for a signature with all names."""
    for name in given:
        if name not in CALL_ARGUMENTS:
            raise TypeError(f"got an unexpected keyword argument '{name}'; expected {', '.join(CALL_ARGUMENTS)}")
