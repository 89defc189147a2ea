"""Where the files that travel with the packages lie: in the checkout, or inside the installed wheel."""

import difflib
from pathlib import Path

from pipelines.errors import UserError

_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "_shipped"


def resource_folder(name: str) -> Path:
    """The shipped folder `name` (`data_manifests` or `configs`), of the wheel or of the checkout."""
    return (_SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent) / name


def shipped_manifests() -> dict[str, Path]:
    """The shipped manifests: name (without `.yaml`) to path."""
    return {path.stem: path for path in sorted(resource_folder("data_manifests").glob("*.yaml"))}


def manifest_path(name_or_path: str | Path) -> Path:
    """Find a manifest by path, or by the name of a shipped one.

    Args:
        name_or_path: an existing file, or a name such as `phantom`, with or without `.yaml`.

    Raises:
        UserError: neither a file nor a shipped name; names the nearest one.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_manifests()
    name = path.stem if path.suffix in {".yaml", ".yml"} else str(name_or_path)
    if name in shipped and path.parent == Path():
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"shipped manifests: {', '.join(shipped)}"
    raise UserError(f"no manifest '{name_or_path}': neither a file nor a shipped manifest; {hint}")
