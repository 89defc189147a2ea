"""A kernel set is checked before its first use: a small case, computed by the set and by plain torch.

Each kind of work registers a case. It is computed once per process, kernel set, device, type and work, in a thread of
its own: there no mode is active that the caller has switched on (a tracer's, autocast, inference mode, a default
device), and nothing that the case does is recorded.
"""

import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medloss.kernels.sum_spec import sum_type

#: Tensors of a small case on a device, in a type, computed by the set of `kernels_under_check`.
Case = Callable[[torch.device, torch.dtype], Sequence[Tensor]]

# Largest error relative to the largest value, by the type of the result.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-8}

_cases: dict[str, tuple[Case, Case]] = {}


class Key(NamedTuple):
    """What a check holds for; `number` is the device's, None for the only or current one."""

    kernels: str
    device: str
    number: int | None
    dtype: torch.dtype
    work: str

    def __str__(self) -> str:
        where = self.device if self.number is None else f"{self.device}:{self.number}"
        return f"'{self.kernels}' for {self.work}, {self.dtype} on {where}"


class _Current(threading.local):
    kernels: str | None = None


_current = _Current()
_passed: dict[Key, bool] = {}
_postponed: set[Key] = set()
_lock = threading.Lock()


def _after_fork() -> None:
    # Another thread may have held it.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def register(work: str, case: Case, reference: Case | None = None) -> None:
    """Define the small case of a kind of work.

    Args:
        work: its name, as `dispatch.choose` gets it.
        case: computes the case by the public functions, which select the set that is being checked. They do so in the
            calling thread: in another one, a selection would wait for this check.
        reference: what is expected; None for the case computed by plain torch.
    """
    _cases[work] = case, reference or case


def small_case(
    mode: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of two items and three classes, an index map, a mask and weights, all without random numbers."""

    def wave(channels: int, step: float) -> Tensor:
        numbers = torch.arange(2 * channels * math.prod(shape), dtype=torch.float64, device="cpu")
        return (step * numbers).sin().view(2, channels, *shape)

    logits, target = 4 * wave(3, 0.37), (1.5 * (1 + wave(1, 1.3))).long().clamp(max=2)
    logits = logits.sigmoid().clamp(0.01, 0.99) if mode == "probabilities" else logits
    weight = (1 + wave(1, 0.7)).to(sum_type(logits.to(dtype)))
    return logits.to(device, dtype), target.to(device), (wave(1, 0.11) > -0.5).to(device), weight.to(device)


def kernels_under_check() -> str | None:
    """The set that the calling thread is to use, when it computes a case."""
    return _current.kernels


def passes(key: Key) -> bool:
    """Whether a set computes its case right; where not, a warning has reported it.

    While a CUDA graph is captured nothing can be checked: False then, with a warning, and checked at a later call.

    Raises:
        torch.OutOfMemoryError: no memory for a few thousand numbers; checked at a later call.
    """
    passed = _passed.get(key)
    return passed if passed is not None else _first_use(key)


def works() -> tuple[str, ...]:
    """The kinds of work with a case; the losses' modules register them."""
    return tuple(_cases)


def failed(kernels: str, device: str, dtype: torch.dtype) -> list[str]:
    """The kinds of work of which a set has failed the check so far, on any device of a type."""
    # A copy: another thread may add to it.
    missed = (key for key, passed in list(_passed.items()) if not passed)
    return sorted({key.work for key in missed if (key.kernels, key.device, key.dtype) == (kernels, device, dtype)})


def _first_use(key: Key) -> bool:
    if key.device == "cuda":
        if not torch.cuda.is_available():
            return False  # A tensor without data, of a tracer.
        if torch.cuda.is_current_stream_capturing():
            if key not in _postponed:
                _postponed.add(key)
                warnings.warn(
                    f"kernels: {key} is not checked yet, which a CUDA graph's capture does not allow: plain torch is "
                    "captured instead; run the loss once before the capture",
                    stacklevel=2,
                )
            return False
    fault = ""
    with _lock:
        if key not in _passed:
            fault = _in_a_thread(key)
            _passed[key] = not fault
    if fault:
        warnings.warn(
            f"kernels: {key} failed its check, and plain torch is used instead: {fault}; please report this line and "
            f"the output of `python -m torch.utils.collect_env` (MEDLOSS_KERNELS={key.kernels} uses it unchecked)",
            stacklevel=2,
        )
    return _passed[key]


def _in_a_thread(key: Key) -> str:
    found: list[str | BaseException] = []

    def work() -> None:
        try:
            found.append(_fault(key))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="medloss-check")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _fault(key: Key) -> str:
    """How the set differs from plain torch, in a phrase; empty if it does not."""
    case, reference = _cases[key.work]
    device = torch.device(key.device) if key.number is None else torch.device(key.device, key.number)
    with torch.cuda.device(device) if key.device == "cuda" else torch.device(device):
        _current.kernels = "eager"
        expected = reference(device, key.dtype)
        _current.kernels = key.kernels
        try:
            found = case(device, key.dtype)
            return next(filter(None, map(_difference, found, expected)), "")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[0]}"[:300]


def _difference(found: Tensor, expected: Tensor) -> str:
    if (found.shape, found.dtype, found.device) != (expected.shape, expected.dtype, expected.device):
        kinds = (f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (found, expected))
        return "got {}, expected {}".format(*kinds)
    error, size = float((found - expected).abs().max()), float(expected.abs().max())
    # Not `>`, which is false for NaN.
    return "" if error <= _TOLERANCE[found.dtype] * size else f"a value differs by {error:.3g}, of {size:.3g}"
