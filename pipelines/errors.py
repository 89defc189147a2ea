"""The one error type that a person, not a programmer, reads."""


class UserError(Exception):
    """Bad input from a person: the message says in one line what came, what was expected and what to do.

    The command line prints it as `error: ...` and exits with code 2.
    """


class TrainingError(Exception):
    """A run that went wrong while it trained; the message says in one line what happened, and to which cases."""
