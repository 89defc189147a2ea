"""Pictures of individual cases, drawn from files: empty label maps, unusual images, and missing files."""

import html
import math
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from made_comparison import made_comparison
from made_pictures import pictured_comparison
from matplotlib.figure import Figure
from numpy.typing import NDArray
from page_reader import read_page
from PIL import Image
from tiny import tiny_manifest

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import Collected, PredictedCase, from_folder
from pipelines.report.overlay_drawing import (
    PREDICTION,
    REFERENCE,
    _draw_panel,
    class_text,
    loss_picture,
    same_picture,
    scale_bar,
    tints,
)
from pipelines.report.overlay_selection import Choice, _candidates
from pipelines.report.overlay_slices import Panel, read_panels
from pipelines.report.overlays import Overlays, _names, every_overlay
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import DEFAULT_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.table import check_table

SPACING = (3.0, 1.0, 2.0)


def test_tints_show_the_kinds_of_errors() -> None:
    reference = np.array([[0, 1, 1, 2]])
    painted = tints(reference, np.array([[1, 1, 0, 1]]))[0]
    opacity = painted[:, 3]
    assert opacity[1] == 0 and (opacity[[0, 2, 3]] > 0.3).all()
    assert len({tuple(colour[:3]) for colour in painted}) == 4
    assert not tints(reference, reference).any()


@pytest.mark.parametrize(
    ("width", "length"), [(100.0, 20.0), (151.0, 50.0), (30.0, 10.0), (29.9, 5.0), (3.1, 1.0), (0.07, 0.02)]
)
def test_scale_bars_are_round(width: float, length: float) -> None:
    assert scale_bar(width) == pytest.approx(length)


def _write(path: Path, array: NDArray[Any], spacing: tuple[float, ...] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, *[1.0] * (4 - len(spacing))])), path)
    return path


def _choice(
    folder: Path,
    prediction: NDArray[Any] | None,
    reference: NDArray[Any],
    image: Any = None,
    spacing: tuple[float, ...] = SPACING,
) -> Choice:
    spacing = spacing[: reference.ndim]
    if prediction is not None:
        _write(folder / "p.nii.gz", prediction, spacing)
    _write(folder / "r.nii.gz", reference, spacing)
    if image is not None:
        _write(folder / "i.nii.gz", image, spacing)
    files = folder / "p.nii.gz", folder / "r.nii.gz", None if image is None else folder / "i.nii.gz"
    return Choice("worst", PredictedCase("a", "c", *files), 0.5, {"dice": 0.5, "hd95_mm": None}, 1)


#: Spacing -> the plane, mm of its rows and columns, and the letters at the left, right, lower and upper edge.
PANELS = {
    (3.0, 1.0, 2.0): ("sagittal", (2.0, 1.0), ("A", "P", "I", "S")),
    (1.0, 3.0, 2.0): ("coronal", (2.0, 1.0), ("R", "L", "I", "S")),
    (1.0, 2.0, 3.0): ("axial", (2.0, 1.0), ("R", "L", "P", "A")),
}


@pytest.mark.parametrize("spacing", PANELS)
def test_a_panel_is_drawn_in_mm(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    """Each axis has a different length in voxels and in mm, so that none can be taken for another."""
    name, (down, across), letters = PANELS[spacing]
    shape = [{3.0: 4, 2.0: 30, 1.0: 20}[each] for each in spacing]
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(n // 4, -(n // 4)) for n in shape)] = 1
    choice = _choice(tmp_path, np.roll(labels, 1, spacing.index(2.0)), labels, spacing=spacing)
    ((panel,), _) = read_panels([choice], [])
    assert panel.shown is not None
    assert panel.shown.plane.name == name
    axes = Figure().add_subplot()
    _draw_panel(axes, panel, 40, 1.0)
    rows, columns = panel.shown.reference.shape
    width, height = columns * across, rows * down
    assert width != height and rows != columns
    assert all(list(image.get_extent()) == [0, width, 0, height] for image in axes.images)
    assert axes.get_aspect() == 1
    bar = scale_bar(width)
    assert np.ptp(axes.lines[0].get_xdata()) == pytest.approx(bar) and not np.ptp(axes.lines[0].get_ydata())
    at = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(at) == {f"{bar:g} mm", *letters}
    left, right, lower, upper = (at[letter] for letter in letters)
    assert left[0] < 0.1 * width and right[0] > 0.9 * width and left[1] == right[1] == height / 2
    assert lower[1] < 0.1 * height and upper[1] > 0.9 * height and lower[0] == upper[0] == width / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_slice_is_that_of_the_labels_file(tmp_path: Path, axis: int, sign: int) -> None:
    """Superior is any axis of the file, upwards or downwards; the prediction is stored in another way."""
    order = np.roll([2, 0, 1], axis)  # the world axis of each axis of the file
    affine = np.zeros((4, 4))
    affine[order, range(3)], affine[3, 3] = 1.0, 1.0
    affine[2] *= 3.0 * sign
    label = np.zeros((9, 9, 9), np.uint8)
    label[3:6, 3:6, 3:6] = 1
    prediction = label.copy()
    prediction[tuple(2 if one == axis else slice(3, 6) for one in range(3))] = 1
    for name, array in (("r", label), ("p", prediction)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    nib.save(nib.as_closest_canonical(nib.load(tmp_path / "p.nii.gz")), tmp_path / "p.nii.gz")
    one = PredictedCase("a", "c", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    (panel,), _ = read_panels([Choice("worst", one, 0.5, {}, 1)], [])
    assert panel.shown is not None, panel.problem
    assert (panel.shown.plane.name, panel.shown.axis, panel.shown.index) == ("axial", axis, 2)


@pytest.mark.parametrize("shape", [(10, 24, 30), (24, 30)], ids=["3d", "2d"])
def test_of_several_channels_in_a_file_the_first_is_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    label = np.zeros(shape, np.uint8)
    label[(Ellipsis, slice(6, 14), slice(8, 20))] = 1
    channels = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    drawn = []
    for image in (channels[0], np.moveaxis(channels, 0, -1)):
        choice = _choice(tmp_path, label, label)
        nib.save(nib.Nifti1Image(image, nib.load(tmp_path / "r.nii.gz").affine), tmp_path / "i.nii.gz")
        one = replace(choice.predicted, image=tmp_path / "i.nii.gz")
        (panel,), _ = read_panels([replace(choice, predicted=one)], [])
        assert panel.shown is not None and panel.shown.no_image is None and panel.shown.image is not None
        drawn.append(panel.shown.image)
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_the_classes_stand_below_a_picture_if_there_is_room(tmp_path: Path) -> None:
    label = np.zeros((6, 20, 20), np.uint8)
    label[:, 4:9, 4:9], label[:, 12:15, 12:15] = 1, 2
    choice = _choice(tmp_path, label, label)
    named = replace(choice, classes={"organ": 0.912345, "shell": None})
    # Of fewer letters than others that fit, but wider than the panel.
    wide = replace(choice, classes={"M" * 20: 0.9, "W" * 20: 0.9})
    (plain, classes, too_wide), _ = read_panels([choice, named, wide], [])
    assert (class_text(plain, "dice"), class_text(classes, "dice")) == ("", "organ 0.91, shell –")
    assert class_text(classes, "hd95_mm") == "organ 0.9 mm, shell –"
    assert class_text(Panel(named, None, "no file"), "dice") == ""
    for picture in (lambda panels: loss_picture("a", panels, "dice"), lambda panels: same_picture(panels, "dice")):
        heights = [len(_colours(picture([panel, plain]))) for panel in (plain, classes, too_wide)]
        assert heights[0] == heights[2] < heights[1]


def _colours(png: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def _near(pixels: NDArray[np.uint8], colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels.astype(int) - wanted).max(-1) < 30).sum())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("which", ["both", "no prediction", "no reference", "neither"])
def test_empty_label_maps_are_drawn(tmp_path: Path, dims: int, which: str) -> None:
    shape = (10, 24, 30)[-dims:]
    full = np.zeros(shape, np.uint8)
    full[(Ellipsis, slice(6, 14), slice(8, 20))] = 1
    empty = np.zeros_like(full)
    prediction = full if which in ("both", "no reference") else empty
    reference = full if which in ("both", "no prediction") else empty
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (panel,), _ = read_panels([_choice(tmp_path, prediction, reference, image)], [])
    assert panel.problem is None and panel.shown is not None
    assert panel.shown.reference.any() == reference.any()
    pixels = _colours(loss_picture("a", [panel], "dice"))[60:-60]  # without heading and legend
    assert (_near(pixels, REFERENCE) > 100) == reference.any()
    assert (_near(pixels, PREDICTION) > 100) == prediction.any()


@pytest.mark.parametrize("kind", ["none", "constant", "not finite", "text in the name"])
def test_unusual_images_are_drawn(tmp_path: Path, kind: str) -> None:
    labels = np.zeros((6, 20, 20), np.uint8)
    labels[2:4, 5:15, 5:15] = 1
    image = {"none": None, "constant": np.full(labels.shape, 7.0, np.float32)}.get(kind, np.ones(labels.shape) * 2.0)
    if kind == "not finite":
        image = np.full(labels.shape, np.nan, np.float32)
        image[:, 3] = np.inf
    (panel,), _ = read_panels([_choice(tmp_path, np.roll(labels, 2, 1), labels, image)], [])
    assert panel.shown is not None and panel.shown.no_image is None
    name = "$\\frac$ 损失 <b>" if kind == "text in the name" else "a"
    assert _near(_colours(loss_picture(name, [panel], "dice")), REFERENCE) > 100


def test_labels_that_were_not_evaluated_are_background(tmp_path: Path) -> None:
    reference = np.zeros((6, 20, 20), np.uint8)
    reference[1:5, 4:10, 4:10], reference[1:5, 12:16, 4:16] = 1, 9
    prediction = np.where(reference == 1, 1, 0).astype(np.uint8)
    prediction[2, 13:15, 5:9], prediction[3, 0:2, 0:2] = 1, 7
    choice = _choice(tmp_path, prediction, reference)
    plain = read_panels([choice], [])[0][0].shown
    assert plain is not None and 9 in plain.reference
    one = PredictedCase(*list(vars(choice.predicted).values())[:5], values=(0, 1), ignore=9)
    shown = read_panels([Choice("worst", one, 0.5, {}, 1)], [])[0][0].shown
    assert shown is not None
    assert set(np.unique(shown.reference)) == {0, 1}
    assert np.array_equal(shown.predictions[one], shown.reference)


def test_isotropic_cases_are_all_shown_in_the_plane_of_the_largest_sections(tmp_path: Path) -> None:
    def isotropic(name: str, box: tuple[slice, ...]) -> Choice:
        labels = np.zeros((20, 20, 20), np.uint8)
        labels[box] = 1
        files = [_write(tmp_path / name / f"{kind}.nii.gz", labels, (1.0,) * 3) for kind in "pr"]
        return Choice("worst", PredictedCase("a", name, *files), 1.0, {}, 1)

    wide = isotropic("wide", (slice(2, 18), slice(9, 11), slice(2, 18)))  # coronal shows most
    flat = isotropic("flat", (slice(5, 9), slice(5, 9), slice(9, 11)))  # axial would show most
    coarse = _choice(tmp_path / "coarse", np.ones((4, 20, 20), np.uint8), np.ones((4, 20, 20), np.uint8))
    panels, _ = read_panels([wide, flat, coarse], [])
    assert [panel.shown.plane.name for panel in panels if panel.shown] == ["coronal", "coronal", "sagittal"]
    panels, _ = read_panels([flat, coarse], [])
    assert [panel.shown.plane.name for panel in panels if panel.shown] == ["axial", "sagittal"]


def test_names_of_files_are_distinct() -> None:
    names = _names(["a+b", "a_plus_b", "A_PLUS_B", "same_case", "x" * 300, "..", "損失"])
    assert len({name.casefold() for name in names.values()}) == len(names)
    assert all(name.startswith("overlay_") and len(name.encode()) < 200 for name in names.values())
    assert "overlay_same_case" not in names.values()


# In a report.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest of volumes of 3 x 1 x 2 mm, and its data root."""
    folder = tmp_path_factory.mktemp("tiny")
    made = tiny_manifest(folder, cases=9)
    resolve_data(load_manifest(made), folder / "data")
    return made, folder / "data"


def _overlays(collected: Collected) -> Overlays:
    return every_overlay(analyse(collected.table, reference=None, bootstraps=10), collected)


@pytest.mark.parametrize("dims", [2, 3])
def test_pictures_next_to_the_page_and_in_it(tmp_path: Path, dims: int) -> None:
    made = tiny_manifest(tmp_path, dims, cases=6)
    losses = ["focal", DEFAULT_REFERENCE, "tversky"]
    runs = pictured_comparison(tmp_path / "c", losses, made, tmp_path / "data", folds=(0, 1), seeds=(0, 1)).runs
    page, analysis = write_report(from_folder(tmp_path / "c"), tmp_path / "r", bootstraps=10)
    names = ["overlay_same_case", "overlay_focal", "overlay_dice_plus_binary_cross_entropy", "overlay_tversky"]
    assert sorted(path.stem for path in (tmp_path / "r" / "plots").glob("overlay_*")) == sorted(names)
    assert read_page(page).tags.count("img") == 4
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4 and 'id="cases"' in text and 'href="#cases"' in text
    assert "<details>" not in text[text.index('<section id="cases">') : text.index('<section id="paper">')]
    assert "closest to that mean" in text
    table = pd.read_csv(tmp_path / "r" / "tables" / "overlays.csv")
    assert list(table["which"]) == ["worst", "median", "best"] * 3 + ["most different"] * 3
    for row in table.itertuples():
        score = analysis.scores[row.loss][analysis.patients.index(row.case)]
        assert row.score == pytest.approx(score)
        assert (tmp_path / "r" / "plots" / row.picture).is_file()
        # The index of the slice is that in the file.
        run = next(r for r in runs if (r.config.loss, r.config.fold, r.config.seed) == (row.loss, row.fold, row.seed))
        prediction = np.asanyarray(nib.load(run_folder(tmp_path / "c", run).prediction(row.case)).dataobj)
        reference = _label(made, tmp_path / "data", row.case)
        wrong = prediction != reference
        if dims == 3:
            assert row.plane == "axial" and row.axis == 0  # superior is the files' first axis, of 3 mm
            if row.which != "most different" and wrong.any():
                assert wrong.sum((1, 2)).argmax() == row.slice
    assert pd.isna(table["problem"]).all()


def _label(manifest: Path, data: Path, case: str) -> NDArray[Any]:
    loaded = load_manifest(manifest)
    label = next(one.label for one in loaded.cases if one.id == case)
    return np.asanyarray(nib.load(resolve_data(loaded, data) / label).dataobj)


def test_many_losses_are_folded(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    losses = ["focal", "dice", "tversky", "combo", DEFAULT_REFERENCE, "shape_aware"]
    pictured_comparison(tmp_path, losses, *tiny)
    collected = from_folder(tmp_path)
    analysis = analyse(collected.table, reference=DEFAULT_REFERENCE, bootstraps=10)
    overlays = every_overlay(analysis, collected)
    order = [ranked.loss for ranked in analysis.primary.ranking]
    assert [picture.title for picture in overlays.shown] == [
        loss for loss in order if loss in (order[0], DEFAULT_REFERENCE, order[-1])
    ]
    assert {picture.title for picture in (*overlays.shown, *overlays.folded)} == set(losses)
    # Pictures of an older report are removed.
    stale = tmp_path / "report" / "plots" / "overlay_gone.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    path, _ = write_report(collected, tmp_path / "report", bootstraps=10)
    assert "<summary>The other 3 losses</summary>" in path.read_text()
    assert not stale.exists()
    # The same data, the same bytes.
    assert (tmp_path / "report" / "plots" / "overlay_focal.png").read_bytes() == overlays.shown[0].png


def _remove(folder: Path, pattern: str = "*.nii.gz") -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _truncate(folder: Path) -> None:
    for path in folder.glob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:100])


def _regrid(folder: Path) -> None:
    for path in folder.glob("*.nii.gz"):
        _write(path, np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("break_", "message", "pictures"),
    [
        (lambda p, root: _remove(p), "not drawn: the prediction", {"dice", "same"}),
        (lambda p, root: _truncate(p), "truncated", {"dice", "same"}),
        (lambda p, root: _regrid(p), "3 x 4 x 5 voxels, but its label has 24 x 24 x 12", {"dice", "same"}),
        (lambda p, root: _remove(root / "images"), "drawn without its image: the image", {"focal", "dice", "same"}),
        (lambda p, root: _truncate(root / "images"), "truncated", {"focal", "dice", "same"}),
        (lambda p, root: _remove(root / "labels"), "not drawn: the label", set()),
    ],
)  # fmt: skip
def test_problems_with_files_are_noted(
    tmp_path: Path, break_: Callable[[Path, Path], None], message: str, pictures: set[str]
) -> None:
    manifest = tiny_manifest(tmp_path, cases=9)
    root = resolve_data(load_manifest(manifest), tmp_path / "data")
    pictured_comparison(tmp_path / "c", ["focal", "dice"], manifest, tmp_path / "data")
    break_(tmp_path / "c" / "runs" / "focal-fold0-seed0" / "predictions", root)
    overlays = _overlays(from_folder(tmp_path / "c"))
    drawn = {picture.title for picture in (*overlays.shown, *overlays.folded)}
    assert drawn | ({"same"} if overlays.same is not None else set()) == pictures
    assert any(message in note for note in overlays.notes), overlays.notes
    assert all("\n" not in note for note in overlays.notes)
    assert overlays.table is not None and overlays.table["problem"].notna().any()


def test_why_there_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(folder: Path) -> str:
        overlays = _overlays(from_folder(folder))
        assert overlays.pictures == () and len(overlays.notes) == 1
        return overlays.notes[0]

    made_comparison(tmp_path / "none kept", ["dice", "focal"])
    assert "the runs kept no predictions (--no-predictions" in note(tmp_path / "none kept")
    manifest = tiny_manifest(tmp_path / "data", cases=9)
    pictured_comparison(tmp_path / "changed", ["dice", "focal"], manifest, tmp_path / "data")
    manifest.write_text(manifest.read_text().replace("of small volumes", "of other volumes"))
    assert "has changed since training" in note(tmp_path / "changed")
    manifest.unlink()
    reason = note(tmp_path / "changed")
    assert "No pictures of individual cases: no manifest" in reason
    # The report is written nevertheless, with the note.
    path, _ = write_report(from_folder(tmp_path / "changed"), tmp_path / "report", bootstraps=10)
    assert reason in html.unescape(path.read_text()) and 'id="cases"' in path.read_text()
    assert "data:image" not in path.read_text() and not list((tmp_path / "report" / "plots").glob("overlay_*"))


def test_data_that_have_moved_are_found_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_manifest(tmp_path, cases=9)
    data = resolve_data(load_manifest(made), tmp_path / "made")
    listed = load_manifest(made).model_dump() | {"generator": None}
    listed["spacing"] = list(listed["spacing"])
    for number, case in enumerate(listed["cases"]):
        case |= {"image_sha256": f"{2 * number:064x}", "label_sha256": f"{2 * number + 1:064x}"}
    path = tmp_path / "listed.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in listed.items() if value is not None}))
    pictured_comparison(tmp_path / "c", ["dice", "focal"], path, data)
    moved = data.rename(tmp_path / "moved")
    monkeypatch.delenv("MEDLOSS_DATA", raising=False)
    collected = from_folder(tmp_path / "c")
    assert collected.predictions == () and "needs its data" in (collected.no_pictures or "")
    monkeypatch.setenv("MEDLOSS_DATA", str(moved))
    assert len(_overlays(from_folder(tmp_path / "c")).pictures) == 3


def test_failed_runs_are_noted(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    def ended(config: Any) -> str:
        failed = config.loss == "combo" or (config.loss, config.fold) == ("focal", 1)
        return "failed" if failed else "done"

    pictured_comparison(tmp_path, ["focal", "dice", "combo"], *tiny, ended=ended, folds=(0, 1))
    overlays = _overlays(from_folder(tmp_path))
    assert {picture.title for picture in overlays.shown} == {"focal", "dice"}
    assert "combo: no pictures, since none of its runs finished." in overlays.notes
    assert any(note.startswith("focal: 3 of 6 cases have no prediction") for note in overlays.notes)
    assert overlays.table is not None
    focal = overlays.table[overlays.table["loss"] == "focal"]
    assert (focal["fold"] == "0").all() and (focal["score"] > 0).all()
    # Only cases of which most losses have a prediction are compared.
    assert set(overlays.table[overlays.table["which"] == "most different"]["loss"]) == {"focal", "dice"}


def test_pictures_of_regions_ignored_voxels_and_partial_labels(tmp_path: Path) -> None:
    """A comparison's pictures show what its metrics count, on the first channel; the page has the cases per class."""
    made = load_manifest(tiny_manifest(
        tmp_path, 3, modality=None, channels=[{"name": "PET"}, {"name": "CT"}], ignore=255,
        classes={0: "background", 1: "rim", 2: "core", 3: "centre"}, generator={"name": "phantom_regions"},
    ))  # fmt: skip
    root = resolve_data(made, tmp_path / "data")
    content = made.model_dump(mode="json", exclude={"generator"}) | {
        "classes": made.classes, "regions": {"core": [2, 3], "centre": [3], "rim": [1]}, "region_order": [2, 3, 1],
    }  # fmt: skip
    # The first case annotates the rim alone; and the channels of the second one are in a single file.
    content["cases"][0]["labelled"] = ["rim"]
    label = root / made.cases[0].label
    array = np.asanyarray(nib.load(label).dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(array, (2, 3)), 0, array), nib.load(label).affine), label)
    channels = [nib.load(root / file) for file in made.cases[3].images]
    joined = np.stack([np.asanyarray(channel.dataobj) for channel in channels], -1)
    nib.save(nib.Nifti1Image(joined, channels[0].affine), root / "images/joined.nii.gz")
    content["cases"][3]["image"] = "images/joined.nii.gz"
    path = tmp_path / "partial.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    folder = tmp_path / "comparison"
    pictured_comparison(folder, ["dice", "focal"], path, root)
    collected = from_folder(folder)
    assert {(one.case, one.values, one.ignore) for one in collected.predictions} == {
        ("phantom_regions_000", (1,), 255), ("phantom_regions_003", (1, 2, 3), 255),
    }  # fmt: skip
    analysis = analyse(collected.table, reference="dice", bootstraps=10)
    assert analysis.class_cases == {"centre": 1, "core": 1, "rim": 2}
    for loss in ("dice", "focal"):
        panels, _ = read_panels([Choice("", one, 0.5, {}, 1) for one in collected.predictions if one.loss == loss], [])
        for panel in panels:
            assert panel.shown is not None and panel.shown.no_image is None and panel.shown.image is not None
            allowed = {0, *(panel.choice.predicted.values or ())}
            prediction = panel.shown.predictions[panel.choice.predicted]
            assert set(np.unique(panel.shown.reference)) | set(np.unique(prediction)) <= allowed
            assert panel.shown.image.shape == prediction.shape
    page, _ = write_report(collected, tmp_path / "report")
    text = html.unescape(page.read_text())
    assert "cases per class: centre: 1, core: 1, rim: 2" in text
    assert every_overlay(analysis, collected).notes == ()


@pytest.mark.parametrize(("empty", "expected"), [("one", 0.9), ("exclude", 0.8), ("worst", 0.4)])
def test_a_picture_reports_the_score_of_the_table(empty: str, expected: float) -> None:
    """A class that neither label nor prediction has counts by the same rule in both."""
    rows = [
        {"case": case, "loss": loss, "class": name, "dice": value, "specificity": 0.99}
        | {"sensitivity": math.nan if (case, name) == ("c1", "lesion") else 0.5}
        for loss, case, values in (
            ("a", "c1", (0.8, math.nan)),
            ("a", "c2", (0.5, 0.5)),
            ("b", "c1", (0.7, 0.0)),
            ("b", "c2", (0.6, 0.4)),
        )
        for name, value in zip(("organ", "lesion"), values, strict=True)
    ]
    table = check_table(pd.DataFrame(rows), METRICS)
    predictions = [PredictedCase(loss, case, Path("p"), Path("r")) for loss in "ab" for case in ("c1", "c2")]
    found = _candidates(table, "dice", predictions, empty)["a"]["c1"]
    assert found.metrics["dice"] == pytest.approx(expected) == found.score
