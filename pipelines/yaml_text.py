"""YAML that others wrote: aliases may share values, but not make a huge content of a small file."""

from typing import Any

import yaml

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
