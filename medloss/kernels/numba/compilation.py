"""How functions are compiled and cached on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

#: Sums may be regrouped, which vector registers need; NaN and infinities stay what they are.
OPTIONS = {"error_model": "numpy", "fastmath": {"reassoc", "contract"}, "nogil": True, "no_cpython_wrapper": True}
#: Sums may not.
EXACT = OPTIONS | {"fastmath": {"contract"}}


def compiled(function: Callable[..., Any]) -> Any:
    """A function that Python calls, cached on disk where a folder is writable."""
    options = OPTIONS | {"no_cpython_wrapper": False}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's is writable: it is compiled in each process.
        return numba.njit(**options)(function)
    # numba compiles again when the function's file has changed. The functions and constants that it calls are
    # compiled into it: they may have changed too, in an editable installation after a `git pull`.
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


def compiled_for_c(signature: Any, function: Callable[..., Any]) -> Any:
    """A function that C calls at its `address`, without the interpreter; cached likewise."""
    options = {"error_model": "numpy", "fastmath": OPTIONS["fastmath"]}
    callback: Any = CFunc(function, normalize_signature(signature), {}, options)
    try:
        callback.enable_caching()
        callback._cache._cache_file._source_stamp = _STAMP
    except RuntimeError:
        pass  # no folder is writable, as above
    callback.compile()
    return callback


def source_stamp(folder: Path) -> tuple[float, int]:
    """The newest time at which a source in a folder was changed, in seconds, and the size of all, in bytes."""
    states = [file.stat() for file in folder.rglob("*.py")]
    return max((state.st_mtime for state in states), default=0.0), sum(state.st_size for state in states)


_STAMP = source_stamp(Path(__file__).parents[1])
