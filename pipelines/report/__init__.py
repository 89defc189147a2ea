"""The report of a comparison: one page that shows which loss is best, how certain that is, and on what evidence."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click

from pipelines.utils import UserError
from pipelines.utils.files import read_json
from pipelines.utils.locks import held_lock

#: The lock file stays in the folder and marks it as a report.
LOCK = "report.lock"
#: Keys of `analysis.json`, which mark reports of earlier versions, without a lock file.
_ANALYSIS = {"title", "notes", "facts"}


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Reserve a folder for a report while the block runs; wait if another process is writing a report there.

    If the block fails before it has written anything, a folder that was created for it is removed.

    Args:
        out: the folder; it is created if needed.

    Raises:
        UserError: `out` is not a folder, holds something other than a report, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is not a folder; name another one")
    if out.is_dir() and not _is_free(out):
        raise UserError(f"--out: {out} is not empty and holds no report; name another folder")
    made = not out.exists()
    with ExitStack() as stack:

        def held(patience: float) -> bool:
            return stack.enter_context(held_lock(out / LOCK, patience, wait=lambda line: click.echo(line, err=True)))

        try:
            if not held(0.3):
                click.echo(f"waiting for another process that is writing the report in {out}", err=True)
                held(math.inf)
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
        try:
            yield
        except BaseException:
            if made and [path.name for path in out.iterdir()] == [LOCK]:
                with suppress(OSError):
                    (out / LOCK).unlink()
                    out.rmdir()
            raise


def _is_free(out: Path) -> bool:
    names = {path.name for path in out.iterdir()}
    if not names or LOCK in names:
        return True
    try:
        analysis = read_json(out / "analysis.json")
    except ValueError:
        return False
    return isinstance(analysis, dict) and analysis.keys() >= _ANALYSIS
