"""The error that bad input raises."""


class InputError(ValueError):
    """Bad input to a loss or a map: names the argument, what was given, what was expected and what to do."""
