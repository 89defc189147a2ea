"""Selects the kernel set for a tensor."""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from types import ModuleType

import torch

from medloss.errors import InputError
from medloss.kernels import self_check

#: Every kernel set.
NAMES = ("triton", "numba", "eager")
#: Those selected by default on a device, the fastest first; elsewhere plain torch.
_PREFERRED = {"cuda": ("triton", "eager"), "cpu": ("numba", "eager")}
#: The environment variable that forces one; `auto` or empty for none.
VARIABLE = "MEDLOSS_KERNELS"

_forced: str | None = None


def use(name: str) -> AbstractContextManager[None]:
    """Force a kernel set from now on; in a `with` statement, until its end.

    Args:
        name: `eager`, `numba`, `triton`, or `auto` for the best that fits the tensor. A forced set is not checked:
            its results are used and its errors raised as they are.

    Raises:
        InputError: an unknown name, a set whose package is missing.

    Example:
        >>> import medloss
        >>> with medloss.kernels.use("eager"):
        ...     medloss.kernels.in_use()
        'eager'
    """
    global _forced
    before, _forced = _forced, _checked(name, "kernels")
    return _restoring(before)


def in_use(device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The name of the set that is used for logits of a type on a device (`cpu` or `cuda`).

    A set that is not forced is checked when work is first given to it. Where it differs from plain torch or fails, a
    warning reports that, and plain torch does this work from then on; the name is then followed by this work, such as
    `numba, but eager for softmax sums`. `check` makes these checks at once.

    Raises:
        InputError: the forced set cannot work on this device or type.
    """
    requested = _requested()
    name = _best(requested, device, dtype)
    failed = self_check.failed(name, device, dtype) if requested == "auto" else []
    return f"{name}, but eager for {', '.join(failed)}" if failed else name


def check(device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """`in_use`, after every check that has not been made yet.

    With an empty cache on the disk it compiles every kernel, which takes a minute on a CPU. Only the work of losses
    that are imported is known, such as all those of `medloss.LOSSES`.

    Raises:
        InputError: as `in_use`.
    """
    for work in self_check.works():
        choose(device, dtype, work)
    return in_use(device, dtype)


def choose(device: str, dtype: torch.dtype, work: str, index: int | None = None) -> str:
    """`in_use`, for operators: plain torch where the set fails the check of this work.

    Args:
        device: the type of the device.
        dtype: of the logits.
        work: the kind of work, as `self_check.register` knows it.
        index: of the device; None for the only or current one.
    """
    requested = _requested()
    name = _best(requested, device, dtype)
    if requested == "auto" and name != "eager":
        return name if self_check.passes(self_check.Key(name, device, index, dtype, work)) else "eager"
    return name


def direct(logits: torch.Tensor, work: str) -> bool:
    """Whether numba's functions are selected and can be called as they are: nothing traces, so no operator is needed.

    Args:
        logits: the tensor.
        work: as in `choose`.
    """
    if torch.compiler.is_compiling() or type(logits) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not torch.jit.is_tracing() and choose(logits.device.type, logits.dtype, work, logits.device.index) == "numba"


# Torch's compiler takes the answer at the time of tracing. `torch.compiler.assume_constant_result` does this too, but
# imports the compiler, which takes as long as the whole of torch.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _requested() -> str:
    variable = os.environ.get(VARIABLE)
    return self_check.kernels_under_check() or _forced or (_checked(variable, VARIABLE) if variable else "auto")


@lru_cache
def _best(forced: str, device: str, dtype: torch.dtype) -> str:
    if forced != "auto":
        if not module(forced).supports(device, dtype):
            raise InputError(f"kernels: '{forced}' was asked for, and cannot work on {dtype} on {device}")
        return forced
    names = _PREFERRED.get(device, ("eager",))
    return next(name for name in names if _importable(name) and module(name).preferred(device, dtype))


def available() -> list[str]:
    """The names of the sets whose packages are installed."""
    return [name for name in NAMES if _installed(name)]


@lru_cache
def module(name: str) -> ModuleType:
    """The module of a kernel set."""
    return importlib.import_module(f"medloss.kernels.{name}")


@lru_cache
def _installed(name: str) -> bool:
    return name == "eager" or importlib.util.find_spec(name) is not None


def _importable(name: str) -> bool:
    if not _installed(name):
        return False
    try:
        module(name)
    except ImportError as error:
        # numba, for example, refuses versions of NumPy that are newer than itself.
        warnings.warn(f"kernels: '{name}' is installed, and cannot be imported: {error}", stacklevel=2)
        return False
    return True


def _checked(name: str, argument: str) -> str:
    if name != "auto" and name not in NAMES:
        raise InputError(f"{argument}: got '{name}'; expected one of auto, {', '.join(NAMES)}")
    if name != "auto" and not _installed(name):
        raise InputError(f"{argument}: '{name}' is not installed: pip install {name}")
    return name


@contextmanager
def _restoring(before: str | None) -> Iterator[None]:
    global _forced
    try:
        yield
    finally:
        _forced = before
