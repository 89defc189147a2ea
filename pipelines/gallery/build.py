"""Write the gallery: pages, pictures and table."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medloss import LOSSES, create_loss
from pipelines.files import write_text
from pipelines.gallery.curves import imbalance_figure, probability_figure
from pipelines.gallery.gradient_map import Slice, gradient_figure, overview_figure
from pipelines.gallery.measure import is_voxelwise, push
from pipelines.gallery.page import PICTURES, index_page, loss_page
from pipelines.gallery.scenes import phantom_scene
from pipelines.gallery.style import write_png


def write_gallery(out: Path, names: Sequence[str] = (), report: Callable[[str], None] | None = None) -> None:
    """Make the pages of the named losses, or of all registered ones, and the table of those that have a page.

    The picture of all maps is made anew when all losses are.

    Args:
        out: the folder, made if need be.
        names: registered losses; empty for all.
        report: called with each loss's name when its page is there.
    """
    scene = phantom_scene()
    index = int(np.argmax(scene.reference.sum((0, 1))))
    assert scene.image is not None
    shown = Slice(
        scene.reference[..., index],
        scene.logits[..., index] > 0,
        (scene.spacing[0], scene.spacing[1]),
        scene.image[..., index],
        ("axis 0 in mm (voxels of 3 mm)", "axis 1 in mm (voxels of 1 mm)"),
    )
    pictures = out / PICTURES
    maps = {}
    for name in names or LOSSES:
        loss = create_loss(name, sigmoid=True)
        maps[name] = push(loss, scene.logits, scene.reference, scene.spacing)[..., index]
        write_png(probability_figure(name), pictures / f"{name}-probability.png")
        write_png(imbalance_figure(name), pictures / f"{name}-imbalance.png")
        write_png(gradient_figure(shown, maps[name], name), pictures / f"{name}-gradient.png")
        write_text(out / f"{name}.md", loss_page(LOSSES[name], is_voxelwise(name)))
        if report is not None:
            report(name)
    overview = pictures / "overview.png"
    if not names:
        write_png(overview_figure(shown, maps), overview)
    paged = [entry for entry in LOSSES.values() if (out / f"{entry.name}.md").is_file()]
    write_text(out / "README.md", index_page(paged, overview.is_file()))
