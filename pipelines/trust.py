"""What others wrote is read, never run: files that would evaluate or import something are refused."""

from collections.abc import Iterator
from typing import Any

from medloss.expression import parse_expression
from pipelines.errors import UserError

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
