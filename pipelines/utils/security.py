"""Untrusted files are read but never run: those that would evaluate or import something are refused."""

from collections.abc import Iterator
from typing import Any

import yaml

from medloss.expression import parse_expression
from pipelines.utils import UserError

#: Number of values that YAML's aliases may add to the written ones. Thousands of cases that share a few fields are far
#: below; nine lists of nine aliases each, in 442 bytes, are 9^9.
_MAX_ADDED = 100_000


def parse_yaml(text: str) -> Any:
    """The content of a YAML text: mappings, lists and plain values.

    Raises:
        ValueError: it is not valid YAML, or its aliases expand to too many values; the message begins with
            `not valid YAML` or `refused`.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        sizes: dict[int, int | None] = {}
        added = _expanded_size(root, sizes) - len(sizes)
        if added <= _MAX_ADDED:
            return loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:200]}") from None
    raise ValueError(
        f"refused: its aliases (*name) expand {len(sizes)} values to {added + len(sizes):.3g}; expected at most "
        f"{_MAX_ADDED} more than are written"
    )


def _expanded_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Number of values in a node if each alias were a copy; `sizes` has the nodes seen, None for those around it."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise ValueError("an alias (*name) is inside the value that it names")
        return known
    sizes[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    size = sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return size


#: Packages whose losses are imported without --trust.
ALLOWED = ("medloss", "monai", "torch")


def refuse_code(content: Any, where: object) -> None:
    """Raise a `UserError` for a file's content that MONAI's bundle parser would evaluate: `$`, `_target_`, imports."""
    for path, what in _code(content, (), set()):
        raise UserError(
            f"{where}: refused: {'.'.join(path)} is {what}, which could run any code; expected plain values"
        )


def refuse_foreign_losses(losses: list[str], where: object) -> None:
    """Raise a `UserError` for losses that a file names from other packages than the allowed ones."""
    for loss in losses:
        for term in parse_expression(loss):
            if "." in term.name and term.name.split(".")[0] not in ALLOWED:
                raise UserError(
                    f"{where}: refused: it names the loss '{term.name}', whose import runs code that is not from "
                    f"{', '.join(ALLOWED)}; pass --trust if you trust it"
                )


def _code(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict | list | tuple):
        if id(value) in seen:  # YAML aliases share values, exponentially often in nested lists
            return
        seen.add(id(value))
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("_target_", "imports"):
                yield (*path, str(key)), "an import"
            yield from _code(part, (*path, str(key)), seen)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _code(part, (*path, str(index)), seen)
    elif isinstance(value, str) and value.lstrip().startswith("$"):
        yield path, f"an expression ({value.strip()[:40]})"
