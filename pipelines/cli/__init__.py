"""The command `medloss`: its subcommands, options in groups, and errors in one line."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines.utils import DiskFullError, UserError, let_first_rank_report
from pipelines.utils.machine import ignore_foreign_warnings


class SuggestingGroup(click.Group):
    """A group that suggests the nearest subcommand for a misspelt one, as click does from 8.4 on."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the first argument names.

        Raises:
            click.UsageError: there is none; the message names the nearest.
        """
        names = self.list_commands(ctx)
        if args[0] not in names and (near := difflib.get_close_matches(args[0], names, n=1)):
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx)
        return super().resolve_command(ctx, args)


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Options = TypeVar("_Options", bound="DataclassInstance")

#: Groups of options, in the order of the help.
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
        arguments: of `click.Option`.
        group: one of `GROUPS`.
        rare: listed by `--help-all` only.
        named: of `click.Option`.
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
            from pipelines.cli.settings import keys_without_option  # not above, for the time that pydantic takes

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


def take_options(kind: type[_Options], options: dict[str, Any]) -> _Options:
    """Move the options that are fields of a dataclass into one.

    Args:
        kind: the dataclass.
        options: of a command; loses those options.
    """
    return kind(**{field.name: options.pop(field.name) for field in fields(kind)})


def note_typed(ctx: click.Context, flag: str, words: str) -> None:
    """Record the words that the user wrote in place of a flag, for messages."""
    ctx.meta.setdefault(_TYPED, {})[flag] = words


def typed(flag: str) -> str:
    """The flag as the user wrote it: `--lr`, or `--set lr` in its place."""
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


# The command

# Not in `main`, which the processes of a pool never call; they do import this module.
ignore_foreign_warnings()

# Subcommands are imported when they are called, so that `medloss --help` does not wait for torch.
COMMANDS = {
    "losses": ("pipelines.cli.losses:losses", "List the losses, or show one."),
    "manifest": ("pipelines.cli.data:manifest", "Write a manifest for a folder of images and labels."),
    "check": ("pipelines.cli.data:check", "Read a whole data set, and list every bad file."),
    "train": ("pipelines.cli.train_predict_evaluate:train", "Train one network with one loss."),
    "predict": ("pipelines.cli.train_predict_evaluate:predict", "Predict new images by a trained network."),
    "evaluate": (
        "pipelines.cli.train_predict_evaluate:evaluate",
        "Compare predictions with labels: metrics per class and case.",
    ),
    "compare": ("pipelines.cli.compare:compare", "Train every loss on a data set, and compare them."),
    "worker": ("pipelines.cli.compare:worker", "Train the waiting runs of a comparison's folder."),
    "status": ("pipelines.cli.compare:status", "Show how far a comparison is."),
    "report": ("pipelines.cli.report:report", "Report which loss is best, and whether the difference is real."),
    "nnunet": ("pipelines.cli.data:nnunet", "Train nnU-Net with our losses; its data sets and checkpoints."),
    "explain": ("pipelines.cli.losses:explain", "Draw the negative gradient of a loss on your own case."),
    "gallery": ("pipelines.cli.losses:gallery", "Write the gallery of losses: a page and figures per loss."),
}


class _LazyGroup(SuggestingGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="medloss")
def medloss() -> None:
    """Losses for medical image segmentation: train them on your data, and learn which is best."""


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, not in a traceback."""
    try:
        medloss.main(standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        let_first_rank_report()
        error.show()
        sys.exit(error.exit_code)
    except DiskFullError as error:
        let_first_rank_report()
        try:
            click.echo(f"error: {error}", err=True)
        except OSError:
            # A worker's log may be on that disk: an output that Python cannot flush would change the exit code.
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except (UserError, ValueError) as error:
        let_first_rank_report()
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
