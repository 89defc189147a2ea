"""Groups of cases for a report (`--subgroups`): a table with a row per case and a column per variable."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.data.manifest import Manifest
from pipelines.report.result_tables import is_missing, key_of
from pipelines.report.table_cells import read_cells
from pipelines.runs.comparison_folder import SUBGROUPS
from pipelines.statistics.results import Analysis
from pipelines.statistics.scores import scores
from pipelines.statistics.subgroups import Subgroups, compare_in_groups
from pipelines.statistics.table import CaseTable
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated, counted

#: A column with more values is no variable of groups.
_MOST = 12


@dataclass(frozen=True)
class Groups:
    """The groups of cases.

    Attributes:
        path: the table.
        by_patient: whether the rows are of patients, not of cases.
        variables: variable -> case (or patient) -> group.
        left_out: columns that are no variables, and why.
    """

    path: Path
    by_patient: bool
    variables: dict[str, dict[str, str]]
    left_out: tuple[str, ...]


def read_groups(path: Path) -> Groups:
    """Read a table of cases with their groups.

    Raises:
        UserError: it is no such table, names a case twice, or has no column with 2 to 12 values.
    """
    cells = read_cells(path)
    kinds = [key_of(name) if name else None for name in cells.header]
    named = [*(i for i, name in enumerate(cells.header) if name == "case"),
             *(i for key in ("case", "patient") for i, kind in enumerate(kinds) if kind == key)]  # fmt: skip
    if not named:
        raise UserError(
            f"--subgroups: {path}: no column case or patient; got {abbreviated(cells.header, 12)}; expected one row "
            "per case, such as case,scanner,sex"
        )
    place = named[0]
    names = cells.column(place)
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"--subgroups: {path}: {twice} appears twice; expected one row per case")
    variables: dict[str, dict[str, str]] = {}
    left_out = []
    for column, name in enumerate(cells.header):
        if column == place or kinds[column] in ("case", "patient") or not name:
            continue
        groups = ["" if is_missing(cell) else cell for cell in cells.column(column)]
        values = len(set(groups) - {""})
        if 2 <= values <= _MOST:
            variables[name] = dict(zip(names, groups, strict=True))
        else:
            left_out.append(f"{name} ({counted(values, 'value')})")
    if not variables:
        raise UserError(
            f"--subgroups: {path}: no column with 2 to {_MOST} values; got {abbreviated(left_out, 12) or 'none'}; "
            "expected groups, such as a scanner, or an age in ranges"
        )
    return Groups(path, kinds[place] == "patient", variables, tuple(left_out))


def groups_to_keep(path: Path, folder: Path, manifest: Manifest) -> bytes:
    """The content of a table with groups of a manifest's cases, which a comparison's folder may keep for its reports.

    Raises:
        UserError: the table cannot be used, names none of the cases, or differs from the one in the folder.
    """
    groups = read_groups(path)
    cases = {case.patient if groups.by_patient else case.id for case in manifest.cases}
    named = set().union(*(of.keys() for of in groups.variables.values()))
    if not named & cases:
        raise UserError(
            f"--subgroups: {path}: has no case of '{manifest.name}'; got {min(named)}, for example; expected "
            f"{min(cases)}"
        )
    kept, content = folder / SUBGROUPS, path.read_bytes()
    if kept.is_file() and kept.read_bytes() != content:
        raise UserError(f"--subgroups: {kept} was named before, and {path} differs; pass that file, or another --out")
    return content


def compare_groups(
    table: CaseTable, analysis: Analysis, groups: Groups
) -> tuple[tuple[Subgroups, ...], tuple[str, ...]]:
    """The comparison by group of the primary metric, in the order of the ranking; and notes on the table.

    Raises:
        UserError: there is no reference, or the table names none of the cases.
    """
    if analysis.reference is None:
        raise UserError("--subgroups: got no reference loss, whose differences are compared; expected --reference LOSS")
    found = scores(table, analysis.primary.metric, empty=analysis.empty)
    owners = _owners(table, found.patients, groups.by_patient)
    known = set().union(*(of.keys() for of in groups.variables.values()))
    if not known & owners.keys():
        raise UserError(
            f"--subgroups: {groups.path}: has none of the cases; got {min(known)}, for example; expected {min(owners)}"
        )
    variables, left_out, notes = {}, list(groups.left_out), []
    for name, of_case in groups.variables.items():
        sets: dict[str, set[str]] = {patient: set() for patient in found.patients}
        for case, patient in owners.items():
            if patient in sets and of_case.get(case):
                sets[patient].add(of_case[case])
        several = [patient for patient, of_patient in sets.items() if len(of_patient) > 1]
        if several:
            left_out.append(f"{name} (a {analysis.unit}, such as {several[0]}, has cases of several groups)")
            continue
        variables[name] = [min(of_patient, default="") for of_patient in sets.values()]
        if unknown := [patient for patient, of_patient in sets.items() if not of_patient]:
            number = counted(len(unknown), analysis.unit)
            notes.append(f"{groups.path.name}: {name} is not given for {number} ({abbreviated(unknown)}).")
    if left_out:
        notes.append(f"Columns of {groups.path.name} that are left out: {', '.join(left_out)}.")
    place = {ranked.loss: i for i, ranked in enumerate(analysis.primary.ranking)}
    compared = compare_in_groups(found, analysis.reference, variables, seed=analysis.seed)
    ordered = (
        Subgroups(of.variable, tuple(sorted(of.interactions, key=lambda one: place[one.loss]))) for of in compared
    )
    return tuple(ordered), tuple(notes)


def _owners(table: CaseTable, patients: tuple[str, ...], by_patient: bool) -> dict[str, str]:
    """Case, or the name of a patient -> the patient as in `Scores.patients`, where names may have lost their prefix."""
    full = {str(case): str(name) for case, name in table.frame.groupby("case")["patient"].first().items()}
    prefixed = set(patients) <= set(full.values())
    owners = {}
    for case, name in full.items():
        short = name.split(" ", 1)[1]
        owners[short if by_patient else case] = name if prefixed else short
    return owners
