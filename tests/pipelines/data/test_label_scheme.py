"""Classes, regions, ignored and partial labels: rules of manifests, and a network's channels."""

from typing import Any

import pytest

from pipelines.data.label_scheme import LabelScheme, scheme_problems

CLASSES = {0: "background", 2: "rim", 5: "core", 7: "centre"}
REGIONS = {"whole": (2, 5, 7), "inner": (5, 7), "centre": (7,)}


def test_channels_of_classes_and_of_regions() -> None:
    plain = LabelScheme(classes=CLASSES)
    assert (plain.channels, plain.sigmoid, plain.names) == (4, False, ["rim", "core", "centre"])
    assert plain.members == [(1,), (2,), (3,)]
    regions = LabelScheme(classes=CLASSES, regions=REGIONS, region_order=(2, 5, 7))
    assert (regions.channels, regions.sigmoid, regions.names) == (3, True, ["whole", "inner", "centre"])
    assert regions.members == [(1, 2, 3), (2, 3), (3,)]


def test_a_region_is_annotated_if_all_of_its_classes_are() -> None:
    plain = LabelScheme(classes=CLASSES)
    assert plain.annotated(["core"]) == [False, True, False]
    assert plain.annotated_channels(["core"]) == [True, False, True, False]
    assert plain.annotated_channels(None) == [True] * 4
    regions = LabelScheme(classes=CLASSES, regions=REGIONS, region_order=(2, 5, 7))
    assert regions.annotated_channels(["core", "centre"]) == [False, True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        (
            {"regions": {"whole": [2, 9]}, "region_order": [2]},
            "regions: 'whole' has the label 9; the foreground",
        ),
        ({"regions": {"whole": [0, 2]}, "region_order": [2]}, "regions: 'whole' has the label 0"),
        ({"regions": {"whole": []}, "region_order": [2]}, "regions: 'whole' has no label"),
        ({"regions": {"a": [2, 5], "b": [5, 2]}, "region_order": [2, 5]}, "regions: 'b' is the same as 'a'"),
        ({"region_order": [2, 5]}, "region_order: 2 labels for 3 regions"),
        ({"region_order": [2, 2, 7]}, "region_order: 2 for 'inner', which consists of 5, 7"),
        ({"region_order": [7, 7, 7]}, "region_order: [7, 7, 7]; expected a different label for each region"),
        ({"regions": {}}, "region_order: given without regions"),
        ({"ignore": 5}, "ignore: 5 is also the class 'core'"),
    ],
)
def test_broken_rules(changes: dict[str, Any], message: str | None) -> None:
    content = {"classes": CLASSES, "regions": REGIONS, "region_order": [2, 5, 7], "ignore": 255} | changes
    problems = list(scheme_problems(content))
    if message is None:
        assert problems == []
    else:
        assert any(problem.startswith(message) for problem in problems), problems
