"""`medloss losses`, `medloss explain` and `medloss gallery`: the losses listed, described and drawn."""

from pathlib import Path
from typing import Any

import click

from pipelines.cli import PATH


@click.command()
@click.argument("name", required=False)
def losses(name: str | None) -> None:
    """List the losses, or show the documentation of one NAME."""
    if name is not None:
        import inspect

        from medloss.names import refuse_unknown_losses

        refuse_unknown_losses(name)
        from medloss.create import loss_class  # not above, for the second that torch takes

        cls = loss_class(name)
        click.echo(inspect.getdoc(cls))
        _print_presets(cls)
        return
    from rich.console import Console

    from medloss import LOSSES, kernels
    from medloss.names import LOSS_SETS
    from medloss.training_loss import trained_as
    from pipelines.utils.text import Column, print_table

    text = [Column(heading, wraps=True) for heading in ("what it is", "paper")]
    columns = [Column("loss"), Column("family"), text[0], Column("trained as"), text[1]]
    for which, heading in LOSS_SETS.items():
        rows = []
        for entry in (one for one in LOSSES.values() if one.which == which):
            trained = trained_as(entry.name)
            trained = trained if entry.recipe.expression else trained.replace(entry.name, "alone", 1)
            trained += f" ({entry.recipe.origin})" if entry.recipe.published else ""
            rows.append([entry.name, entry.family, entry.summary, trained, entry.paper])
        console = Console(highlight=False)
        console.print(f"{heading}: compare --losses {which}\n", markup=False, soft_wrap=not console.is_terminal)
        print_table(columns, rows)
        click.echo()
    click.echo("Trained as: by our recipe, unless a published one is named.")
    click.echo(f"Kernels on the CPU: {kernels.in_use()}; installed: {', '.join(kernels.available())}.")
    if "numba" not in kernels.available():
        click.echo("pip install numba adds compiled ones, the fastest on a CPU.")


def _print_presets(cls: Any) -> None:
    from medloss.loss_entry import registered_name
    from medloss.presets import PRESETS, presets_of
    from pipelines.utils.text import Column, print_table

    name = registered_name(cls)
    if name is None:
        return
    click.echo(f"\nPresets: as {name}@PRESET in names and sums, and {cls.__name__}.preset(PRESET).\n")
    rows = [
        [preset, ", ".join(f"{key}={value}" for key, value in chosen.items()) or "-", PRESETS[preset].summary]
        for preset, chosen in presets_of(name).items()
    ]
    print_table([Column("preset"), Column("with softmax", wraps=True), Column("whose", wraps=True)], rows)


@click.command()
@click.option("--loss", required=True, help="A name, a sum (0.2*focal+0.8*dice) or a dotted path.")
@click.option("--image", type=PATH, required=True, help="NIfTI image, 2D or 3D, or 4D with channels last.")
@click.option("--label", type=PATH, required=True, help="NIfTI label on the same grid.")
@click.option(
    "--prediction", type=PATH, help="NIfTI prediction: probabilities, or labels; default: the label, shifted."
)
@click.option("--label-class", default=1, show_default=True, help="The structure's value in the label.")
@click.option("--axis", type=int, help="Array axis to cut across; default: that of the largest spacing.")
@click.option("--channel", type=int, help="Channel of a 4D image to draw, from 0; default: the first.")
@click.option("--out", type=PATH, help="The figure, .png; default: explain-LOSS.png.")
def explain(loss: str, image: Path, label: Path, **options: Any) -> None:
    """Draw the negative gradient of a loss on your own case, on the slice with most error."""
    from medloss.names import refuse_unknown_losses

    refuse_unknown_losses(loss)
    from pipelines.gallery.explain import explain_case  # not above, for the seconds that it takes

    explained = explain_case(loss, image, label, **options)
    for line in explained.notes:
        click.echo(line)
    click.echo(f"written to {explained.path}")


@click.command()
@click.option("--out", type=PATH, default=Path("docs/losses"), show_default=True, help="The gallery's folder.")
@click.option("--loss", "losses", multiple=True, help="Only this loss's page. May be repeated.")
def gallery(out: Path, losses: tuple[str, ...]) -> None:
    """Write the gallery of losses from the code: a page and figures per loss."""
    from medloss.names import loss_names, refuse_unknown_losses
    from pipelines.utils import UserError

    for name in losses:
        refuse_unknown_losses(name)
        if name not in loss_names():
            raise UserError(f"--loss: '{name}' is not registered; the gallery shows the losses of `medloss losses`")
    from pipelines.gallery.pages import write_gallery  # not above, for the seconds that it takes

    try:
        write_gallery(out, losses, click.echo)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}; name another folder") from None
    click.echo(f"written to {out}")
