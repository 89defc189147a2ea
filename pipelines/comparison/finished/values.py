"""Which classes there are, where nobody named them: nnU-Net's, or each label that the references hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.comparison.finished.cache import ResultCache
from pipelines.comparison.finished.classes import Classes
from pipelines.comparison.finished.measure import MOST_VALUES, HashedFile, Values
from pipelines.comparison.finished.methods import Method
from pipelines.comparison.finished.references import References
from pipelines.comparison.finished.work import work
from pipelines.errors import UserError
from pipelines.evaluation.reference_labels import NO_LABELS, shown


def agreed_classes(methods: Sequence[Method]) -> Classes | None:
    """The classes of nnU-Net's `dataset.json`; None where no folder has one.

    Raises:
        UserError: they differ.
    """
    found = {method.name: method.nnunet.classes for method in methods if method.nnunet is not None}
    if not found:
        return None
    name, first = next(iter(found.items()))
    for other, own in found.items():
        if (own.regions, own.ignore) != (first.regions, first.ignore):
            raise UserError(
                f"--classes: got none, and dataset.json differs: {name} has {first.told()}, and {other} has "
                f"{own.told()}; expected the same labels, or --classes"
            )
    return first


def found_classes(
    references: References,
    hashed: Mapping[Path, str],
    cache: ResultCache,
    jobs: int,
    progress: Callable[[int], object],
    tell: Callable[[str], None],
) -> Classes:
    """A class for each label above 0 that the references hold, called as its value.

    Raises:
        UserError: they hold none, or so many that they are images.
    """
    tasks = [Values(HashedFile(file, hashed[file])) for file in references.files.values() if file in hashed]
    done = work(tasks, cache, jobs=jobs, progress=progress, tell=tell)
    values = sorted(set().union(*(own for own in done.results if own is not None)))
    if not values:
        raise UserError(f"--labels: the files of {shown(references.folder)} {NO_LABELS}")
    if len(values) > MOST_VALUES:
        raise UserError(
            f"--labels: the files of {shown(references.folder)} hold more than {MOST_VALUES} values above 0; expected "
            "labels, no images"
        )
    return Classes({str(value): (value,) for value in values})
