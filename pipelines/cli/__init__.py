"""The command `medloss`: its subcommands, options in groups, and errors in one line."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from pipelines.utils import DiskFullError, UserError, let_first_rank_report
from pipelines.utils.machine import ignore_foreign_warnings

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

#: Groups of options, in the order of the help.
GROUPS = (
    "Run", "Input", "Losses and runs", "Data", "Verdict", "Forecast and search", "Training recipe", "Where it runs",
    "Tracking", "Output", "Help",
)  # fmt: skip
RUN, INPUT, RUNS, DATA, VERDICT, PLANNING, RECIPE, PLACE, TRACKING, OUTPUT, HELP = GROUPS

#: Widest first column, characters; longer options have their text in the next line.
_FIRST_COLUMN = 26
_SHOW_ALL = f"{__name__}.show_all"
_TYPED = f"{__name__}.typed"


class GroupedOption(click.Option):
    """An option of one of the `GROUPS`; a rare one is listed by `--help-all` only."""

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
        for shown in sorted(options, key=lambda param: getattr(param, "rare", False)):
            if getattr(shown, "rare", False) <= shows_all and (record := shown.get_help_record(ctx)) is not None:
                sections[getattr(shown, "group", HELP)].append(record)
        firsts = [first for records in sections.values() for first, _ in records]
        width = max(len(first) for first in firsts if len(first) <= _FIRST_COLUMN)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl([(first.ljust(width), text) for first, text in records], col_max=width)
        if shows_all and any(param.name == "settings" for param in self.params):
            from pipelines.cli.settings import keys_without_option  # not above, for the time that pydantic takes

            with formatter.section("Keys of --set"):
                formatter.write_text(
                    "Options of the training recipe: --flip-axes LIST is --set flip_axes=LIST. --schedule is "
                    "loss_schedule. --slurm-time TIME is --set slurm.time=TIME, --nnunet-planner CLASS is "
                    "--set nnunet.planner=CLASS."
                )
                formatter.write_paragraph()
                formatter.write_text(f"Without an option: {', '.join(keys_without_option())}.")


def option(flags: str, group: str, metavar: str | None, text: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """`click.option` of a group, with its default in the help.

    `flags` has the flag, and the parameter's name if it is another, such as `--lr learning_rate`; `metavar` is None for
    a switch.
    """
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*flags.split(), cls=GroupedOption, group=group, metavar=metavar, help=text, **attributes)


def combined(*decorators: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Several options as one decorator."""
    return lambda command: reduce(lambda decorated, decorate: decorate(decorated), reversed(decorators), command)


def take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Move some of a command's options into a dict of their own."""
    return {name: options.pop(name) for name in names}


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
    "--help-all", HELP, None, "Show every option and every key of --set, and exit.",
    is_flag=True, is_eager=True, expose_value=False, callback=_print_all,
)  # fmt: skip

# Not in `main`, which the processes of a pool never call; they do import this module.
ignore_foreign_warnings()

# Subcommands are imported when they are called, so that `medloss --help` does not wait for torch.
COMMANDS = {
    "losses": ("pipelines.cli.losses", "List the losses, or show one."),
    "manifest": ("pipelines.cli.data", "Write a manifest for a folder of images and labels."),
    "check": ("pipelines.cli.data", "Read a whole data set, and list every bad file."),
    "train": ("pipelines.cli.train", "Train one network with one loss."),
    "predict": ("pipelines.cli.predictions", "Predict new images by a trained network."),
    "evaluate": ("pipelines.cli.predictions", "Compare predictions with labels: metrics per class and case."),
    "compare": ("pipelines.cli.compare", "Train every loss on a data set, and compare them."),
    "worker": ("pipelines.cli.compare", "Train the waiting runs of a comparison's folder."),
    "status": ("pipelines.cli.compare", "Show how far a comparison is."),
    "report": ("pipelines.cli.report", "Report which loss is best, and whether the difference is real."),
    "nnunet": ("pipelines.cli.data", "Train nnU-Net with our losses; its data sets and checkpoints."),
    "explain": ("pipelines.cli.losses", "Draw the negative gradient of a loss on your own case."),
    "gallery": ("pipelines.cli.losses", "Write the gallery of losses: a page and figures per loss."),
    "doctor": ("pipelines.cli.doctor", "Show versions and machine, and what is slow here and why."),
}

#: What `medloss` alone prints.
FIRST_STEPS = """\
Which loss should I train my segmentation network with, and is the difference real?

I have images with labels:
  medloss manifest FOLDER --out mine.yaml
  medloss check mine.yaml --data-root FOLDER
  medloss compare mine.yaml --data-root FOLDER --dry-run --out results/mine
  medloss compare mine.yaml --data-root FOLDER --out results/mine

I have predictions, of networks trained elsewhere:
  medloss report --predictions a=FOLDER b=FOLDER --labels FOLDER --out report

I write my own training:
  medloss losses         lists the losses, and medloss losses dice describes one
  loss = medloss.create_loss("focal_tversky", softmax=True, to_onehot_y=True)
  value = loss(logits, label)    with logits [B, C, *spatial] and label [B, 1, *spatial]

I only want to see it work, without data:
  medloss compare phantom --losses dice,focal --reference dice --epochs 5 --out results/first

medloss doctor shows what is slow on this machine and why; medloss --help lists all commands.
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    commands={name: click.Command(name) for name in COMMANDS},  # click suggests the nearest of these names
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="medloss")
@click.pass_context
def medloss(ctx: click.Context) -> None:
    """Losses for medical image segmentation: train them on your data, and learn which is best.

    Without a command: what to do first.
    """
    if ctx.invoked_subcommand is None:
        click.echo(FIRST_STEPS, nl=False)


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, not in a traceback."""
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        # rich takes this variable, which Jupyter and CI set for colours, for a terminal whose cursor it may move.
        os.environ.pop("FORCE_COLOR", None)
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
    except (UserError, ValueError) as error:
        let_first_rank_report()
        code = error.exit_code if isinstance(error, DiskFullError) else 2
        try:
            click.echo(f"error: {error}", err=True)
        except OSError:
            # A worker's log may be on a full disk: an output that Python cannot flush would change the exit code.
            os._exit(code)
        sys.exit(code)
