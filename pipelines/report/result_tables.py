"""Result tables as people have them: read, recognised, and brought into the columns of `statistics.table`.

Recognised are long tables (a row per case and method), wide ones (a column per method, such as `claim_check.csv`),
tables of one method, and those of challengeR (`task`, `alg_name`, `case`, `value`). Numbers may have decimal commas or
be percent. What is ambiguous is refused; what was made of a table is described in one line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pandas as pd

from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.result_folders import is_mist
from pipelines.report.table_cells import Cells, read_cells
from pipelines.statistics.table import KEYS
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated, counted

#: challengeR's columns, besides `KEYS`: the data set or subtask, and the metric's value.
TASK, VALUE = "task", "value"
#: In `--columns`: a column that is left out.
IGNORE = "ignore"
#: Names of columns, by what they hold. Of several candidates for the case the first counts; others are ambiguous.
_ALIASES: dict[str, tuple[str, ...]] = {
    "case": ("case", "case_id", "caseid", "case_name", "id", "image_id", "imageid", "image", "scan_id", "scan",
             "filename", "file_name", "file", "volume_id", "sample_id", "sample", "name"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "loss": ("loss", "method", "algorithm", "alg", "alg_name", "algorithm_name", "algo", "model", "network", "team"),
    "class": ("class", "class_name", "label", "structure", "organ", "region", "roi"),
    "fold": ("fold",),
    "seed": ("seed",),
    TASK: ("task",),
    VALUE: ("value",),
}  # fmt: skip
#: Usual names of metrics, besides their names and labels here.
_METRICS = {
    "dice": ("dsc", "dice_score", "dice_coefficient", "dice_similarity_coefficient", "dice_similarity"),
    "iou": ("jaccard", "jaccard_index", "jaccard_score"),
    "sensitivity": ("recall", "tpr", "true_positive_rate"),
    "specificity": ("tnr", "true_negative_rate"),
    "hd95_mm": ("hd_95", "haus95", "hausdorff95", "hausdorff_95", "hausdorff_distance_95", "95hd", "95_hd"),
    "assd_mm": ("avg_surf", "average_symmetric_surface_distance"),
    "nsd": ("surface_dice", "surf_dice", "normalized_surface_dice", "normalized_surface_distance",
            "normalised_surface_dice", "normalised_surface_distance"),
    "lesion_dice": ("lesion_wise_dice",),
    "lesion_hd95_mm": ("lesion_wise_haus95", "lesion_wise_hd95"),
}  # fmt: skip
#: Units of distances that cannot be read as mm.
_OTHER_UNITS = {"cm", "m", "px", "pixel", "pixels", "vox", "voxel", "voxels"}
#: Columns of numbers in wide tables that are no methods.
_NO_METHODS = {"age", "weight", "height", "bmi", "year", "volume", "volume_ml", "voxels", "slices", "lesions"}
#: Prefix of the columns of methods in the table that claim checkers read.
_ALG = "alg_"
#: What people write for a missing number, besides an empty cell; `nan` has a meaning of its own in `statistics.table`.
_MISSING = {"n/a", "#n/a", "na", "none", "null", "missing", "-", "--", "–", "—", "."}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan", re.IGNORECASE)
_TWO = "expected two or more, with names: --cases NAME={path} OTHER={other}"


class NoMetricError(UserError):
    """A table without a column of cases, or of a metric."""


@dataclass(frozen=True)
class ResultTable:
    """A table with the columns of `statistics.table`, and perhaps `task`; all cells are text.

    Attributes:
        description: what was made of the file, in one line; None if there was nothing to interpret.
        left_out: names of the columns that are not in the frame.
    """

    frame: pd.DataFrame
    description: str | None
    left_out: tuple[str, ...] = ()


def read_columns(text: str) -> dict[str, str]:
    """Parse `--columns`, such as `case=ID,loss=method,ignore=age`: the name of a column, to what it is.

    Raises:
        UserError: the text has another form, or something is named twice.
    """
    known = [*KEYS, TASK, VALUE, *METRICS]
    found: dict[str, str] = {}
    for part in text.split(","):
        key, separator, name = (piece.strip() for piece in part.partition("="))
        if not (separator and key and name):
            raise UserError(f"--columns: got '{part.strip()}'; expected pairs such as case=ID,loss=method,dice=DSC")
        if key not in (*known, IGNORE):
            key = _metric_of(_plain(key)) or key_of(key) or key
        if key not in (*known, IGNORE):
            expected = ", ".join((*known, IGNORE))
            raise UserError(f"--columns: got '{key}'; expected one of {expected}, then = and a column's name")
        if name in found or (key != IGNORE and key in found.values()):
            raise UserError(f"--columns: {name if name in found else key} is named twice; expected it once")
        found[name] = key
    return found


# The columns.


def _plain(name: str) -> str:
    """A column's name without unit, case and marks: `Dice [%]` is `dice`."""
    name = re.sub(r"[(\[].*?[)\]]", " ", name.lower())
    name = re.sub(r"(?<=[\s_])(%|percent|pct)\s*$", "", name)
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _unit(name: str) -> str:
    """The unit in a column's name: `%`, or the text in its brackets; empty without one."""
    if re.search(r"(?<=[\s_(\[])(%|percent|pct)\s*[)\]]?\s*$", name.lower()):
        return "%"
    found = re.search(r"[(\[]\s*(.*?)\s*[)\]]", name.lower())
    return found.group(1) if found else ""


def _metric_names() -> dict[str, str]:
    """Plain names of columns to metrics."""
    names: dict[str, str] = {}
    for name, metric in METRICS.items():
        short = name.removesuffix(f"_{metric.unit}") if metric.unit else name
        for alias in (name, short, _plain(metric.label), *_METRICS.get(name, ())):
            names.setdefault(alias, name)
    return names


def _metric_of(plain: str) -> str | None:
    names = _metric_names()
    found = names.get(plain)
    return found or names.get(plain.removesuffix("_mm"))


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or what people write for that."""
    return not cell or cell.lower() in _MISSING | {"nan"}


def key_of(name: str) -> str | None:
    """The key of `statistics.table` that a column's name stands for."""
    plain = _plain(name)
    return next((key for key, aliases in _ALIASES.items() if plain in aliases), None)


@dataclass
class _Columns:
    """What the columns of a table are: places by key or metric, and those that are neither."""

    places: dict[str, int] = field(default_factory=dict)
    others: list[int] = field(default_factory=list)
    index: int | None = None
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return [key for key in self.places if key in METRICS]


def _recognise(path: Path, cells: Cells, given: Mapping[str, str]) -> _Columns:
    """Recognise columns by `--columns`, else by their names."""
    found = _Columns()
    lower = [name.lower() for name in cells.header]
    ignored = set()
    for name, key in given.items():
        if name not in cells.header and lower.count(name.lower()) != 1:
            raise UserError(f"{path}: --columns: no column {name}; got {abbreviated(cells.header, 12)}")
        place = cells.header.index(name) if name in cells.header else lower.index(name.lower())
        if key == IGNORE:
            ignored.add(place)
        else:
            found.places[key] = place
    candidates: dict[str, list[tuple[int, int]]] = {}
    for place, name in enumerate(cells.header):
        if place in found.places.values() or place in ignored:
            continue
        plain = _plain(name)
        if not name or (place == 0 and plain in ("unnamed_0", "index", "row_names")):
            found.index = place
            continue
        kind = _metric_of(plain) or key_of(plain)
        if kind in METRICS and METRICS[kind].unit == "mm" and _unit(name) in _OTHER_UNITS:
            found.reasons[place], kind = f"in {_unit(name)}, not mm", None
        if kind is None:
            found.others.append(place)
            continue
        priority = 0 if kind in METRICS else _ALIASES[kind].index(plain)
        candidates.setdefault(kind, []).append((priority if name != kind else -1, place))
    for key, places in candidates.items():
        (first, place), *rest = sorted(places)
        if key in found.places:
            found.others += [place, *(other for _, other in rest)]
            continue
        if rest and first != -1 and key != "case":
            columns = " and ".join(cells.header[other] for _, other in sorted(places))
            raise UserError(f"{path}: {columns} may both be the column {key}; name one: --columns {key}=COLUMN")
        found.places[key] = place
        found.others += [other for _, other in rest]
    if "case" not in found.places:
        if "patient" in found.places:
            found.places["case"] = found.places.pop("patient")
        elif found.index is not None:
            found.places["case"], found.index = found.index, None
    found.others.sort()
    return found


# The table.


def read_results(path: Path, columns: Mapping[str, str] | None = None, metric: str | None = None) -> ResultTable:
    """Read a table of several methods.

    Args:
        path: the file.
        columns: names of columns to what they are, where names alone do not show it; see `read_columns`.
        metric: the metric of a table that does not name any, such as a wide one; None: Dice.

    Raises:
        UserError: the file is not such a table, has one method only, or is ambiguous.
    """
    if path.suffix.lower() == ".json":
        raise UserError(f"--cases: {path} is of one method; {_TWO.format(path=path, other='other/summary.json')}")
    cells = read_cells(path)
    if not columns and is_mist(cells.header):
        other = "other/results.csv"
        raise UserError(f"--cases: {path} is MIST's table of one method; {_TWO.format(path=path, other=other)}")
    return _table(path, cells, _recognise(path, cells, columns or {}), metric, method=None)


def read_method(
    method: str, path: Path, cells: Cells, columns: Mapping[str, str] | None = None, metric: str | None = None
) -> ResultTable:
    """The cells of a table of one method; other arguments are those of `read_results`.

    Raises:
        UserError: they are not such a table, or ambiguous.
    """
    return _table(path, cells, _recognise(path, cells, columns or {}), metric, method=method)


def _table(path: Path, cells: Cells, found: _Columns, metric: str | None, method: str | None) -> ResultTable:
    places, header = found.places, cells.header
    if "case" not in places:
        raise NoMetricError(
            f"{path}: no column case; got {abbreviated(header, 12) or 'none'}; expected case, loss and a metric: name "
            "them by --columns case=COLUMN"
        )
    named = metric is not None
    value_metric = (metric or "dice").split(",")[0]
    if value_metric not in METRICS:
        raise UserError(f"--metric: no metric '{value_metric}'; expected one of {', '.join(METRICS)}")
    notes = list(cells.remarks)
    keys = {key: places[key] for key in ("case", *KEYS, TASK) if key in places}
    base = pd.DataFrame({key: cells.column(place) for key, place in keys.items()}, dtype=str)
    methods: dict[str, dict[str, int]] = {}
    if method is None and "loss" not in places:
        methods = _methods(path, cells, found, value_metric if named else None)
    elif method is not None and "loss" in places:
        column = header[places["loss"]]
        raise UserError(f"{method}: {path} has a column {column}, so it has several methods; pass it as --cases {path}")
    values: dict[str, list[int]] = {name: [places[name]] for name in found.metrics if not methods}
    if methods:
        values = {name: list(of_metric.values()) for name, of_metric in methods.items()}
        names = list(dict.fromkeys(name for of_metric in methods.values() for name in of_metric))
        labels = ", ".join(METRICS[name].label for name in methods)
        notes.append(f"a column per method ({abbreviated(names, 12)}), its values read as {labels}")
    elif not values and VALUE in places:
        values = {value_metric: [places[VALUE]]}
        notes.append(f"{header[places[VALUE]]} read as {METRICS[value_metric].label}")
    if not values:
        expected = ", ".join(name for name, known in METRICS.items() if known.target is None)
        raise NoMetricError(
            f"{path}: no column with a metric; expected at least one of {expected}; got {abbreviated(header, 12)}: "
            "name it by --columns dice=COLUMN"
        )
    in_names = bool(found.metrics) or any(_split(header[place]) for of in values.values() for place in of)
    unnamed = None if named or in_names else value_metric
    numbers, remarks = _numbers(path, cells, values, base, unnamed)
    notes += remarks
    if methods:
        blocks = [base.assign(loss=name, **{metric: numbers[of_metric[name]] if name in of_metric else ""
                                            for metric, of_metric in methods.items()}) for name in names]  # fmt: skip
        frame = pd.concat(blocks, ignore_index=True)
    else:
        frame = base.assign(**{name: numbers[of_metric[0]] for name, of_metric in values.items()})
        if method is not None:
            frame = frame.assign(loss=method)
    used = {*keys.values(), *(place for of_metric in values.values() for place in of_metric)}
    left_out = [place for place in range(len(header)) if place not in used]
    return _described(path, cells, found, frame, keys | {n: p[0] for n, p in values.items() if not methods}, left_out,
                      notes)  # fmt: skip


def _described(
    path: Path,
    cells: Cells,
    found: _Columns,
    frame: pd.DataFrame,
    read: Mapping[str, int],
    left_out: Sequence[int],
    notes: Sequence[str],
) -> ResultTable:
    """The table with the line that describes what was made of it."""
    renamed = [f"{key} = {cells.header[place] or 'the column without a name'}" for key, place in read.items()
               if cells.header[place] != key and place != found.places.get(VALUE)]  # fmt: skip
    names = tuple(cells.header[place] or "a column without a name" for place in left_out)
    parts = [*notes, *([", ".join(renamed)] if renamed else [])]
    if left_out:
        reasons = (f" ({found.reasons[place]})" if place in found.reasons else "" for place in left_out)
        texts = (f"{name}{reason}" for name, reason in zip(names, reasons, strict=True))
        parts.append(f"left out: {abbreviated(texts, 12)}")
    if not parts:
        return ResultTable(frame, None)
    size = f"{counted(len(cells.rows), 'row')}, {counted(frame['case'].nunique(), 'case')}"
    if frame["loss"].nunique() > 1:
        size += f", {counted(frame['loss'].nunique(), 'method')}"
    return ResultTable(frame, f"{path.name}: {size}; {'; '.join(parts)}.", names)


def _methods(path: Path, cells: Cells, found: _Columns, named: str | None) -> dict[str, dict[str, int]]:
    """The columns of a wide table: metric -> method -> its column; `named` is the metric of `--metric`.

    Raises:
        UserError: there are fewer than two methods, or a column may be a method or a metric.
    """
    header = cells.header
    claimed = [place for place, name in enumerate(header) if name.startswith(_ALG) and place not in
               {found.places[key] for key in found.places if key in KEYS}]  # fmt: skip
    if len(claimed) > 1:
        return {named or "dice": {header[place].removeprefix(_ALG): place for place in claimed}}
    numeric = []
    for place in found.others:
        if _plain(header[place]) in _NO_METHODS:
            found.reasons[place] = "no method"
        elif _is_numeric(cells.column(place)):
            numeric.append(place)
    metrics = [header[found.places[name]] for name in found.metrics]
    if VALUE in found.places or (metrics and not numeric):
        raise UserError(
            f"{path}: no column loss, so it has one method; expected two or more: name the column of the method by "
            f"--columns loss=COLUMN, or pass NAME={path} OTHER=other.csv"
        )
    if metrics:
        raise UserError(
            f"{path}: no column loss, and {metrics[0]} may be a metric of one method or the name of a method, as "
            f"{header[numeric[0]]} may; if each column is a method, name them {_ALG}{metrics[0]}, "
            f"{_ALG}{header[numeric[0]]}, ...; else name the column of the method by --columns loss=COLUMN"
        )
    split = {place: parts for place in numeric if (parts := _split(header[place])) is not None}
    several: dict[str, dict[str, int]] = {}
    for place, (name, of_column) in split.items():
        several.setdefault(of_column, {})[name] = place
    if len(split) == len(numeric) and len({name for name, _ in split.values()}) > 1 and len(several) > 1:
        return several
    if len(numeric) < 2:
        raise UserError(
            f"{path}: no column loss; got {abbreviated(header, 12)}; expected case, loss and a metric, or a column of "
            "numbers per method: name them by --columns loss=COLUMN"
        )
    # Losses may be named like their metric, as focal_dice is.
    of_all = next(iter(several)) if len(several) == 1 and len(split) == len(numeric) else "dice"
    return {named or of_all: {header[place]: place for place in numeric}}


def _split(name: str) -> tuple[str, str] | None:
    """Method and metric in a column's name such as `unet_dice`; None if it does not end with a metric."""
    plain = re.sub(r"[^a-z0-9]", "_", name.lower())
    for alias in sorted(_metric_names(), key=len, reverse=True):
        if plain.endswith(f"_{alias}"):
            return name[: -len(alias) - 1], _metric_names()[alias]
    return None


def _is_numeric(column: Iterable[str]) -> bool:
    cells = [cell for cell in column if cell and cell.lower() not in _MISSING]
    return bool(cells) and all(_NUMBER.fullmatch(cell.removesuffix("%").strip()) for cell in cells)


# The numbers: decimal commas, percent, missing ones.


def _numbers(
    path: Path, cells: Cells, values: Mapping[str, Sequence[int]], base: pd.DataFrame, unnamed: str | None
) -> tuple[dict[int, list[str]], list[str]]:
    """The cells of the metrics as text that `check_table` reads, and what was special.

    Args:
        path: the file, for messages.
        cells: its cells.
        values: metric -> its columns.
        base: the columns that name a row.
        unnamed: the metric that is assumed, since the table does not name it.
    """
    places = [place for of_metric in values.values() for place in of_metric]
    numbers = {place: cells.column(place) for place in places}
    notes, missing = [], 0
    for place, column in numbers.items():
        missing += sum(cell.lower() in _MISSING for cell in column)
        numbers[place] = ["" if cell.lower() in _MISSING else cell for cell in column]
    every = [cell for column in numbers.values() for cell in column]
    comma = next((cell for cell in every if "," in cell and _NUMBER.fullmatch(cell.removesuffix("%").strip())), None)
    point = next((cell for cell in every if "." in cell and _NUMBER.fullmatch(cell.removesuffix("%").strip())), None)
    if comma is not None and point is not None:
        raise UserError(f"{path}: got {comma} and {point}; expected decimal commas or decimal points in all numbers")
    if comma is not None:
        notes.append("decimal commas")
        numbers = {place: [cell.replace(",", ".") for cell in column] for place, column in numbers.items()}
    for name, of_metric in values.items():
        if METRICS[name].upper != 1 or METRICS[name].lower < 0:
            continue
        named_percent = all(_unit(cells.header[place]) == "%" for place in of_metric)
        if _is_percent(path, name, numbers, of_metric, base, cells.header, named_percent, unnamed == name):
            notes.append(f"{name} in percent" if len(values) > 1 else "percent")
            for place in of_metric:
                numbers[place] = [_hundredth(cell) for cell in numbers[place]]
    if missing:
        notes.append(f"{counted(missing, 'cell')} such as N/A read as missing")
    return numbers, notes


def _is_percent(
    path: Path,
    name: str,
    numbers: Mapping[int, list[str]],
    places: Sequence[int],
    base: pd.DataFrame,
    header: Sequence[str],
    by_name: bool,
    unnamed: bool,
) -> bool:
    """Whether a share is written as percent; its column says so, every cell has %, or no value is from 0 to 1."""
    marked, plain = [], []
    for place in places:
        for row, cell in enumerate(numbers[place]):
            number = cell.removesuffix("%").strip()
            if not _NUMBER.fullmatch(number) or number.lower() in ("nan", "inf", "+inf", "-inf"):
                continue
            entry = (float(number), row, cell, place)
            if cell.endswith("%"):
                marked.append(entry)
            elif entry[0] != 0:
                plain.append(entry)
    if by_name or (marked and not plain):
        return True

    def at(entry: tuple[float, int, str, int]) -> str:
        row = base.iloc[entry[1]]
        loss = f"loss {row['loss']}" if "loss" in base.columns else f"column {header[entry[3]]}"
        return f"{entry[2]} (case {row['case']}, {loss})"

    high = [entry for entry in plain if entry[0] > 1 + 1e-6]
    low = [entry for entry in plain if 0 < entry[0] <= 1]
    if marked or (high and low):
        first, second = (marked or high)[0], (plain if marked else low)[0]
        raise UserError(
            f"{path}: {name}: got {at(first)} and {at(second)}; expected all as numbers from 0 to 1, or all in "
            f"percent: then name the column {METRICS[name].label} (%)"
            + ("; leave out a column that is no method by --columns ignore=COLUMN" if len(places) > 1 else "")
        )
    if not high or max(entry[0] for entry in high) > 100:
        return False  # fractions; or not a share at all, which `check_table` refuses
    if unnamed:
        raise UserError(
            f"{path}: got values above 1, such as {at(high[0])}, of a metric without a name; expected --metric dice if "
            "they are Dice in percent, or the metric that they are, such as --metric hd95_mm"
        )
    return True


def _hundredth(cell: str) -> str:
    number = cell.removesuffix("%").strip()
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", number, re.IGNORECASE):
        return cell
    return str(Decimal(number) / 100)
