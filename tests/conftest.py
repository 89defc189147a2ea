"""Fixtures that several test files share, and what `make test` leaves to `make test-all`."""

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU Triton's kernels are run by its interpreter, which has to be asked for before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from loss_inputs import EVERYTHING, MODES, modes_of

import medloss
from medloss.kernels import dispatch

hypothesis.settings.register_profile("few", max_examples=20, deadline=None)
hypothesis.settings.register_profile("many", max_examples=200, deadline=None)
hypothesis.settings.load_profile("many" if EVERYTHING else "few")

_LEFT_OUT = pytest.StashKey[int]()

KERNEL_SETS = [name for name in medloss.kernels.available() if dispatch.module(name).supports("cpu", torch.float64)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The contract holds over every kernel set of the machine."""
    if metafunc.definition.path.stem == "test_contract":
        metafunc.fixturenames.append("kernel_set")
        metafunc.parametrize("kernel_set", KERNEL_SETS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In parallel, a file's tests stay in one process, for their fixtures; the contract's are shared out.

    A test of the contract runs over all kernel sets in the same process, which then computes its references once.

    The interpreter takes some half an hour for the whole contract: by default it has a loss for each kind of sum.
    """
    items[:] = [item for item in items if _has_meaning(item)]
    if not EVERYTHING and os.environ.get("TRITON_INTERPRET") == "1":
        left_out = [item for item in items if _parameter(item, "kernel_set") == "triton" and not _interpreted(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    if item.path.stem != "test_contract":
        return str(item.path)  # names of files repeat themselves in other folders
    parameters = {name: value for name, value in item.callspec.params.items() if name != "kernel_set"}  # type: ignore[attr-defined]
    return f"{item.originalname}{sorted(map(str, parameters.values()))}"  # type: ignore[attr-defined]


def _has_meaning(item: pytest.Item) -> bool:
    name, mode = _parameter(item, "name"), _parameter(item, "mode")
    return name not in medloss.LOSSES or mode not in MODES or mode in modes_of(name)


def _interpreted(item: pytest.Item) -> bool:
    losses = (None, "focal", "sensitivity_specificity", "exponential_logarithmic")
    # Large volumes take minutes per loss; and the kernels see rows of voxels, whatever the axes and what is drawn.
    return (
        _parameter(item, "name") in (losses[:2] if "large_volumes" in item.name else losses)
        and _parameter(item, "dims") in (None, 3)
        and _parameter(item, "structured") in (None, True)
    )


def _parameter(item: pytest.Item, name: str) -> Any:
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get(name)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what is left out, for the summary."""
    if items:
        stash = items[0].config.stash
        stash[_LEFT_OUT] = stash.get(_LEFT_OUT, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the count from a worker process to the one that writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take that count: all workers collect the same tests."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Report at the end how many tests did not run; skipped ones are listed with their reasons."""
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} tests were left out of this run: `make test-all` runs them, too")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No test brings anything to a server of the user's, nor to the store that an earlier test has named to MLflow."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Force the kernel set that the test's parameter names, while it runs."""
    name = _parameter(item, "kernel_set")
    if not name:
        yield
        return
    # Triton's interpreter works out both branches of a selection, and NumPy warns of the one that is not taken.
    with medloss.kernels.use(name), np.errstate(all="ignore" if name == "triton" else None):
        assert medloss.kernels.in_use() == name
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The tests run in parallel processes: threads of their own would fight over the cores.
    torch.set_num_threads(1)
