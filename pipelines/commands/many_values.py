"""Options that take many values in a row: `--predictions a=one b=two`, which click has for arguments alone."""

from collections.abc import Iterator
from typing import Any

import click

from pipelines.commands.option_groups import GroupedCommand


class ManyValues(GroupedCommand):
    """A command of which some options take every word that follows, up to the next one that begins with `-`.

    `--option a b` is the same as `--option a --option b`: the option itself is one of `multiple=True`.

    Args:
        many: those options, as `--option`.
        arguments: as of `click.Command`.
    """

    def __init__(self, *arguments: Any, many: tuple[str, ...] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.many = many

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the option before each of its words."""
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, args: list[str]) -> Iterator[str]:
        taking, first = "", False
        for place, word in enumerate(args):
            if word == "--":
                yield from args[place:]
                return
            if word.startswith("-") and word != "-":
                option = word.partition("=")[0]
                taking, first = (option, "=" not in word) if option in self.many else ("", False)
                yield word
            elif taking and not first:
                yield from (taking, word)
            else:
                first = False
                yield word
