"""What others wrote is read, never run: files that would evaluate or import something are refused."""

from collections.abc import Iterator
from typing import Any

import yaml

from medloss.expression import parse_expression
from pipelines.utils import UserError

# YAML that others wrote: aliases may share values, but not make a huge content of a small file.

#: So many values aliases may add to those that are written. Thousands of cases that share a few fields are far below;
#: nine lists of nine aliases each, in 442 bytes, are 9^9.
_MOST_ADDED = 100_000


def parse_yaml(text: str) -> Any:
    """The content of a YAML text: mappings, lists and plain values.

    Args:
        text: the whole of it.

    Raises:
        ValueError: it is no YAML, or its aliases unfold to too much; the message begins with `no YAML` or `refused`.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        sizes: dict[int, int | None] = {}
        added = _unfolded(root, sizes) - len(sizes)
        if added > _MOST_ADDED:
            raise _TooLargeError(
                f"refused: its aliases (*name) make {added + len(sizes):.3g} values of the {len(sizes)} that are "
                f"written; expected at most {_MOST_ADDED} more than are written"
            )
        return loader.construct_document(root)
    except _TooLargeError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())[:200]}") from None


class _TooLargeError(ValueError):
    pass


def _unfolded(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many values a node holds once each alias is a copy; each node is visited once.

    Args:
        node: a node.
        sizes: by the nodes' identity, those that are known; None of those that hold this node.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise ValueError("an alias (*name) stands within what it names")
        return known
    sizes[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    size = 1 + sum(_unfolded(part, sizes) for part in parts)
    sizes[id(node)] = size
    return size


#: Losses of these packages are imported without being asked.
ALLOWED = ("medloss", "monai", "torch")


def refuse_code(content: Any, where: object) -> None:
    """Refuse a file's content that a bundle's reader would evaluate: `$` expressions, `_target_`, imports.

    Args:
        content: mappings, lists and plain values.
        where: the file, for the message.

    Raises:
        UserError: names the first such place.
    """
    for path, what in _code(content, (), set()):
        raise UserError(
            f"{where}: refused: {'.'.join(path)} is {what}, which could run anything; expected plain values"
        )


def refuse_foreign_losses(losses: list[str], where: object) -> None:
    """Refuse to import losses that a file names and that come from other packages than the well-known ones.

    Args:
        losses: names, sums and dotted paths.
        where: the file, for the message.

    Raises:
        UserError: names the first such loss, and the option that allows it.
    """
    for loss in losses:
        for term in parse_expression(loss):
            if "." in term.name and term.name.split(".")[0] not in ALLOWED:
                raise UserError(
                    f"{where}: refused: it names the loss '{term.name}', whose import runs code that is not from "
                    f"{', '.join(ALLOWED)}; pass --trust if you know it"
                )


def _code(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict | list | tuple):
        if id(value) in seen:  # YAML's aliases share values, in nested lists exponentially often
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
