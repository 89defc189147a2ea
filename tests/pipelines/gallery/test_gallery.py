"""The gallery: pages and pictures of two losses, the texts of all, and the numbers behind the pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medloss
from medloss.loss_entry import LossEntry, Recipe
from pipelines.gallery import descriptions
from pipelines.gallery.descriptions import describe, paper_links
from pipelines.gallery.pages import index_page, loss_page, write_gallery
from pipelines.gallery.pictures import densest_slice, normalised, probability_figure
from pipelines.gallery.scenes import (
    PROBABILITIES,
    imbalance_curve,
    imbalance_scene,
    logit,
    negative_gradient,
    one_channel_loss,
    phantom_scene,
    probability_curve,
    region_scene,
)
from pipelines.utils.files import write_text

NAMES = list(medloss.LOSSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gallery") / "losses"
    write_gallery(out, ("tversky", "hausdorff_dt"))
    return out


def test_every_link_of_every_page_resolves(folder: Path) -> None:
    pages = sorted(path.name for path in folder.glob("*.md"))
    assert pages == ["README.md", "hausdorff_dt.md", "tversky.md"]
    for page in pages:
        targets = re.findall(r"\]\(([^)]+)\)", (folder / page).read_text())
        local = [target for target in targets if not target.startswith("https://")]
        assert local
        assert [target for target in local if not (folder / target).is_file()] == []


def test_a_page_shows_three_pictures_that_are_small_and_not_blank(folder: Path) -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "tversky.md").read_text())
    assert [Path(p).name for p in pictures] == [
        f"tversky-{kind}.png" for kind in ("probability", "imbalance", "gradient")
    ]
    for picture in pictures:
        assert (folder / picture).stat().st_size < 80_000
        with Image.open(folder / picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] > 800
        assert (pixels[0, 0] == 255).all()  # the palette has a true white
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_writing_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    reported: list[str] = []
    write_gallery(tmp_path, ("tversky",), reported.append)
    assert reported == ["tversky"]
    for file in ("tversky.md", "pictures/tversky-gradient.png", "pictures/tversky-imbalance.png"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_formula_paper_defaults_and_advice(name: str) -> None:
    entry = medloss.LOSSES[name]
    page = loss_page(entry, voxelwise=False)
    formula = re.search(r"\$\$(.+?)\$\$", entry.cls.__doc__ or "", re.DOTALL)
    assert formula is not None
    # Word by word: only the docstring's indentation is lost.
    fenced = re.search(r"```math\n(.+?)\n```", page, re.DOTALL)
    assert fenced is not None and fenced[1].split() == formula[1].split()
    assert "$$" not in page and "**common" not in page
    assert paper_links(entry.paper) in page and "https://" in paper_links(entry.paper)
    assert descriptions.advice(name).use in page and descriptions.advice(name).avoid in page
    for argument in describe(entry).arguments:
        assert argument.meaning, f"{name}: the docstring does not describe {argument.name}"
        assert f"| `{argument.name}` | `{argument.default}` |" in page


def test_the_pages_in_docs_are_those_of_the_code() -> None:
    pages = Path(__file__).parents[3] / "docs" / "losses"
    for name, entry in medloss.LOSSES.items():
        made = [loss_page(entry, voxelwise) for voxelwise in (True, False)]
        assert (pages / f"{name}.md").read_text(encoding="utf-8") in made, f"run medloss gallery --loss {name}"
    index = index_page(list(medloss.LOSSES.values()), overview=True)
    assert (pages / "README.md").read_text(encoding="utf-8") == index, "run medloss gallery"


def test_every_registered_loss_has_advice() -> None:
    assert set(descriptions.ADVICE) == set(NAMES)


def test_defaults_come_from_the_signature() -> None:
    arguments = {a.name: a for a in describe(medloss.LOSSES["tversky"]).arguments}
    assert list(arguments) == ["alpha", "beta", "smooth_nr", "smooth_dr", "soft_label"]
    assert (arguments["alpha"].default, arguments["beta"].default) == ("0.3", "0.7")
    assert describe(medloss.LOSSES["shape_aware"]).arguments == ()


class _NewLoss(medloss.SegmentationLoss):
    """A loss that nobody has described.

    Args:
        power: a|b.
    """


def test_a_new_loss_gets_a_page_and_a_neutral_text(tmp_path: Path) -> None:
    entry = LossEntry("new", _NewLoss, "region", "Nobody 2030, arXiv 3001.00001", "a|b", Recipe("new+dice"))
    page = loss_page(entry, voxelwise=True)
    assert descriptions.DEFAULT.use in page and "```math" not in page
    write_text(tmp_path / "new.md", page)
    index = index_page([entry], overview=False)
    assert r"| [new](new.md) | region | a\|b | `new+dice` |" in index
    assert "overview.png" not in index
    assert "| alone, `w_type=simple` |" in index_page([medloss.LOSSES["generalized_dice"]], overview=False)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_the_negative_gradient_is_that_of_autograd(spacing: tuple[float, ...]) -> None:
    generator = np.random.default_rng(0)
    reference = np.zeros((4, 5, 6), bool)
    reference[1:3, 1:4, 2:5] = True
    logits = generator.normal(size=reference.shape)
    z = torch.tensor(logits, requires_grad=True)
    p, y = torch.sigmoid(z), torch.tensor(reference)
    # Dice by hand.
    (1 - (2 * p[y].sum() + 1) / (p.sum() + y.sum() + 1)).backward()
    assert z.grad is not None
    computed = negative_gradient(medloss.create_loss("dice", sigmoid=True), logits, reference, spacing)
    np.testing.assert_allclose(computed, -z.grad.numpy(), rtol=1e-10)
    assert (computed[reference] > 0).all() and (computed[~reference] < 0).all()


def test_the_negative_gradient_follows_the_spacing() -> None:
    # One false voxel on each axis, two voxels off the structure: the errors differ only by their distance in mm.
    reference = np.zeros((7, 7, 7), bool)
    reference[3, 3, 3] = True
    logits = np.where(reference, 5.0, -5.0)
    places = ((5, 3, 3), (3, 5, 3), (3, 3, 5))
    for place in places:
        logits[place] = -0.1  # wrong, yet no part of the hard prediction: its map stays the reference's
    loss = medloss.create_loss("hausdorff_dt", sigmoid=True)
    even = [negative_gradient(loss, logits, reference, (1.0, 1.0, 1.0))[place] for place in places]
    uneven = [negative_gradient(loss, logits, reference, (3.0, 1.0, 0.5))[place] for place in places]
    np.testing.assert_allclose(even, even[0], rtol=1e-6)
    np.testing.assert_allclose(np.array(uneven) / uneven[1], (9.0, 1.0, 0.25), rtol=1e-6)


def test_normalised_keeps_signs_and_survives_zeros() -> None:
    np.testing.assert_array_equal(normalised(np.array([[2.0, -4.0]])), [[0.5, -1.0]])
    np.testing.assert_array_equal(normalised(np.zeros((2, 2))), np.zeros((2, 2)))


def test_densest_slice_is_where_most_is_wrong_or_else_most_is_there() -> None:
    reference = np.zeros((3, 4, 5), bool)
    reference[1, :, 2] = True
    prediction = reference.copy()
    assert [densest_slice(reference, prediction, axis) for axis in (0, 2)] == [1, 2]
    prediction[2, 1, 4] = True
    assert [densest_slice(reference, prediction, axis) for axis in (0, 1, 2)] == [2, 1, 4]


def test_cross_entropys_curves_are_those_of_the_formula() -> None:
    for foreground, value, gradient in (
        (True, -np.log(PROBABILITIES), PROBABILITIES - 1),
        (False, -np.log1p(-PROBABILITIES), PROBABILITIES),
    ):
        values, gradients = probability_curve("binary_cross_entropy", foreground)
        np.testing.assert_allclose(values, value, rtol=1e-6)
        np.testing.assert_allclose(gradients, gradient, rtol=1e-6)


def test_a_structures_gradient_is_the_derivative_of_its_value() -> None:
    values, gradients = probability_curve("dice", True)
    z = np.log(PROBABILITIES) - np.log1p(-PROBABILITIES)
    np.testing.assert_allclose(np.gradient(values, z)[5:-5], gradients[5:-5], rtol=0.02)


def test_imbalance_hides_a_small_structure_from_cross_entropy_and_not_from_dice() -> None:
    values, norms = imbalance_curve("binary_cross_entropy")
    np.testing.assert_allclose(norms, norms[0], rtol=1e-6)  # every voxel counts the same at every share
    assert values[0] < 1e-3 * values[-1]
    values, norms = imbalance_curve("dice")
    assert values.max() < 1.5 * values.min()
    assert norms[0] > 1000 * norms[-1]


def test_scenes_match_their_captions() -> None:
    ball, other = region_scene(True), region_scene(False)
    assert ball.region.sum() == other.region.sum() and not (ball.reference & other.region).any()
    for share in (1e-4, 0.5):
        scene = imbalance_scene(share)
        assert abs(scene.reference.sum() - share * scene.reference.size) <= 2
        wrong = scene.reference & (scene.logits < 0)
        assert 2 * wrong.sum() == scene.reference.sum()
        assert scene.logits[wrong] == pytest.approx(logit(0.1))
    case = phantom_scene()
    predicted = case.logits > 0
    assert (predicted & ~case.reference).any() and (case.reference & ~predicted).any()


def test_a_peak_gets_a_symmetric_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    steep = np.full(len(PROBABILITIES), 0.01)
    steep[-1] = 100.0
    monkeypatch.setattr("pipelines.gallery.pictures.probability_curve", lambda name, foreground: (steep, -steep))
    axes = probability_figure("dice").axes
    assert [a.get_yscale() for a in axes] == ["symlog", "symlog"]
    assert all("log beyond 0.01" in a.get_ylabel() for a in axes)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_can_be_mapped(name: str) -> None:
    if name == "skeleton_recall":
        pytest.importorskip("skimage")
    scene = region_scene(True)
    logits = np.where(scene.region, logit(0.05), scene.logits)
    computed = negative_gradient(one_channel_loss(name), logits, scene.reference, scene.spacing)
    assert np.isfinite(computed).all() and computed[scene.region].sum() > 0
