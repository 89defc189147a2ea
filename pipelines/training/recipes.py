"""Recipes: settings of a training that go together, by name or in a file."""

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.resources import resource_folder
from pipelines.trust import refuse_code
from pipelines.yaml_text import parse_yaml

#: A recipe holds for any data and any loss.
_OF_THE_RUN = {"manifest", "data_root", "loss", "loss_arguments", "fold", "seed", "cache_dir"}


def shipped_recipes() -> dict[str, Path]:
    """Name to file of the recipes that come along."""
    return {path.stem: path for path in sorted((resource_folder("configs") / "recipes").glob("*.yaml"))}


def recipe_settings(name_or_path: str) -> dict[str, Any]:
    """A recipe's settings: fields of `RunConfig`.

    Args:
        name_or_path: `quick`, `full`, or a YAML file's path.

    Raises:
        UserError: there is none, or it is no mapping.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"recipe: got '{name_or_path}'; expected {', '.join(shipped)}, or a YAML file") from None
    except ValueError as error:
        raise UserError(f"recipe: {path} is {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"recipe: {path} has no settings; expected lines such as `epochs: 20`")
    refuse_code(content, path)
    if own := sorted(_OF_THE_RUN & content.keys()):
        raise UserError(f"recipe: {path} sets {', '.join(own)}, which each run is told by itself; remove it")
    return content
