"""`medloss doctor`: versions, machine and kernels, and what is slow here."""

import sys

import click


@click.command()
def doctor() -> None:
    """Show versions, kernels in use, cores, GPU and bfloat16, and what is slow on this machine and why."""
    from pipelines.utils.diagnosis import diagnose, slow  # not above, for the seconds that torch takes
    from pipelines.utils.text import item

    if sys.stderr.isatty():
        click.echo("Checking the kernels; the first time they are compiled, for a minute or so ...", err=True)
    found = diagnose()
    for label, text in found.rows():
        click.echo("\n".join(item(label, text)))
    reasons = slow(found)
    click.echo("\nWhat is slow here, and why:" if reasons else "\nNothing here is slower than it has to be.")
    for reason in reasons:
        click.echo(f"- {reason}")
