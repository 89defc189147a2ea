"""From names with folders to what a report is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipelines.comparison.finished.agreement import summary_notes
from pipelines.comparison.finished.cache import ResultCache
from pipelines.comparison.finished.classes import Classes
from pipelines.comparison.finished.facts import folders_facts, title
from pipelines.comparison.finished.files import hash_files, refuse
from pipelines.comparison.finished.measure import HashedFile, Pair
from pipelines.comparison.finished.methods import Method, read_methods
from pipelines.comparison.finished.nnunet_results import found_images
from pipelines.comparison.finished.references import References, match, read_references
from pipelines.comparison.finished.result import WHAT_DIFFERS, Finished
from pipelines.comparison.finished.values import agreed_classes, found_classes
from pipelines.comparison.finished.work import Done, work
from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.predicted import ONLY, PredictedCase
from pipelines.comparison.statistics import check_table
from pipelines.dataset.case_reader import Offence
from pipelines.dataset.geometry import shift_note
from pipelines.evaluation.metrics import NSD_TOLERANCE_MM
from pipelines.evaluation.registry import METRICS
from pipelines.nnunet.folders import STOCK
from pipelines.progress import Bar, no_bar


def from_predictions(
    named: dict[str, Path],
    cache: Path,
    *,
    labels: Path | None = None,
    classes: Classes | None = None,
    folds: tuple[int, ...] | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    jobs: int = 1,
    bar: Bar = no_bar,
    tell: Callable[[str], None] = lambda line: None,
) -> Finished:
    """Measure folders of label maps against references.

    Args:
        named: name -> folder of label maps or nnU-Net's results.
        cache: folder of what was measured before.
        labels: folder of references; None: those that nnU-Net keeps.
        classes: to be measured; None: nnU-Net's, or each label of the references.
        folds: these alone, of nnU-Net's cross-validations.
        nsd_tolerance_mm: up to where a surface's distance is no error to the NSD.
        jobs: processes. With several, a script that calls this must be guarded by `if __name__ == "__main__"`.
        bar: shows how far it is.
        tell: gets lines for a person while it works.

    Raises:
        UserError: files that cannot be read, belong to no reference, lie on another grid than it, or hold other values
            than the classes'; all are told, a line each. Or folders or classes that do not fit.
    """
    tell = _sparingly(tell)
    methods = read_methods(named, folds)
    references = read_references(labels, methods)
    owned, offences = _matched(methods, references)
    if folds is not None:
        owned, references = _of_the_folds(methods, owned, references)
    classes = classes or agreed_classes(methods)
    predicted = set().union(*owned.values())
    needed = [file for case, file in references.files.items() if classes is None or case in predicted]
    files = list(dict.fromkeys([*needed, *(file for own in owned.values() for file in own.values())]))
    with bar("reading", len(files)) as step:
        hashed, bad = hash_files(files, step)
    offences += bad
    store = ResultCache(cache)
    if classes is None:
        if not any(file in hashed for file in needed):
            refuse(offences)
        with bar("looking for labels", len(needed)) as step:
            classes = found_classes(references, hashed, store, jobs, step, tell)
    asked = [(method, case, file) for method in methods for case, file in sorted(owned[method.name].items())
             if file in hashed and references.files[case] in hashed]  # fmt: skip
    pairs = [Pair(HashedFile(file, hashed[file]), HashedFile(references.files[case], hashed[references.files[case]]),
                  classes, nsd_tolerance_mm) for _, case, file in asked]  # fmt: skip
    with bar("measuring", len(pairs)) as step:
        done = work(pairs, store, jobs=jobs, spoiled=bool(offences), progress=step, tell=tell)
    refuse([*offences, *done.offences])

    fold_of = _fold_of(asked)
    rows = _rows(asked, done, classes, fold_of)
    agreed, differing = _agreement(methods, classes, asked, done)
    notes = [*_notes(methods, references, predicted, classes), *_off_grid(asked, done), *differing]
    collected = Collected(
        title=title(methods, references),
        table=check_table(rows, METRICS),
        facts=folders_facts(methods, references, classes, hashed, nsd_tolerance_mm, owned, agreed),
        notes=(WHAT_DIFFERS, *notes),
        predictions=_drawn(asked, references, methods, classes, fold_of),
    )
    reference = next((m.name for m in methods if m.nnunet is not None and m.nnunet.trainer == STOCK), None)
    return Finished(collected, rows, reference, (_told(owned, classes, done), *notes))


def _matched(methods: Sequence[Method], references: References) -> tuple[dict[str, dict[str, Path]], list[Offence]]:
    """Method -> case -> prediction, and the files that keep it from being clear."""
    owned, offences = {}, []
    for method in methods:
        owned[method.name], bad = match(references, method)
        offences += bad
    return owned, offences


def _of_the_folds(
    methods: Sequence[Method], owned: dict[str, dict[str, Path]], references: References
) -> tuple[dict[str, dict[str, Path]], References]:
    """Of folders that have no folds the cases of the folds that were asked for, too: others are not lacking."""
    within = set().union(*(owned[method.name] for method in methods if method.folds))

    def of(files: dict[str, Path]) -> dict[str, Path]:
        return {case: file for case, file in files.items() if case in within}

    return {name: of(own) for name, own in owned.items()}, replace(references, files=of(references.files))


def _sparingly(tell: Callable[[str], None], most: int = 10) -> Callable[[str], None]:
    """Tell each line once, and not very many."""
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told and len(told) < most:
            told.add(line)
            tell(line if len(told) < most else f"{line}; and so on")

    return once


def _fold_of(asked: Sequence[tuple[Method, str, Path]]) -> dict[str, str]:
    """Case to the fold that validates it, by the methods that have folds; empty where they differ, or none has any.

    A case has one fold for all methods: under two it would be two results, of which each method has no more than one.
    """
    found: dict[str, set[str]] = {}
    for method, case, file in asked:
        if method.folds:
            found.setdefault(case, set()).add(method.folds[file])
    return {} if any(len(folds) > 1 for folds in found.values()) else {case: min(own) for case, own in found.items()}


def _rows(
    asked: Sequence[tuple[Method, str, Path]], done: Done, classes: Classes, fold_of: Mapping[str, str]
) -> pd.DataFrame:
    """A row a method, case and class; none of a case without a prediction, which the statistics count as the worst."""
    rows = []
    for (method, case, _), result in zip(asked, done.results, strict=True):
        for name, own in zip(classes.regions, result["measures"], strict=True):
            about = {"case": case, "loss": method.name, "class": name}
            about |= {"fold": fold_of.get(case, ONLY)} if fold_of else {}
            rows.append(about | dict(zip(METRICS, own, strict=True)))
    return pd.DataFrame(rows)


def _agreement(
    methods: Sequence[Method], classes: Classes, asked: Sequence[tuple[Method, str, Path]], done: Done
) -> tuple[list[str], list[str]]:
    place = list(METRICS).index("dice")
    dice = {
        (method.name, str(file), name): own[place]
        for (method, _, file), result in zip(asked, done.results, strict=True)
        for name, own in zip(classes.regions, result["measures"], strict=True)
    }
    return summary_notes(methods, classes, dice)


def _drawn(
    asked: Sequence[tuple[Method, str, Path]],
    references: References,
    methods: Sequence[Method],
    classes: Classes,
    fold_of: Mapping[str, str],
) -> tuple[PredictedCase, ...]:
    """What pictures of single cases are drawn from; the image's where nnU-Net's raw data are found."""
    images: dict[str, Path] = {}
    for method in methods:
        if method.nnunet is not None:
            images = found_images(method.nnunet, references.files) | images
    return tuple(
        PredictedCase(
            loss=method.name,
            case=case,
            # Not what a link leads to, which need not be named as NIfTI is.
            prediction=file.absolute(),
            reference=references.files[case].absolute(),
            image=images[case].absolute() if case in images else None,
            fold=fold_of.get(case, ONLY),
            values=classes.values,
            ignore=classes.ignore,
        )
        for method, case, file in asked
    )


def _off_grid(asked: Sequence[tuple[Method, str, Path]], done: Done) -> list[str]:
    shifts = {str(file): result["shift"] for (_, _, file), result in zip(asked, done.results, strict=True)}
    note = shift_note(shifts, "prediction", "reference")
    return [] if note is None else [f"{note}."]


def _notes(methods: Sequence[Method], references: References, predicted: set[str], classes: Classes) -> list[str]:
    """What the page tells first."""
    notes = []
    left_out = [case for case in references.files if case not in predicted]
    if left_out:
        notes.append(f"Left out, since no folder has a prediction: {_cases(left_out)} of {len(references.files)}.")
    notes += [
        f"{method.name}: fold_all is left out: it was validated on the cases it was trained with."
        for method in methods
        if method.nnunet is not None and method.nnunet.without_all
    ]
    if classes.ignore is not None:
        notes.append(
            f"Voxels that the reference labels {classes.ignore} (ignore) are not counted, as in nnU-Net's evaluation: "
            "prediction and reference end where they begin, surfaces as well."
        )
    return notes


def _told(owned: Mapping[str, Mapping[str, Path]], classes: Classes, done: Done) -> str:
    """What was measured; what is missing the analysis reports."""
    cases = set().union(*owned.values())
    return (
        f"{_count(len(owned), 'folder')}, {_count(len(cases), 'case')}, {_count(len(classes.regions), 'class')}: "
        f"{_count(len(done.results) - done.kept, 'pair')} measured, {done.kept} read from the cache"
    )


def _cases(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{_count(len(names), 'case')} ({', '.join(names[:most])}{more})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
