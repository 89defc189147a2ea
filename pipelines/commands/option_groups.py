"""Options in named groups: `--help` lists the usual ones, `--help-all` every one."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The groups, in the order of the help.
RUNS = "Losses and runs"
RUN = "Run"
INPUT = "Input"
DATA = "Data"
VERDICT = "Verdict"
PLANNING = "Forecast and search"
RECIPE = "Training recipe"
PLACE = "Where it runs"
TRACKING = "Tracking"
OUTPUT = "Output"
HELP = "Help"
GROUPS = (RUN, INPUT, RUNS, DATA, VERDICT, PLANNING, RECIPE, PLACE, TRACKING, OUTPUT, HELP)

#: Widest first column, characters; longer options have their text in the next line.
_FIRST_COLUMN = 26
_SHOW_ALL = f"{__name__}.show_all"
_TYPED = f"{__name__}.typed"


class GroupedOption(click.Option):
    """An option of a group.

    Args:
        arguments: as of `click.Option`.
        group: one of `GROUPS`.
        rare: only `--help-all` lists it.
        named: as of `click.Option`.
    """

    def __init__(self, *arguments: Any, group: str = HELP, rare: bool = False, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.group = group
        self.rare = rare


class GroupedCommand(click.Command):
    """A command whose help lists its options by group, in columns of one width."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group."""
        shows_all = ctx.meta.get(_SHOW_ALL, False)
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for rare in (False, True) if shows_all else (False,):
            for shown in (option for option in options if getattr(option, "rare", False) == rare):
                if (record := shown.get_help_record(ctx)) is not None:
                    sections[getattr(shown, "group", HELP)].append(record)
        firsts = [first for records in sections.values() for first, _ in records]
        width = max(len(first) for first in firsts if len(first) <= _FIRST_COLUMN)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl([(first.ljust(width), text) for first, text in records], col_max=width)
        if shows_all:
            self.format_settings(ctx, formatter)

    def format_settings(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the keys of `--set`, if the command has it."""
        if any(param.name == "settings" for param in self.params):
            from pipelines.commands.settings import keys_without_option  # not above, for the time that pydantic takes

            with formatter.section("Keys of --set"):
                formatter.write_text(
                    "Options of the training recipe: --flip-axes LIST is --set flip_axes=LIST. --schedule is "
                    "loss_schedule. --slurm-time TIME is --set slurm.time=TIME, --nnunet-planner CLASS is "
                    "--set nnunet.planner=CLASS."
                )
                formatter.write_paragraph()
                formatter.write_text(f"Without an option: {', '.join(keys_without_option())}.")


def option(*declarations: str, group: str, rare: bool = False, **attributes: Any) -> Callable[[_Command], _Command]:
    """`click.option` of a group; see `GroupedOption`."""
    return click.option(*declarations, cls=GroupedOption, group=group, rare=rare, **attributes)


def note_typed(ctx: click.Context, flag: str, words: str) -> None:
    """Keep that the user wrote `words` in place of a flag, for messages about it."""
    ctx.meta.setdefault(_TYPED, {})[flag] = words


def typed(flag: str) -> str:
    """The flag as the user wrote it: `--set lr` where that stands in place of `--lr`."""
    ctx = click.get_current_context(silent=True)
    return str(ctx.meta.get(_TYPED, {}).get(flag, flag)) if ctx else flag


def _print_all(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        ctx.meta[_SHOW_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


#: For commands with rare options.
help_all_option = option(
    "--help-all",
    group=HELP,
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_all,
    help="Show every option and every key of --set, and exit.",
)
