"""`medloss losses`: what there is to choose from."""

import click


@click.command()
@click.argument("name", required=False)
def losses(name: str | None) -> None:
    """List the losses, or show the documentation of one NAME."""
    if name is not None:
        _print_documentation(name)
        return
    from rich.console import Console
    from rich.table import Table

    from medloss import LOSSES, kernels
    from medloss.training import trained_as

    table = Table("loss", "family", "what it is", "trained as", "paper", box=None, pad_edge=False)
    for entry in LOSSES.values():
        trained = trained_as(entry.name) if entry.recipe.expression else "alone"
        trained += f" ({entry.recipe.origin})" if entry.recipe.published else ""
        table.add_row(entry.name, entry.family, entry.summary, trained, entry.paper)
    console = Console()
    # In a pipe nothing is cut off.
    Console(width=None if console.is_terminal else 200).print(table)
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
