"""`medloss explain` and `medloss gallery`: pictures of where losses push."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--loss", required=True, help="A name, a sum (0.2*focal+0.8*dice) or a dotted path.")
@click.option("--image", type=_PATH, required=True, help="NIfTI image, 2D or 3D.")
@click.option("--label", type=_PATH, required=True, help="NIfTI label on the same grid.")
@click.option("--prediction", type=_PATH, help="NIfTI prediction: probabilities, or labels. Default: a stand-in.")
@click.option("--label-class", default=1, show_default=True, help="The structure's value in the label.")
@click.option("--axis", type=int, help="Array axis to cut across; default: that of the largest spacing.")
@click.option("--out", type=_PATH, help="The picture, .png. Default: explain-LOSS.png.")
def explain(
    loss: str, image: Path, label: Path, prediction: Path | None, label_class: int, axis: int | None, out: Path | None
) -> None:
    """Draw where a loss pushes the prediction of your own case, on the slice with most error."""
    from medloss.names import refuse_unknown_losses

    refuse_unknown_losses(loss)
    from pipelines.gallery.explain import explain_case  # not above, for the seconds that it takes

    explained = explain_case(loss, image, label, prediction=prediction, label_class=label_class, axis=axis, out=out)
    for line in explained.told:
        click.echo(line)
    click.echo(f"written to {explained.path}")


@click.command()
@click.option("--out", type=_PATH, default=Path("docs/losses"), show_default=True, help="The gallery's folder.")
@click.option("--loss", "losses", multiple=True, help="Only this loss's page; may be given several times.")
def gallery(out: Path, losses: tuple[str, ...]) -> None:
    """Write the gallery of losses: a page and pictures each, from the code."""
    from medloss.names import loss_names, refuse_unknown_losses
    from pipelines.errors import UserError

    for name in losses:
        refuse_unknown_losses(name)
        if name not in loss_names():
            raise UserError(f"--loss: '{name}' is not registered; the gallery shows the losses of `medloss losses`")
    from pipelines.gallery.build import write_gallery  # not above, for the seconds that it takes

    try:
        write_gallery(out, losses, click.echo)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}; name another folder") from None
    click.echo(f"written to {out}")
