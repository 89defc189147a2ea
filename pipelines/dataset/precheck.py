"""The check of a data set that every training begins with."""

from pathlib import Path

import click

from pipelines.dataset.check import check_data
from pipelines.dataset.data_root import resolve_data
from pipelines.dataset.manifest import load_manifest
from pipelines.errors import UserError

_MOST_SHOWN = 10


def refuse_bad_data(manifest: str, data_root: str | None) -> None:
    """Read the whole data set, and refuse to train on it if any file is bad.

    Offenders, and a note on what is accepted with one, go to stderr.

    Args:
        manifest: name or path.
        data_root: the folder of its files; None as in `resolve_data`.

    Raises:
        UserError: there are bad files.
    """
    loaded = load_manifest(manifest)
    report = check_data(loaded, resolve_data(loaded, None if data_root is None else Path(data_root)))
    if report.note is not None:
        click.echo(f"note: {report.note}", err=True)
    if report.ok:
        return
    for offence in report.offences[:_MOST_SHOWN]:
        click.echo(f"{offence.file}: {offence.reason}", err=True)
    more = len(report.offences) - _MOST_SHOWN
    if more > 0:
        click.echo(f"... and {more} more: `medloss check` names them all", err=True)
    files = len({offence.file for offence in report.offences})
    raise UserError(
        f"'{loaded.name}' has {'1 bad file' if files == 1 else f'{files} bad files'}: mend or exclude them, or pass "
        "--no-check to train all the same"
    )
