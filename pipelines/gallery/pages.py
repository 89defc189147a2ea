"""Writes the gallery: one page of Markdown per loss, and the table of all."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medloss import LOSSES
from medloss.loss_entry import LossEntry
from medloss.names import LOSS_SETS
from medloss.presets import presets_of
from pipelines.gallery.descriptions import Description, advice, describe, paper_links
from pipelines.gallery.pictures import Slice, gradient_figure, imbalance_figure, overview_figure, probability_figure
from pipelines.gallery.scenes import is_voxelwise, negative_gradient, one_channel_loss, phantom_scene
from pipelines.utils.figures import write_png
from pipelines.utils.files import write_text

#: The folder of pictures, next to the pages.
PICTURES = "pictures"
#: The pictures of a page: suffix of the file, heading and what they show.
_PICTURES = (
    (
        "probability",
        "Against the predicted probability",
        "A ball of 9 mm radius in 42 x 40 x 40 mm, on voxels of 3 x 2 x 2 mm. Solid: all voxels of the ball get "
        "probability p. Dashed: those of an equal ball of background next to it do. Everything else is right. {unit}",
    ),
    (
        "imbalance",
        "Against class imbalance",
        "A disc in an image of 256 x 256 mm, one half of it missed (p = 0.1; 0.9 in the other half), the background "
        "right. The kind of error is the same at every size. Grey: cross entropy and Dice.",
    ),
    (
        "gradient",
        "Negative gradient",
        "A slice of the phantom: the prediction is shifted by 5 mm, misses a part, and has an island. The negative "
        "gradient moves red voxels towards foreground, blue ones towards background. Losses differ in scale, so each "
        "map is divided by its largest absolute value: colours compare places within a map, not one loss with another.",
    ),
)
_VOXELWISE = "This loss has a value per voxel: value and gradient are means over the region's voxels."
_STRUCTURE = (
    "This loss has a value per structure: the gradient is the derivative of the loss as the logits of all the region's "
    "voxels change together."
)
_MADE = "<!-- Made by `medloss gallery`: change the code, not this file. -->"


def loss_page(entry: LossEntry, voxelwise: bool) -> str:
    """A loss's page."""
    described, advised = describe(entry), advice(entry.name)
    parts = [
        _MADE,
        f"# {entry.name}",
        f"`medloss.{entry.cls.__name__}` · {entry.family} family · [all losses](README.md)",
        described.headline,
        # In a fence GitHub does not touch TeX's backslashes.
        f"```math\n{described.formula}\n```" if described.formula else "",
        described.remarks,
        f"**Paper.** {paper_links(entry.paper)}",
        f"**Trained as.** {_recipe(entry)}",
        f"**When to use it.** {advised.use}",
        f"**When not.** {advised.avoid}",
        "## Defaults",
        _defaults(described),
        _presets(entry),
    ]
    for suffix, heading, caption in _PICTURES:
        parts.append(f"## {heading}")
        parts.append(f"![{heading}: {entry.name}]({PICTURES}/{entry.name}-{suffix}.png)")
        parts.append(caption.format(unit=_VOXELWISE if voxelwise else _STRUCTURE))
    parts.append(advised.pictures)
    example = f"medloss explain --loss {entry.name} --image image.nii.gz --label label.nii.gz"
    parts.append(f"The same map for one of your cases: `{example}`")
    return "\n\n".join(part for part in parts if part) + "\n"


def index_page(entries: Sequence[LossEntry], overview: bool) -> str:
    """The tables of losses that have a page, with the picture of all maps if it exists."""
    tables = []
    for which, heading in LOSS_SETS.items():
        rows = [_row(entry) for entry in entries if entry.which == which]
        if rows:
            head = ["| loss | family | what it is | trained as |", "| --- | --- | --- | --- |"]
            tables += [f"## {heading}", "\n".join([*head, *rows])]
    parts = [
        _MADE,
        "# The losses",
        "Each page has the loss's formula, defaults, advice and three pictures, made from the code by `medloss "
        "gallery`. The last column is how `medloss train` trains the loss by its recipe: alone, or in a sum.",
        *tables,
    ]
    if overview:
        parts += [
            "## Negative gradients",
            f"![Negative gradient of each loss]({PICTURES}/overview.png)",
            "All losses on one slice and one prediction, each alone and with its defaults. Red: towards foreground; "
            "blue: towards background; each map is divided by its largest absolute value.",
        ]
    return "\n\n".join(parts) + "\n"


def _row(entry: LossEntry) -> str:
    return f"| [{entry.name}]({entry.name}.md) | {entry.family} | {_cell(entry.summary)} | {_sum(entry)} |"


def _sum(entry: LossEntry) -> str:
    if entry.recipe.expression:
        return f"`{entry.recipe.expression}`"
    return ", ".join(["alone", *(f"`{key}={value}`" for key, value in entry.recipe.arguments.items())])


def _recipe(entry: LossEntry) -> str:
    recipe = entry.recipe
    origin = f"{recipe.origin[:1].upper()}{recipe.origin[1:]}"
    if not recipe.expression:
        return f"{recipe.note[:1].upper()}{recipe.note[1:]}. {origin}."
    return f"{_sum(entry)}, weights {recipe.schedule}. {origin}. {recipe.note}."


def _defaults(described: Description) -> str:
    common = (
        "the arguments that all losses share: `include_background`, `reduction`, `batch`, `weight`, `ignore_index`."
    )
    if not described.arguments:
        return f"No specific arguments; it takes {common}"
    rows = [f"| `{a.name}` | `{a.default}` | {_cell(a.meaning)} |" for a in described.arguments]
    return "\n".join(["| argument | default | meaning |", "| --- | --- | --- |", *rows]) + f"\n\nIt also takes {common}"


def _presets(entry: LossEntry) -> str:
    rows = [
        f"| `{entry.name}@{name}` | {', '.join(f'`{key}={value}`' for key, value in chosen.items()) or '-'} |"
        for name, chosen in presets_of(entry.name).items()
        if name != "survey"
    ]
    if not rows:
        return ""
    text = f"Presets, also as `medloss.{entry.cls.__name__}.preset(NAME)`, of classes that exclude each other:"
    return "\n".join([text, "", "| name | arguments |", "| --- | --- |", *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def write_gallery(out: Path, names: Sequence[str] = (), report: Callable[[str], None] | None = None) -> None:
    """Write the pages of the named losses, or of all registered ones, and the table of those that have a page.

    The picture of all maps is written only with all losses.

    Args:
        out: the folder, created if missing.
        names: registered losses; empty for all.
        report: called with each loss's name once its page is written.
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
        loss = one_channel_loss(name)
        maps[name] = negative_gradient(loss, scene.logits, scene.reference, scene.spacing)[..., index]
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
