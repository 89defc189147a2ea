"""How functions are compiled and cached on disk."""

from collections.abc import Callable
from typing import Any

import numba

#: Sums may be regrouped, which vector registers need; NaN and infinities stay what they are.
OPTIONS = {"error_model": "numpy", "fastmath": {"reassoc", "contract"}, "nogil": True, "no_cpython_wrapper": True}
#: Sums may not.
EXACT = OPTIONS | {"fastmath": {"contract"}}


def compiled(function: Callable[..., Any]) -> Any:
    """A function that Python calls, cached on disk where a folder is writable."""
    options = OPTIONS | {"no_cpython_wrapper": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's is writable: it is compiled in each process.
        return numba.njit(**options)(function)
