"""What all other packages share: files, locks, text, processes, figures; and the errors that people read."""

import os
import time

#: Seconds; torchrun looks ten times a second whether a process has ended, and ends the others then.
_HEAD_START_S = 5.0


class UserError(Exception):
    """Bad input from a person: the message says in one line what came, what was expected and what to do.

    The command line prints it as `error: ...` and exits with code 2.
    """


class DiskFullError(UserError):
    """There is no space left for what a command writes; nothing has failed that the same command would not resume.

    Args:
        where: the folder that is written to.
    """

    #: Of the process: that of `EX_IOERR`, by which a comparison knows why its worker has ended.
    exit_code = 74

    def __init__(self, where: object) -> None:
        super().__init__(f"no space left in {where}: free some, and run the same command again to resume")


class TrainingError(Exception):
    """A run that went wrong while it trained; the message says in one line what happened, and to which cases."""


def let_the_first_rank_tell() -> None:
    """Wait a moment, if this process is another than the first of those that `torchrun` started.

    Where all of them fail alike, the first has told it by then, and `torchrun` has ended this one: so it is told once.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_HEAD_START_S)
