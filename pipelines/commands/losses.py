"""`medloss losses`: what there is to choose from."""

import click


@click.command()
@click.argument("name", required=False)
def losses(name: str | None) -> None:
    """List the losses, or show the documentation of one NAME."""
    if name is not None:
        _print_documentation(name)
        return
    from medloss import LOSSES, kernels
    from medloss.training import trained_as
    from pipelines.tables import Column, print_table

    text = [Column(heading, wraps=True) for heading in ("what it is", "paper")]
    columns = [Column("loss"), Column("family"), text[0], Column("trained as"), text[1]]
    rows = []
    for entry in LOSSES.values():
        trained = trained_as(entry.name) if entry.recipe.expression else "alone"
        trained += f" ({entry.recipe.origin})" if entry.recipe.published else ""
        rows.append([entry.name, entry.family, entry.summary, trained, entry.paper])
    print_table(columns, rows)
    click.echo("\nTrained as: by our recipe, unless a published one is named.")
    click.echo(f"Kernels on the CPU: {kernels.in_use()}; installed: {', '.join(kernels.available())}.")
    if "numba" not in kernels.available():
        click.echo("pip install numba adds compiled ones, the fastest on a CPU.")


def _print_documentation(name: str) -> None:
    import inspect

    from medloss.names import refuse_unknown_losses

    refuse_unknown_losses(name)
    from medloss.create import loss_class  # not above, for the second that torch takes

    click.echo(inspect.getdoc(loss_class(name)))
