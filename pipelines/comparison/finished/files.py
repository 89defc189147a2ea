"""Files looked at before any is measured: their SHA-256, and what is wrong with them."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.dataset.case_reader import Offence
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import shown
from pipelines.files import sha256

#: So many bad files are named one by one.
_MOST_NAMED = 30


def hash_files(files: Sequence[Path], progress: Callable[[int], object]) -> tuple[dict[Path, str], list[Offence]]:
    """Every file's SHA-256, several at a time; and the files that cannot be read.

    Args:
        files: which.
        progress: is told how many more are done.
    """
    hashed, offences = {}, []
    # Reading and hashing leave Python to other threads.
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for file, (digest, problem) in zip(files, pool.map(_hash, files), strict=True):
            if problem is None:
                hashed[file] = digest
            else:
                offences.append(Offence(str(file), problem))
            progress(1)
    return hashed, offences


def refuse(offences: Iterable[Offence]) -> None:
    """End with a line for each bad file, if there are any.

    Raises:
        UserError: there are.
    """
    lines = list(dict.fromkeys(f"{shown(file)}: {reason}" for file, reason in offences))
    if lines:
        more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        raise UserError("\n".join(lines[:_MOST_NAMED] + more))


def _hash(file: Path) -> tuple[str, str | None]:
    if not file.exists():
        return "", "a symbolic link to nothing" if file.is_symlink() else "missing"
    if not file.is_file():
        return "", "is no regular file"
    try:
        return sha256(file), None
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"
