"""Predictions and result tables made elsewhere, brought to what a report is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines.data.checks import Offence
from pipelines.data.nifti import shift_note
from pipelines.evaluation.cached_tasks import Done, ResultCache, work
from pipelines.evaluation.evaluate import NSD_TOLERANCE_MM
from pipelines.evaluation.external_predictions import (
    HashedFile,
    Pair,
    agreed_classes,
    found_classes,
    hash_files,
    refuse,
    summary_notes,
)
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics import METRICS as TABLE_METRICS
from pipelines.evaluation.result_folders import STOCK, Classes, found_images, is_mist, mist_rows
from pipelines.evaluation.sources import Method, References, match, read_methods, read_references
from pipelines.report.collect import ONLY, Collected, PredictedCase
from pipelines.report.provenance import folders_facts, tables_facts, title
from pipelines.statistics.table import check_table, in_report_order, refuse_disjoint
from pipelines.utils import UserError
from pipelines.utils.text import Bar, no_bar

# What is known of finished predictions, once they are measured or their tables read.

#: The page speaks of losses.
WHAT_DIFFERS = (
    "What is called a loss here is a name given to finished predictions: whatever else differed between the trainings "
    "(data, network, epochs, settings) is in the differences, too."
)


@dataclass(frozen=True)
class Finished:
    """Finished predictions, measured.

    Attributes:
        collected: for the report.
        rows: the table of results, a row a case, method and class; a later report can be made of it alone.
        reference: the method to compare with, where nnU-Net's own trainer is among them; else None.
        told: what a person should read before the verdict, a line each.
    """

    collected: Collected
    rows: pd.DataFrame
    reference: str | None
    told: tuple[str, ...]


# Tables of one method each, put together: MIST's `results.csv`, or what `medloss evaluate --out` writes.

_EXPECTED = (
    "expected MIST's results.csv (id, <class>_dice, ...) or the CSV of `medloss evaluate` (case, class, dice, ...)"
)


def from_tables(named: dict[str, Path]) -> Finished:
    """Put tables of one method each together: MIST's, or those of `medloss evaluate`.

    Args:
        named: name -> CSV file.

    Raises:
        UserError: they are no such tables, or have no measure in common.
    """
    frames, notes = [], [WHAT_DIFFERS]
    for name, path in named.items():
        frame, told = _read(name, path)
        frames.append(frame)
        notes += told
    mist = [name for name, path in named.items() if is_mist(path)]
    if mist and len(mist) < len(named):
        raise UserError(f"{mist[0]} is MIST's table, and others are not, which count empty classes otherwise")
    if mist:
        notes.append(
            "The measures are MIST's own: where reference and prediction are both empty its Dice is 1, its distance 0."
        )
    _check_classes(dict(zip(named, frames, strict=True)))
    known = in_report_order(TABLE_METRICS)
    shared = [metric for metric in known if all(metric in frame.columns for frame in frames)]
    if not shared:
        raise UserError(f"the tables have no measure in common; expected one of {', '.join(known)}")
    keys = [key for key in ("case", "class", "loss", "patient", "fold", "seed")
            if any(key in frame.columns for frame in frames)]  # fmt: skip
    for name, frame in zip(named, frames, strict=True):
        if missing := [key for key in keys if key not in frame.columns]:
            raise UserError(f"{name}: {named[name]} has no column {missing[0]}, which others have")
        extra = [metric for metric in known if metric in frame.columns and metric not in shared]
        if extra:
            notes.append(f"{name}: measures that are not in every table are left out: {', '.join(extra)}.")
    rows = pd.concat([frame[[*keys, *shared]] for frame in frames], ignore_index=True)
    table = check_table(rows, TABLE_METRICS)
    refuse_disjoint(table)
    collected = Collected(title=" and ".join(named), table=table, facts=tables_facts(named, table), notes=tuple(notes))
    return Finished(collected, rows, None, tuple(notes[1:]))


def _check_classes(frames: dict[str, pd.DataFrame]) -> None:
    """They have to be the same: what a table lacks counts as the worst there."""
    names = {name: set(frame["class"].str.strip()) for name, frame in frames.items() if "class" in frame.columns}
    for (one, own), (other, others) in pairwise(names.items()):
        if own != others:
            raise UserError(f"the tables {one} and {other} have other classes: {', '.join(sorted(own ^ others)[:6])}")


def _read(name: str, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """One method's results as rows of a table of results, as text, and what has to be told of them.

    Args:
        name: the method's.
        path: a CSV file.

    Raises:
        UserError: it is no such table.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{name}: {path} cannot be read as a CSV table: {told}; {_EXPECTED}") from None
    if "loss" in frame.columns:
        raise UserError(f"{name}: {path} has a column loss, so it is of several; pass it as --cases {path}")
    if "case" in frame.columns:
        return frame.assign(loss=name), []
    if "id" not in frame.columns:
        raise UserError(f"{name}: {path} has the columns {', '.join(frame.columns[:6])}; {_EXPECTED}")
    return mist_rows(name, path, frame)


# From names with folders to what a report is made of.


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
        done = work(pairs, store, jobs=jobs, check_only=bool(offences), progress=step, notify=tell)
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
