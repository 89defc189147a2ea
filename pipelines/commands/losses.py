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

    table = Table("loss", "family", "what it is", "trained as", "paper", box=None, pad_edge=False)
    for entry in LOSSES.values():
        table.add_row(entry.name, entry.family, entry.summary, entry.recipe.expression or "alone", entry.paper)
    console = Console()
    # In a pipe nothing is cut off.
    Console(width=None if console.is_terminal else 200).print(table)
    click.echo(f"\nKernels on the CPU: {kernels.in_use()}; installed: {', '.join(kernels.available())}.")
    if "numba" not in kernels.available():
        click.echo("pip install numba adds compiled ones, the fastest on a CPU.")


def _print_documentation(name: str) -> None:
    import inspect

    from medloss.names import refuse_unknown_losses

    refuse_unknown_losses(name)
    from medloss.create import loss_class  # not above, for the second that torch takes

    click.echo(inspect.getdoc(loss_class(name)))
