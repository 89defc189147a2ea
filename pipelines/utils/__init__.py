"""Shared by all other packages: files, locks, text, processes, figures, and errors for users."""

import os
import time

#: Seconds. torchrun checks ten times per second whether a process has ended, and then ends the others.
_HEAD_START_S = 5.0


class UserError(Exception):
    """Invalid input: the message says in one line what was given, what was expected and what to do.

    The command line prints it as `error: ...` and exits with code 2.
    """


class DiskFullError(UserError):
    """The disk of a folder is full; the same command resumes the work once there is space."""

    #: Exit code of the process (`EX_IOERR`), by which a comparison recognises why its worker ended.
    exit_code = 74

    def __init__(self, where: object) -> None:
        super().__init__(f"no space left in {where}: free some, and run the same command again to resume")


class TrainingError(Exception):
    """A run failed during training; the message says in one line what happened and in which cases."""


def let_first_rank_report() -> None:
    """Wait a moment in all processes of `torchrun` but the first, so that an error of all is reported once.

    By then the first has reported it, and `torchrun` has ended the others.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_HEAD_START_S)
