"""The command `medloss`: finds the subcommand, and turns errors for people into one line and exit code 2."""

import difflib
import importlib
import sys

import click

from pipelines.errors import UserError, let_the_first_rank_tell

# Subcommands are imported when they are called, so that `medloss --help` does not wait for torch.
COMMANDS = {
    "losses": ("pipelines.commands.losses:losses", "List the losses, or show one."),
    "manifest": ("pipelines.commands.data:manifest", "Write a manifest for a folder of images and labels."),
    "check": ("pipelines.commands.data:check", "Read a whole data set, and name every bad file."),
    "train": ("pipelines.commands.training:train", "Train one network with one loss."),
    "predict": ("pipelines.commands.prediction:predict", "Predict new images by a trained network."),
    "evaluate": ("pipelines.commands.evaluation:evaluate", "Measure predictions against labels."),
    "compare": ("pipelines.commands.comparison:compare", "Train every loss on a data set, and compare them."),
    "worker": ("pipelines.commands.comparison:worker", "Work on the waiting runs of a comparison's folder."),
    "status": ("pipelines.commands.comparison:status", "Show how far a comparison is."),
    "report": ("pipelines.commands.report:report", "Say which loss is best, and whether the difference is real."),
    "nnunet": ("pipelines.commands.nnunet:nnunet", "Train nnU-Net with our losses; its data sets and checkpoints."),
    "explain": ("pipelines.commands.explain:explain", "Draw where a loss pushes the prediction of your own case."),
    "gallery": ("pipelines.commands.explain:gallery", "Write the gallery of losses: a page and pictures each."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (near := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="medloss")
def medloss() -> None:
    """Losses for medical image segmentation: train them on your data, and learn which is best."""


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, never in a traceback."""
    try:
        medloss.main(standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        let_the_first_rank_tell()
        error.show()
        sys.exit(error.exit_code)
    except (UserError, ValueError) as error:
        let_the_first_rank_tell()
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
