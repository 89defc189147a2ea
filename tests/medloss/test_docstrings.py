"""Every example in the losses' docstrings runs, and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import medloss

MODULES = ["medloss", *(module.name for module in pkgutil.walk_packages(medloss.__path__, "medloss."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_are_documented() -> None:
    for name in dir(medloss):
        found = getattr(medloss, name)
        if not name.startswith("_") and callable(found):
            assert found.__doc__, f"medloss.{name} has no docstring"
