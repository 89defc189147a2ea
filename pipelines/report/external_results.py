"""Turns predictions and result tables of other tools into the contents of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines.data.checks import Offence
from pipelines.data.grids import shift_note
from pipelines.evaluation.cached_tasks import ResultCache, work
from pipelines.evaluation.calibration import together
from pipelines.evaluation.external_predictions import (
    Pair,
    agreed_classes,
    found_classes,
    found_probabilities,
    hash_files,
    refuse,
    summary_notes,
)
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import DEFAULT_SETTINGS, LesionRule, MetricSettings, at_tolerance
from pipelines.evaluation.references import files_tolerance
from pipelines.evaluation.result_folders import STOCK, Classes, found_images, is_mist, mist_rows, summary_rows
from pipelines.evaluation.sources import Method, ReferenceFiles, match_method, read_methods, read_references
from pipelines.report.collect import ONLY, Collected, PredictedCase
from pipelines.report.provenance import folders_facts, tables_facts, title
from pipelines.report.result_tables import NoMetricError, read_method
from pipelines.report.table_cells import read_cells
from pipelines.statistics.table import check_table, in_report_order, refuse_disjoint
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile
from pipelines.utils.text import Bar, counted, no_bar

#: The page calls every method a loss.
_METHODS_ARE_LOSSES = (
    "A loss here is a name for a set of finished predictions: whatever else differed between the runs (data, network, "
    "epochs, settings) contributes to the differences, too."
)


#: Metrics by which `check_table` recognises empty references and rightly empty predictions.
_SHOWING_EMPTY = ("sensitivity", "specificity")


@dataclass(frozen=True)
class ExternalResults:
    """Results of other tools, ready for a report.

    Attributes:
        collected: the contents of the report.
        rows: the table of results, a row per case, method and class; a later report can be made from it alone.
        reference: the method with nnU-Net's default trainer, to be the reference; `None` if there is none.
        messages: what a user should read before the verdict, one line each.
    """

    collected: Collected
    rows: pd.DataFrame
    reference: str | None
    messages: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationSettings:
    """How folders of predictions are evaluated.

    Attributes:
        labels: folder of references; `None`: those that nnU-Net keeps.
        classes: the classes to evaluate; `None`: nnU-Net's, or each label of the references.
        folds: the folds of nnU-Net's cross-validations to include; `None`: all.
        metrics: names of the metrics; `None`: the default ones. Sensitivity and specificity are always computed.
        nsd_tolerance_mm: distance in mm up to which a surface counts as correct for the NSD; `None`: 1 mm or the
            references' largest voxel side, whichever is more.
        lesions: what a lesion is, for lesion-wise metrics.
        jobs: number of processes. With several, a calling script must be guarded by `if __name__ == "__main__"`.
    """

    labels: Path | None = None
    classes: Classes | None = None
    folds: tuple[int, ...] | None = None
    metrics: tuple[str, ...] | None = None
    nsd_tolerance_mm: float | None = None
    lesions: LesionRule = DEFAULT_SETTINGS.lesions
    jobs: int = 1


# Tables of one method each: MIST's `results.csv`, nnU-Net's `summary.json`, or the output of `medloss evaluate --out`.

_EXPECTED = (
    "expected MIST's results.csv (id, <class>_dice, ...), nnU-Net's summary.json, or a CSV such as that of `medloss "
    "evaluate` (case, class, dice, ...)"
)


def from_tables(
    named: dict[str, Path], columns: Mapping[str, str] | None = None, metric: str | None = None
) -> ExternalResults:
    """Combine tables of one method each: MIST's, nnU-Net's summaries, those of `medloss evaluate`, or similar ones.

    Args:
        named: name -> CSV file or nnU-Net's `summary.json`.
        columns: names of columns to what they are, where names alone do not show it.
        metric: the metric of a column `value`; `None`: Dice.

    Raises:
        UserError: the files are not such tables, or have no metric in common.
    """
    frames: dict[str, pd.DataFrame] = {}
    notes, mist = [_METHODS_ARE_LOSSES], []
    for name, path in named.items():
        frames[name], of_table, by_mist = _read(name, path, columns, metric)
        notes += of_table
        mist += [name] if by_mist else []
    if mist and len(mist) < len(named):
        raise UserError(
            f"{mist[0]} is a table of MIST, and others are not, which count empty classes differently; expected all of "
            "one kind"
        )
    if mist:
        notes.append(
            "The metrics were computed by MIST: if reference and prediction are both empty, its Dice is 1 and its "
            "distance 0; lesions are matched by its own rule."
        )
    # Missing classes would count as the worst.
    classes = {name: set(frame["class"].str.strip()) for name, frame in frames.items() if "class" in frame.columns}
    for (first, of_first), (second, of_second) in pairwise(classes.items()):
        if of_first != of_second:
            differing = ", ".join(sorted(of_first ^ of_second)[:6])
            raise UserError(f"the tables {first} and {second} have different classes: {differing}")
    known = in_report_order(METRICS)
    present = {column for frame in frames.values() for column in frame.columns}
    shared = [metric for metric in known if all(metric in frame.columns for frame in frames.values())]
    if not shared:
        raise UserError(f"the tables have no metric in common; expected one of {', '.join(known)}")
    keys = [key for key in ("case", "class", "loss", "patient", "fold", "seed") if key in present]
    for name, frame in frames.items():
        if missing := [key for key in keys if key not in frame.columns]:
            raise UserError(f"{name}: {named[name]} has no column {missing[0]}, which other tables have")
        if extra := [metric for metric in known if metric in frame.columns and metric not in shared]:
            notes.append(f"{name}: metrics that are not in every table are left out: {', '.join(extra)}.")
    rows = pd.concat([frame[[*keys, *shared]] for frame in frames.values()], ignore_index=True)
    table = check_table(rows, METRICS)
    refuse_disjoint(table)
    collected = Collected(title=" and ".join(named), table=table, facts=tables_facts(named, table), notes=tuple(notes))
    return ExternalResults(collected, rows, None, tuple(notes[1:]))


def _read(
    name: str, path: Path, columns: Mapping[str, str] | None, metric: str | None
) -> tuple[pd.DataFrame, list[str], bool]:
    """The results of one method as rows of a table of results, as text; notes on them; and whether they are MIST's."""
    if path.suffix.lower() == ".json":
        return *summary_rows(name, path), False
    try:
        cells = read_cells(path)
    except UserError as error:
        raise UserError(f"{name}: {error}; {_EXPECTED}") from None
    if not columns and is_mist(cells.header):
        return *mist_rows(name, path, pd.DataFrame(cells.rows, columns=cells.header, dtype=str)), True
    try:
        found = read_method(name, path, cells, columns, metric)
    except NoMetricError:
        raise UserError(f"{name}: {path} has the columns {', '.join(cells.header[:6])}; {_EXPECTED}") from None
    return found.frame, [] if found.description is None else [f"{name}: {found.description}"], False


# Folders of predictions.


def from_predictions(
    named: dict[str, Path],
    cache: Path,
    settings: EvaluationSettings,
    *,
    bar: Bar = no_bar,
    message: Callable[[str], None] = lambda line: None,
) -> ExternalResults:
    """Evaluate folders of label maps.

    Args:
        named: name -> folder of label maps or nnU-Net's results.
        cache: folder of the metrics that were computed before.
        settings: references, classes, folds, tolerance and processes.
        bar: makes the progress bars.
        message: called with lines for the user during the evaluation.

    Raises:
        UserError: files cannot be read, belong to no reference, lie on another grid than their reference, or have
            values that are no class; all of them are listed, one per line. Or folders or classes do not fit.
    """
    message = _sparingly(message)
    methods = read_methods(named, settings.folds)
    references = read_references(settings.labels, methods)
    predictions: dict[str, dict[str, Path]] = {}
    offences: list[Offence] = []
    for method in methods:
        predictions[method.name], bad = match_method(references, method)
        offences += bad
    if settings.folds is not None:
        # Cases of other folds are not missing in folders without folds, nor in the references.
        within = set().union(*(predictions[method.name] for method in methods if method.folds))
        predictions = {name: {c: file for c, file in of.items() if c in within} for name, of in predictions.items()}
        references = replace(references, files={c: file for c, file in references.files.items() if c in within})
    classes = settings.classes or agreed_classes(methods)
    predicted = set().union(*predictions.values())
    needed = [file for case, file in references.files.items() if classes is None or case in predicted]
    files = list(dict.fromkeys([*needed, *(file for of_method in predictions.values() for file in of_method.values())]))
    with bar("reading", len(files)) as step:
        hashed, bad = hash_files(files, step)
    offences += bad
    store = ResultCache(cache)
    if classes is None:
        if not any(file in hashed for file in needed):
            refuse(offences)
        classes = found_classes(references, hashed, bar)
    asked = [(method, case, file) for method in methods for case, file in sorted(predictions[method.name].items())
             if file in hashed and references.files[case] in hashed]  # fmt: skip
    named_files = {file: NamedFile(file, case, hashed[file])
                   for _, case, prediction in asked for file in (prediction, references.files[case])}  # fmt: skip
    tolerance = settings.nsd_tolerance_mm
    if tolerance is None:
        tolerance = files_tolerance(references.files.values())
    names = settings.metrics
    if names is not None:
        names = tuple(name for name in METRICS if name in (*names, *_SHOWING_EMPTY))
    chosen = MetricSettings(names, tolerance, settings.lesions)
    chosen, probabilities, without = found_probabilities(chosen, asked, bar)
    pairs = [Pair(named_files[file], named_files[references.files[case]], classes, chosen, probabilities.get(file))
             for _, case, file in asked]  # fmt: skip
    with bar("evaluating", len(pairs)) as step:
        done = work(pairs, store, jobs=settings.jobs, check_only=bool(offences), progress=step, notify=message)
    refuse([*offences, *done.offences])

    images: dict[str, Path] = {}
    for method in methods:
        if method.nnunet is not None:
            images = found_images(method.nnunet, references.files) | images
    fold_of = _fold_of(asked)
    rows, drawn, dice = [], [], {}
    for (method, case, file), result in zip(asked, done.results, strict=True):
        fold = fold_of.get(case, ONLY)
        # Not resolved: the target of a link may have a name that is not one of NIfTI's.
        image = images[case].absolute() if case in images else None
        drawn.append(
            PredictedCase(
                method.name, case, file.absolute(), references.files[case].absolute(), image, fold=fold,
                values=classes.values, ignore=classes.ignore,
            )
        )  # fmt: skip
        for name, values in zip(classes.regions, result["measures"], strict=True):
            metrics = dict(zip(chosen.metrics, values, strict=True))
            keys = {"case": case, "loss": method.name, "class": name} | ({"fold": fold} if fold_of else {})
            rows.append(keys | metrics)
            if "dice" in metrics:
                dice[method.name, str(file), name] = metrics["dice"]
    table = pd.DataFrame(rows)
    agreed, differing = summary_notes(methods, classes, dice)
    shifts = {str(file): result["shift"] for (_, _, file), result in zip(asked, done.results, strict=True)}
    off_grid = shift_note(shifts, "prediction", "reference")
    notes = [*_notes(methods, references, predicted, classes), *without]
    notes += [*([f"{off_grid}."] if off_grid else []), *differing]
    collected = Collected(
        title=title(methods, references),
        table=check_table(table, at_tolerance(tolerance)),
        facts=folders_facts(methods, references, classes, hashed, tolerance, predictions, agreed),
        notes=(_METHODS_ARE_LOSSES, *notes),
        predictions=tuple(drawn),
        calibration=together(
            (method.name, numbers)
            for (method, _, _), result in zip(asked, done.results, strict=True)
            for numbers in result.get("calibration", ())
        ),
    )
    # The analysis reports what is missing.
    summary = (
        f"{counted(len(predictions), 'folder')}, {counted(len(predicted), 'case')}, "
        f"{counted(len(classes.regions), 'class')}: {counted(len(done.results) - done.kept, 'pair')} evaluated, "
        f"{done.kept} read from the cache"
    )
    stock = next((m.name for m in methods if m.nnunet is not None and m.nnunet.trainer == STOCK), None)
    return ExternalResults(collected, table, stock, (summary, *notes))


def _sparingly(message: Callable[[str], None], most: int = 10) -> Callable[[str], None]:
    """Pass on each line once, and only the first ones."""
    lines: set[str] = set()

    def once(line: str) -> None:
        if line not in lines and len(lines) < most:
            lines.add(line)
            message(line if len(lines) < most else f"{line}; and so on")

    return once


def _fold_of(asked: Sequence[tuple[Method, str, Path]]) -> dict[str, str]:
    """Case -> the fold that validates it, from the methods with folds; empty if these differ, or there are none.

    A case must have the same fold for all methods: two folds would be two results, and each method has only one.
    """
    found: dict[str, str] = {}
    for method, case, file in asked:
        if method.folds and found.setdefault(case, method.folds[file]) != method.folds[file]:
            return {}
    return found


def _notes(methods: Sequence[Method], references: ReferenceFiles, predicted: set[str], classes: Classes) -> list[str]:
    """The first notes on the page."""
    notes = []
    left_out = [case for case in references.files if case not in predicted]
    if left_out:
        some = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        cases = f"{counted(len(left_out), 'case')} ({some})"
        notes.append(f"Left out, since no folder has a prediction: {cases} of {len(references.files)}.")
    notes += [
        f"{method.name}: fold_all is left out, since it was validated on its training cases."
        for method in methods
        if method.nnunet is not None and method.nnunet.without_all
    ]
    if classes.ignore is not None:
        notes.append(
            f"Voxels that the reference labels {classes.ignore} (ignore) are not counted, as in nnU-Net's evaluation: "
            "prediction, reference and their surfaces end at these voxels."
        )
    return notes
