"""What is segmented: classes or overlapping regions, the ignored label, and a network's channels for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

#: Index of ignored voxels in maps of class indices; label values themselves may be any.
IGNORED = 255


class LabelScheme(BaseModel):
    """The classes of a label map, and what a network predicts of them.

    Without regions, a network has a channel per class, background included, and a softmax: the c-th channel is the c-th
    of `values`. With regions it has a channel per region and a sigmoid, since regions may overlap.

    Attributes:
        classes: label value to name; 0 is background.
        regions: region to the label values that it consists of; empty for plain classes.
        region_order: the label value that each region's voxels get in a label map, region by region, later ones
            overwriting earlier ones, as in nnU-Net's `regions_class_order`.
        ignore: label value of voxels that count nowhere; None if there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: dict[int, str]
    regions: dict[str, tuple[int, ...]] = {}
    region_order: tuple[int, ...] = ()
    ignore: int | None = None

    @property
    def values(self) -> list[int]:
        """The label values in ascending order, without the ignored one; maps of class indices refer to it."""
        return sorted(self.classes)

    @property
    def names(self) -> list[str]:
        """Names of what is evaluated: the regions, or the foreground classes by ascending label value."""
        return list(self.regions) or [self.classes[value] for value in self.values if value != 0]

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Name to the label values of each of `names`."""
        return self.regions or {self.classes[value]: (value,) for value in self.values if value != 0}

    @property
    def members(self) -> list[tuple[int, ...]]:
        """The class indices that each of `names` consists of."""
        index = {value: number for number, value in enumerate(self.values)}
        return [tuple(index[value] for value in values) for values in self.parts.values()]

    @property
    def channels(self) -> int:
        """Number of channels of a network's output."""
        return len(self.regions) or len(self.classes)

    @property
    def sigmoid(self) -> bool:
        """Whether a network's channels are independent of each other: those of regions are."""
        return bool(self.regions)

    def annotated(self, labelled: Sequence[str] | None) -> list[bool]:
        """Which of `names` a case annotates: a region is annotated if all of its classes are.

        Args:
            labelled: names of the foreground classes that the case annotates; None for all.
        """
        return [
            labelled is None or all(self.classes[value] in labelled for value in values)
            for values in self.parts.values()
        ]

    def annotated_channels(self, labelled: Sequence[str] | None) -> list[bool]:
        """The same for the channels of a network; that of background always is annotated."""
        return [*([] if self.sigmoid else [True]), *self.annotated(labelled)]


def scheme_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """One line per rule that a manifest's regions and ignored label break; values of wrong types are passed over."""
    classes, regions, ignore = (content.get(name) for name in ("classes", "regions", "ignore"))
    if not isinstance(classes, Mapping):
        return
    if isinstance(ignore, int) and ignore in classes:
        yield f"ignore: {ignore} is also the class '{classes[ignore]}'; expected a label value that no class has"
    if not isinstance(regions, Mapping) or not all(isinstance(values, list | tuple) for values in regions.values()):
        return
    same: dict[frozenset[Any], str] = {}
    for name, values in regions.items():
        unknown = [value for value in values if value not in classes or value == 0]
        if unknown:
            known = ", ".join(str(value) for value in classes if value != 0)
            yield f"regions: '{name}' has the label {unknown[0]}; the foreground labels are {known}"
        elif not values:
            yield f"regions: '{name}' has no label; expected one or more"
        elif (other := same.setdefault(frozenset(values), name)) != name:
            yield f"regions: '{name}' is the same as '{other}'"
    order = content.get("region_order") or ()
    if not regions and order:
        yield "region_order: given without regions"
    elif regions and len(order) != len(regions):
        yield (
            f"region_order: {len(order)} labels for {len(regions)} regions; expected the label that each region's "
            "voxels get in a label map, largest region first"
        )
    elif regions:
        for (name, values), value in zip(regions.items(), order, strict=True):
            if value not in values:
                yield f"region_order: {value} for '{name}', which consists of {', '.join(map(str, values))}"
        if len(set(order)) < len(order):
            yield f"region_order: {list(order)}; expected a different label for each region"
