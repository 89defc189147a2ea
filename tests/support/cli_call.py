"""Calls the command line inside the test's own process: as a shell would, without waiting for a new Python."""

import contextlib
import io
import sys
from unittest import mock

from pipelines.cli import main


def call_medloss(*arguments: object) -> tuple[int, str, str]:
    """Call `medloss` with arguments; returns exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["medloss", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()
