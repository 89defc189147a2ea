"""For mkdocs-click, which lists a group's commands as they are: `medloss` with its commands imported."""

import click

from pipelines.cli import COMMANDS
from pipelines.cli import medloss as lazy

medloss = click.Group(
    "medloss",
    commands={name: command for name in COMMANDS if (command := lazy.get_command(click.Context(lazy), name))},
    params=lazy.params,
    help=lazy.help,
)
