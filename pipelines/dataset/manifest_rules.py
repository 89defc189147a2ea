"""What has to hold between a manifest's fields, told even where single fields are wrong."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def path_problem(path: str) -> str | None:
    """Why a path is none that stays inside the data root; None where it does."""
    parts = PurePosixPath(path).parts
    if not parts or not path.isprintable() or "\\" in path:
        return f"{path!r} is no path with forward slashes"
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        return f"'{path}' is absolute; expected a path relative to the data root"
    if ".." in parts:
        return f"'{path}' leaves the data root"
    return None


def manifest_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """One line an offence between fields; what single fields break is pydantic's to tell, and is passed over.

    Args:
        content: a manifest's fields; values of wrong types are ignored.
    """
    yield from _axes(content)
    classes = content.get("classes")
    if isinstance(classes, dict):
        yield from _classes(classes, generated=content.get("generator") is not None)
    if not content.get("cases") and content.get("generator") is None:
        yield "cases: there are none"
    entries = content.get("cases")
    cases = [case for case in entries if isinstance(case, dict)] if isinstance(entries, list) else []
    yield from _doubled("cases: id", [case["id"] for case in cases if isinstance(case.get("id"), str)])
    files = [
        str(PurePosixPath(case[role]))
        for case in cases
        for role in ("image", "label")
        if isinstance(case.get(role), str)
    ]
    yield from _doubled("cases: file", files)
    entries = content.get("excluded")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("file") in files:
            yield f"excluded: '{entry['file']}' is a case's file, too"
    yield from _folds(cases)
    if content.get("generator") is None:
        yield from _checksums(cases)


def _axes(content: Mapping[str, Any]) -> Iterator[str]:
    dimensions, spacing, generator = (content.get(name) for name in ("dimensions", "spacing", "generator"))
    if dimensions not in (2, 3):
        return
    if isinstance(spacing, list | tuple) and len(spacing) != dimensions:
        yield f"spacing: {len(spacing)} numbers for {dimensions} dimensions"
    shape = generator.get("shape") if isinstance(generator, dict) else None
    if isinstance(shape, list | tuple) and len(shape) != dimensions:
        yield f"generator.shape: {len(shape)} axes for {dimensions} dimensions"


def _classes(classes: Mapping[Any, Any], generated: bool) -> Iterator[str]:
    if 0 not in classes:
        yield "classes: there is no class 0; expected 0: background"
    if len(classes) < 2:
        yield "classes: there is no foreground class"
    if generated and len(classes) != 4:
        yield f"classes: {len(classes)} for the phantom; expected 4: background, organ, shell, lesions"
    yield from _doubled("classes: name", [name for name in classes.values() if isinstance(name, str)])


def _folds(cases: list[dict[str, Any]]) -> Iterator[str]:
    folds_of: dict[str, set[int]] = {}
    for case in cases:
        if isinstance(case.get("patient"), str) and isinstance(case.get("fold"), int):
            folds_of.setdefault(case["patient"], set()).add(case["fold"])
    for patient, folds in folds_of.items():
        if len(folds) > 1:
            yield f"cases: patient '{patient}' is in folds {sorted(folds)}: in training and in validation"
    used = set().union(*folds_of.values())
    if len(used) == 1:
        yield f"cases: all are in fold {used.pop()}, so none would be left to train with"
    elif used and used != set(range(len(used))):
        yield f"cases: the folds are {sorted(used)}; expected 0, 1, 2 and so on, without gaps"


def _checksums(cases: list[dict[str, Any]]) -> Iterator[str]:
    for case in cases:
        missing = [name for name in ("image_sha256", "label_sha256") if case.get(name) is None]
        if missing:
            yield f"cases: '{case.get('id')}' has no {' and no '.join(missing)}"


def _doubled(what: str, values: list[str]) -> list[str]:
    return [f"{what} '{value}' stands {count} times" for value, count in Counter(values).items() if count > 1]
