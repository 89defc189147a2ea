"""Packages whose exports are imported when the first of them is used (PEP 562), so that `import` takes no time."""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are those of its module `exports`.

    Type checkers see none of this: for them the package has `if TYPE_CHECKING: from package.exports import *`.

    Args:
        package: its name.
    """

    def exported() -> dict[str, Any]:
        exports = vars(importlib.import_module(f"{package}.exports"))
        names = vars(sys.modules[package])
        # Kept in the package: this function is called once.
        names.update({name: value for name, value in exports.items() if not name.startswith("_")})
        return names

    def get(name: str) -> Any:
        if name == "__all__":
            return [name for name in exported() if not name.startswith("_")]
        # Python and its tools ask every module for names such as __wrapped__.
        if name.startswith("_") or name not in exported():
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return vars(sys.modules[package])[name]

    return get, lambda: sorted(exported())
