"""Files in any orientation are read as the same volume, and what is written lies on the file's axes."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.data.grids import Orientation, Volume
from pipelines.data.nifti import BadFileError, read_file, read_image, stacked, write_labels

AFFINE = np.array([[2.0, 0, 0, -5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
#: All orders of three axes, each in both directions.
ALL_48 = [
    np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)], float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def _array(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.int16)


@pytest.mark.parametrize("turn", ALL_48, ids=lambda turn: "".join(f"{int(a)}{'+' if s > 0 else '-'}" for a, s in turn))
def test_a_volume_in_each_of_48_orientations(turn: np.ndarray, tmp_path: Path) -> None:
    array, file = _array((4, 5, 6)), tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(array, AFFINE).as_reoriented(turn)
    nib.save(image, file)
    volume = read_file(file)
    assert np.array_equal(volume.data, array)
    assert np.allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.spacing == (2, 3, 4)
    assert volume.orientation.name == "".join(nib.aff2axcodes(image.affine))
    stored = volume.as_stored()
    assert np.array_equal(stored.data, np.asanyarray(image.dataobj))
    assert np.allclose(stored.affine, image.affine, atol=1e-6)
    assert stored.spacing == pytest.approx(nib.affines.voxel_sizes(image.affine))
    write_labels(tmp_path / "b.nii.gz", volume.data, image.header)
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(image.dataobj))
    assert np.allclose(written.affine, image.affine, atol=1e-6)


def test_a_slice_in_each_plane(tmp_path: Path) -> None:
    array = _array((4, 5))
    for columns in itertools.permutations(range(3), 2):
        for signs in itertools.product((1, -1), repeat=2):
            affine = np.zeros((4, 4))
            third = ({0, 1, 2} - set(columns)).pop()
            for axis, (world, sign) in enumerate(zip((*columns, third), (*signs, 1), strict=True)):
                affine[world, axis] = sign * (2.0, 3.0, 1.0)[axis]
            affine[3, 3] = 1
            nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
            volume = read_file(tmp_path / "a.nii.gz")
            # Along ascending world axes, each to its positive side.
            turned = array[:: signs[0], :: signs[1]]
            expected = turned if columns[0] < columns[1] else turned.T
            assert np.array_equal(volume.data, expected)
            assert volume.spacing == ((2, 3) if columns[0] < columns[1] else (3, 2))


def test_channels_last_become_channels_first(tmp_path: Path) -> None:
    array = _array((4, 5, 6, 3))
    turn = np.array([[2, -1], [0, 1], [1, -1]], float)
    nib.save(nib.Nifti1Image(array, AFFINE).as_reoriented(turn), tmp_path / "a.nii.gz")
    (volume,) = read_image([tmp_path / "a.nii.gz"], 3)
    assert np.array_equal(volume.data, np.moveaxis(array, -1, 0))
    assert volume.shape == (4, 5, 6)
    assert np.array_equal(stacked([volume]), np.moveaxis(array, -1, 0))


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((4, 5, 6, 3), 1, "4 axes .* name its channels in the manifest, if its 3 volumes are channels"),
        ((4, 5, 6, 3), 2, "3 volumes in one file; expected 2, one per channel"),
        ((4, 5, 6, 9), None, "9 volumes in one file, which may be a time series; expected at most 8 channels"),
        ((4, 5, 6), 2, r"one volume \(4 x 5 x 6 voxels\); expected 2, one per channel"),
    ],
)
def test_another_number_of_volumes(shape: tuple[int, ...], channels: int | None, message: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(_array(shape), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(BadFileError, match=message):
        read_file(tmp_path / "a.nii.gz", {3}, channels)


def _volume(array: np.ndarray, affine: np.ndarray) -> Volume:
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(affine))
    return Volume(array, affine, spacing, "", Orientation((0, 1, 2), (False,) * 3, "RAS"))


def test_channels_on_another_grid_are_refused_or_resampled_linearly() -> None:
    x = np.arange(12.0)
    fine = np.broadcast_to(x[:, None, None], (12, 4, 4)).astype(np.float32)
    coarse_affine = np.diag([2.0, 1, 1, 1])
    coarse_affine[0, 3] = 0.5
    coarse = np.broadcast_to((2 * np.arange(6.0) + 0.5)[:, None, None], (6, 4, 4)).astype(np.float32)
    volumes = [_volume(fine, np.eye(4)), _volume(coarse, coarse_affine)]
    with pytest.raises(BadFileError, match=r"channel 1: 6 x 4 x 4 voxels, but its first channel has 12 x 4 x 4"):
        stacked(volumes)
    made = stacked(volumes, volumes[0])
    # A ramp along x in mm is a fixed point of linear interpolation; the outer halves of the border voxels are constant.
    assert np.allclose(made[1, 1:11], fine[1:11])
    assert np.allclose(made[1, [0, 11], 0, 0], [0.5, 10.5])
    # Beyond them is the minimum.
    long = _volume(np.zeros((14, 4, 4), np.float32), np.eye(4))
    assert np.allclose(stacked([long, volumes[1]], long)[1, 11:, 0, 0], [10.5, 0.5, 0.5])


def test_resampling_within_slices_keeps_the_first_and_the_last_slice() -> None:
    """Positions of slices that both grids share are found as 1e-14 or -1e-14, and were outside by rounding."""
    random = np.random.default_rng(0)
    for _ in range(50):
        affine = np.diag([*random.uniform(0.5, 3, 3).round(2), 1])
        affine[:3, 3] = random.uniform(-200, 200, 3).round(2)
        coarse = _volume(random.uniform(1, 2, (4, 4, 5)).astype(np.float32), affine)
        coarse.data[2, 2, 2] = 0  # the minimum
        fine = _volume(np.zeros((7, 7, 5), np.float32), affine @ np.diag([0.5, 0.5, 1, 1]))
        made = stacked([fine, coarse], fine)[1]
        assert np.allclose(made[::2, ::2], coarse.data, atol=1e-4)
