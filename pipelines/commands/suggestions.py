"""Groups of subcommands that suggest the nearest name for a misspelt one, as click does from 8.4 on."""

import difflib

import click


class SuggestingGroup(click.Group):
    """A group that suggests the nearest subcommand."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the first argument names.

        Raises:
            click.UsageError: there is none; says the nearest.
        """
        names = self.list_commands(ctx)
        if args[0] not in names and (near := difflib.get_close_matches(args[0], names, n=1)):
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx)
        return super().resolve_command(ctx, args)
