"""`medloss explain` on tiny NIfTI files, and each of its refusals: one line, exit code 2."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_call import call_medloss
from click.testing import CliRunner
from faults import moved, resaved_from_float, with_trailing_axes
from numpy.typing import NDArray
from PIL import Image

from pipelines.cli.losses import explain, gallery
from pipelines.gallery.explain import explain_case
from pipelines.utils import UserError

SHAPE, SPACING = (12, 14, 6), (0.8, 1.0, 3.0)
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, data: NDArray, affine: NDArray | None = None) -> Path:
        affine = np.diag([*SPACING, 1.0]) if affine is None else affine
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(data, affine), path)
        return path

    return write


def _image() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)


def _label() -> NDArray[np.uint8]:
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 4:10, 1:5] = 1
    label[0, 0, 0] = 3
    return label


@pytest.fixture
def case(save: Save) -> tuple[Path, Path]:
    return save("image", _image()), save("label", _label())


def test_a_missing_prediction_is_replaced_with_a_note(case: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "map.png"
    arguments = ["--loss", "hausdorff_dt+dice", "--image", str(case[0]), "--label", str(case[1]), "--out", str(out)]
    result = CliRunner().invoke(explain, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "no prediction given: a stand-in, the label moved 1.6 mm along axis 0" in result.output
    assert "of axis 2" in result.output  # the axis of the largest spacing
    with Image.open(out) as picture:
        assert picture.width > 500


def test_without_out_the_picture_is_named_after_the_loss(
    case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explained = explain_case("0.5*dice+focal", *case)
    assert explained.path == Path("explain-0.5_dice_focal.png") and explained.path.is_file()


def test_a_prediction_of_probabilities_shows_the_slice_where_it_is_wrong(
    case: tuple[Path, Path], save: Save, tmp_path: Path
) -> None:
    probability = np.where(_label() == 1, 0.9, 0.1).astype(np.float32)
    probability[1:3, 1:3, 3] = 0.8
    prediction = save("prediction", probability)
    explained = explain_case("dice", *case, prediction=prediction, out=tmp_path / "a.png")
    assert explained.notes == ("slice 3 of axis 2; prediction: probabilities",)
    explained = explain_case("dice", *case, prediction=prediction, axis=0, out=tmp_path / "a.png")
    assert explained.notes[0].startswith("slice 1 of axis 0")


def test_a_prediction_of_labels_is_taken_as_nearly_sure(case: tuple[Path, Path], save: Save, tmp_path: Path) -> None:
    note = explain_case("dice", *case, prediction=save("p", _label()), out=tmp_path / "a.png").notes[0]
    assert "labels, taken as p = 0.9 inside and 0.1 outside" in note
    note = explain_case("dice", *case, prediction=save("p", 0 * _label()), out=tmp_path / "a.png").notes[0]
    assert note.endswith("no voxel of class 1 in it")


def test_files_saved_again_from_floats_are_labels(case: tuple[Path, Path], save: Save, tmp_path: Path) -> None:
    before = explain_case("dice", *case, prediction=save("p", _label()), out=tmp_path / "a.png").notes
    label, prediction = save("l", _label()), save("q", _label())
    for path in (label, prediction):
        resaved_from_float(path)
    assert explain_case("dice", case[0], label, prediction=prediction, out=tmp_path / "b.png").notes == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_trailing_axes_and_a_tenth_of_a_voxel(case: tuple[Path, Path], save: Save, tmp_path: Path) -> None:
    before = explain_case("dice", *case, out=tmp_path / "a.png").notes
    with_trailing_axes(case[0])
    with_trailing_axes(case[1], 2)
    assert explain_case("dice", *case, out=tmp_path / "b.png").notes == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    moved(case[1], 0, 0.035)
    (first, note) = explain_case("dice", *case, out=tmp_path / "c.png").notes
    assert (first,) == before
    assert note == f"note: {case[1]} lies 0.035 mm off its image; up to 0.1 voxels count as the same grid"


def test_another_class(case: tuple[Path, Path], tmp_path: Path) -> None:
    assert explain_case("focal", *case, label_class=3, out=tmp_path / "a.png").notes[0].startswith("slice 0 of axis 2")


def test_2d_and_single_slice_files(save: Save, tmp_path: Path) -> None:
    for number, cut in enumerate((np.s_[..., 2], np.s_[..., 2:3])):
        image, label = save(f"i{number}", _image()[cut]), save(f"l{number}", _label()[cut])
        note = explain_case("dice", image, label, out=tmp_path / "a.png").notes[0]
        assert note.startswith("no prediction given")


def test_axes_are_those_of_the_images_file(case: tuple[Path, Path], tmp_path: Path) -> None:
    """However the image is stored, and the label and the prediction with other axes."""
    before = explain_case("dice", *case, prediction=case[1], axis=0, out=tmp_path / "a.png")
    turned = tmp_path / "turned.nii.gz"
    image = nib.load(case[0])
    # From right, anterior, superior to inferior, right, posterior.
    orientation = nib.orientations.axcodes2ornt(("I", "R", "P"))
    image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), orientation)).to_filename(
        turned
    )
    after = explain_case("dice", turned, case[1], prediction=case[1], axis=1, out=tmp_path / "b.png")
    assert before.notes[0].startswith("slice 3 of axis 0")
    assert after.notes[0] == before.notes[0].replace("axis 0", "axis 1")
    of_default = explain_case("dice", turned, case[1], out=tmp_path / "c.png").notes[0]
    assert "of axis 0; no prediction" in of_default  # that of the largest spacing
    with pytest.raises(UserError, match="expected the same grid"):
        explain_case("dice", turned, _other(case[1], tmp_path), out=tmp_path / "d.png")


def _other(label: Path, folder: Path) -> Path:
    image = nib.load(label)
    image.slicer[:-1].to_filename(folder / "smaller.nii.gz")
    return folder / "smaller.nii.gz"


def test_a_channel_of_a_4d_image(case: tuple[Path, Path], save: Save, tmp_path: Path) -> None:
    before = explain_case("dice", *case, out=tmp_path / "a.png").notes[0]
    other = np.random.default_rng(1).normal(100, 10, SHAPE).astype(np.float32)
    four = save("four", np.stack([_image(), other], -1))
    pictures = []
    for channel in (None, 0, 1):
        words = [] if channel is None else ["--channel", channel]
        out = tmp_path / f"{channel}.png"
        code, printed, err = call_medloss(
            "explain", "--loss", "dice", "--image", four, "--label", case[1], "--out", out, *words
        )
        assert (code, err) == (0, "")
        number = channel or 0
        assert printed.splitlines()[0] == before.replace("no prediction", f"channel {number} of 2; no prediction")
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_link_to_a_file_elsewhere_is_followed(case: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "links" / "image.nii.gz"
    link.parent.mkdir()
    link.symlink_to(case[0])
    assert explain_case("dice", link, case[1], out=tmp_path / "a.png").path.is_file()


def _refused(message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(UserError) as refusal:
        explain_case(*arguments, **options)  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refuses_files_that_are_none(case: tuple[Path, Path], tmp_path: Path) -> None:
    image, label = case
    _refused("--image: ", "dice", tmp_path / "absent.nii.gz", label)
    _refused("missing", "dice", image, tmp_path / "absent.nii.gz")
    text = tmp_path / "text.nii"
    text.write_text("no image")
    _refused("not a NIfTI file", "dice", text, label)
    half = tmp_path / "half.nii.gz"
    half.write_bytes(image.read_bytes()[:500])
    _refused("truncated", "dice", half, label)


def test_refuses_files_that_do_not_fit(case: tuple[Path, Path], save: Save) -> None:
    image, label = case
    _refused("--label: ", "dice", image, save("short", _label()[:-1]))
    _refused("expected the same grid", "dice", image, label, prediction=save("short", _label()[..., :-1]))
    moved = np.diag([*SPACING, 1.0])
    moved[0, 3] = 5.0
    _refused("different affines", "dice", image, save("moved", _label(), moved))
    _refused("different affines", "dice", image, label, prediction=save("moved", _label(), moved))
    _refused("4 axes", "dice", image, save("four", np.zeros((*SHAPE, 2), np.uint8)))
    _refused("may be a time series", "dice", save("nine", np.zeros((*SHAPE, 9), np.float32)), label)
    _refused("expected the same grid", "dice", save("other", np.zeros((3, *SHAPE), np.float32)), label)


def test_refuses_meaningless_values(case: tuple[Path, Path], save: Save) -> None:
    image, label = case
    _refused("no voxel of class 2; it has 0, 1, 3", "dice", image, label, label_class=2)
    _refused("no whole numbers", "dice", image, save("soft", _image()))
    _refused("values from", "dice", image, label, prediction=save("logits", _image()))
    broken = np.full(SHAPE, 0.5, np.float32)
    broken[0, 0, 0] = np.nan
    _refused("NaN", "dice", image, label, prediction=save("nan", broken))


def test_refuses_arguments_out_of_range(case: tuple[Path, Path], save: Save, tmp_path: Path) -> None:
    image, label = case
    _refused("expected 0, 1 or 2", "dice", image, label, axis=3)
    _refused("ends in .png", "dice", image, label, out=tmp_path / "map.jpg")
    _refused("--out", "dice", image, label, out=image / "map.png")
    flat = save("i", _image()[..., 2]), save("l", _label()[..., 2])
    _refused("2D image", "dice", *flat, axis=0)
    four = save("four", np.stack([_image()] * 2, -1))
    for channel in (-1, 2):
        _refused(f"--channel: got {channel} for {four}; expected 0 to 1", "dice", four, label, channel=channel)
    _refused("expected none, for an image with one channel", "dice", image, label, channel=1)


@pytest.mark.parametrize("loss", ["dise", "dice+", "2*"])
def test_refuses_unknown_losses_before_reading_files(loss: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        explain_case(loss, tmp_path / "absent", tmp_path / "absent")
    assert "\n" not in str(refusal.value)


def test_the_command_prints_one_line_and_exits_with_2(case: tuple[Path, Path]) -> None:
    code, out, err = call_medloss("explain", "--loss", "dise", "--image", case[0], "--label", case[1])
    assert (code, out) == (2, "")
    assert err.splitlines() == ["error: no loss 'dise'; did you mean 'dice'? `medloss losses` lists all"]


def test_gallery_refuses_what_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not registered"):
        CliRunner().invoke(gallery, ["--out", str(tmp_path), "--loss", "monai.losses.DiceLoss"], catch_exceptions=False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        CliRunner().invoke(gallery, ["--out", str(blocked / "x"), "--loss", "dice"], catch_exceptions=False)
