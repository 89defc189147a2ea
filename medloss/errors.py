"""The error that bad input raises."""


class InputError(ValueError):
    """Bad input to a loss or a map: names the argument, what came, what was expected and what to do."""
