"""`medloss report`: which loss is best, and whether the difference is real."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import INPUT, OUTPUT, PATH, PLACE, VERDICT, GroupedCommand, option, take
from pipelines.cli.compare_options import EMPTY_HELP, NON_INFERIOR_HELP, SUBGROUPS_HELP, refuse_verdict
from pipelines.cli.primary_metrics import chosen_primary, primary_metrics, read_margins
from pipelines.utils import UserError
from pipelines.utils.text import terminal_bar, terminal_note

if TYPE_CHECKING:  # pandas and pydantic take seconds to import
    from pipelines.report.collect import Collected
    from pipelines.report.data_sets import Source
    from pipelines.report.external_results import ExternalResults

#: In the report's folder: all rows of the table, for another report.
CASES = "cases.csv"


class ManyValues(GroupedCommand):
    """A command with options that take every word up to the next one that begins with `-`, as in `--cases a b`.

    click has this for arguments alone. `--cases a b` becomes `--cases a --cases b`, for options of `multiple=True`.
    """

    def __init__(self, *arguments: Any, many: tuple[str, ...] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.many = many

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the option before each of its words."""
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, args: list[str]) -> Iterator[str]:
        taking, first = "", False
        for place, word in enumerate(args):
            if word == "--":
                yield from args[place:]
                return
            if word.startswith("-") and word != "-":
                option = word.partition("=")[0]
                taking, first = (option, "=" not in word) if option in self.many else ("", False)
                yield word
            elif taking and not first:
                yield from (taking, word)
            else:
                first = False
                yield word


@click.command(cls=ManyValues, many=("--predictions", "--cases"))
@click.argument("folders", metavar="[FOLDER]...", type=PATH, nargs=-1)
@option("--cases", INPUT, "FILE.csv ...",
        "Instead of FOLDER: a table of several methods: a row per case and method, or a column per method. Or two or "
        "more of one method each, as NAME=FILE: MIST's results.csv, nnU-Net's summary.json, the output of `medloss "
        "evaluate`.", multiple=True)  # fmt: skip
@option("--columns", INPUT, "LIST", "What columns of --cases are, such as case=ID,loss=method,dice=DSC.")
@option("--predictions", INPUT, "NAME=DIR ...",
        "Instead of FOLDER: two or more folders of finished predictions: NIfTI label maps, or nnU-Net's results.",
        multiple=True)  # fmt: skip
@option("--labels", INPUT, "DIR", "References; default: those that nnU-Net keeps.", type=PATH)
@option("--classes", INPUT, "LIST",
        "Names of the labels, such as 1=anterior,2=posterior; 1+2=whole; 3=ignore. Default: nnU-Net's.")  # fmt: skip
@option("--folds", INPUT, "LIST", "Only these of nnU-Net's folds, such as 0,1,2.")
@option("--metrics", INPUT, "LIST",
        "Metrics of predictions, such as default,lesion_f1; all; default: the default ones and --metric.")  # fmt: skip
@option("--tolerance", INPUT, "MM",
        "Tolerance of the NSD of predictions; default: 1 or the largest voxel side, whichever is more.",
        type=float)  # fmt: skip
@option("--connectivity", INPUT, "N", "Neighbours of a voxel in a lesion: 6, 18 or 26, in 2D 4 or 8; default: all.",
        type=int)  # fmt: skip
@option("--overlap", INPUT, "IOU", "IoU above which two lesions match; default: 0.5.", type=float)
@option("--cache-dir", INPUT, "DIR", "Folder of the metrics computed before; default: cache in the folder of --out.",
        type=PATH)  # fmt: skip
@option("--jobs", PLACE, "N", "Processes that compute metrics; default: one per core.", type=int)
@option("--out", OUTPUT, "DIR", "Folder of the report; default: FOLDER/report.", type=PATH)
@option("--reference", VERDICT, "LOSS",
        "Loss that all others are compared with, or none; default: that of the comparison.")  # fmt: skip
@option(
    "--metric",
    VERDICT,
    "LIST",
    "Primary metric; default: that of the comparison, or dice. Several, such as dice,nsd, are tested as one family.",
)
@option("--margin", VERDICT, "VALUE",
        "Largest difference in the metric that does not matter; default: that of the comparison, or 0.01. Of several "
        "metrics such as dice=0.01,hd95=1.")  # fmt: skip
@option("--empty", VERDICT, "RULE", f"{EMPTY_HELP} Default: that of the comparison, or one.",
        type=click.Choice(["one", "exclude", "worst"]))  # fmt: skip
@option("--non-inferior", VERDICT, None, NON_INFERIOR_HELP, is_flag=True)
@option("--subgroups", VERDICT, "FILE", SUBGROUPS_HELP, type=PATH)
def report(
    folders: tuple[Path, ...], cases: tuple[str, ...], predictions: tuple[str, ...], out: Path | None, **options: Any
) -> None:
    """Write the report of the comparison in FOLDER, of a table of results, or of finished predictions: one HTML page.

    The metrics of predictions are computed per case, as by `medloss evaluate`, and kept for the next call. A case that
    is missing in one of the folders has the worst score there.

    Several FOLDERs, of comparisons or reports on different data sets, are put together: the data set is the unit.

    Choose reference, metric and margin before you see results, in `compare`, which keeps them. The page says so if
    they are changed here.
    """
    from pipelines.report import claimed
    from pipelines.runs.comparison_folder import require_plan

    if len(folders) > 1:
        _report_data_sets(folders, out, cases or predictions, options)
        return
    folder = folders[0] if folders else None
    computation = take(options, *_COMPUTATION)
    if (folder is not None) + bool(cases) + bool(predictions) != 1:
        raise UserError(
            "pass one of the three: the FOLDER of a comparison, --cases FILE.csv, or --predictions NAME=DIR NAME=DIR"
        )
    columns = options.pop("columns")
    if columns is not None and folder is not None:
        raise UserError("--columns belongs to --cases; pass that, too")
    if not predictions and _is_given(computation):
        raise UserError(f"{_COMPUTATION_FLAGS} belong to --predictions; pass that, too")
    out = out or (folder / "report" if folder is not None else None)
    if out is None:
        needed = "--predictions" if predictions else "--cases"
        raise UserError(f"--out: got none; expected a folder for the report, which {needed} needs")
    refuse_verdict(options["metric"], options["margin"])
    options["metric"] = _full_names(options["metric"])
    if len(cases) == 1 and _is_one_table(cases[0]):
        from pipelines.report.data_sets import task_sources  # not above, for the time that pandas takes

        tasks, description = task_sources(Path(cases[0]), _read_columns(columns), options["metric"])
        if tasks:
            click.echo(description)
            _write_data_sets(lambda: tasks, out, options)
            return
    subgroups = options.pop("subgroups")
    if folder is not None:
        require_plan(folder)
    if subgroups is not None:
        from pipelines.report.subgroups import read_groups  # not above, for the time that pandas takes

        options["groups"] = read_groups(subgroups)
    with claimed(out):
        if folder is not None:
            from pipelines.report.collect import from_folder  # not above, for the time that pandas takes

            collected = from_folder(folder)
            for line in collected.notes:
                click.echo(line)
        else:
            metric = options["metric"]
            collected, options["reference"] = _contents(
                cases, predictions, out, options["reference"], computation, metric, columns
            )
        with terminal_note("comparing and drawing"):
            from pipelines.report.write import write_report  # and matplotlib

            options["non_inferior"] = options["non_inferior"] or None
            options |= _primary(options["metric"], options["margin"], collected)
            path, analysis = write_report(collected, out, **options)
    from pipelines.statistics.subgroups import subgroup_notes
    from pipelines.statistics.verdict_text import closing_notes

    for line in (analysis.verdict, *closing_notes(analysis), *subgroup_notes(analysis.subgroups)):
        click.echo(line)
    click.echo(f"report    {path}")


def _full_names(metric: str | None) -> str | None:
    """The metrics of a list by their full names, such as `hd95_mm` for `hd95`."""
    return None if metric is None else ",".join(primary_metrics(metric))


def _report_data_sets(
    folders: Sequence[Path], out: Path | None, others: Sequence[str], options: dict[str, Any]
) -> None:
    """The report over several data sets, from their folders."""
    if out is None:
        raise UserError("--out: got none; expected a folder for the report, which several data sets need")
    if others:
        raise UserError("pass either the folders of several data sets, or --cases or --predictions of one")
    from pipelines.report.data_sets import read_source  # not above, for the time that pandas takes

    refuse_verdict(options["metric"], None)
    options["metric"] = _full_names(options["metric"])
    if "," in (options["metric"] or ""):
        raise UserError(f"--metric: got {options['metric']}; several data sets are compared by one metric")
    _write_data_sets(lambda: [read_source(folder) for folder in folders], out, options)


def _write_data_sets(read: "Callable[[], list[Source]]", out: Path, options: dict[str, Any]) -> None:
    metric, reference = options.pop("metric"), options.pop("reference")
    if given := [name for name, value in options.items() if value not in (None, False, ())]:
        flag = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{flag}: goes with one data set, and there are several; pass it to their own reports")
    from pipelines.report import claimed
    from pipelines.report.data_sets import write_data_sets

    with claimed(out), terminal_note("comparing and drawing"):
        path, found = write_data_sets(read(), out, metric, reference)
    for line in (found.verdict, *found.caveats):
        click.echo(line)
    click.echo(f"report    {path}")


#: How the metrics of finished predictions are computed.
_COMPUTATION = (
    "labels", "classes", "folds", "metrics", "tolerance", "connectivity", "overlap", "jobs", "cache_dir",
)  # fmt: skip
_COMPUTATION_FLAGS = (
    "--labels, --classes, --folds, --metrics, --tolerance, --connectivity, --overlap, --jobs and --cache-dir"
)


def _primary(metric: str | None, margin: str | None, collected: "Collected") -> dict[str, Any]:
    """The primary metrics and margins as `write_report` takes them; what is not named is that of the plan."""
    if metric is None and margin is None:
        return {}
    planned = {collected.metric: collected.margin, **collected.further_metrics}
    names = tuple(planned) if metric is None else primary_metrics(metric)
    planned.setdefault(names[0], collected.margin)
    chosen = chosen_primary(names, None if margin is None else read_margins(margin), planned)
    return {
        "metric": None if metric is None else chosen.metric, "margin": chosen.margin, "further_metrics": chosen.further
    }  # fmt: skip


def _is_given(computation: dict[str, Any]) -> bool:
    return any(value is not None for value in computation.values())


def _contents(
    cases: Sequence[str],
    predictions: Sequence[str],
    out: Path,
    reference: str | None,
    computation: dict[str, Any],
    metric: str | None,
    columns: str | None,
) -> "tuple[Collected, str | None]":
    """The report's contents from `--cases` or `--predictions`, of which one is empty, and the reference."""
    from pipelines.evaluation.sources import read_names
    from pipelines.runs.plan import DEFAULT_REFERENCE, NO_REFERENCE

    if len(cases) == 1 and _is_one_table(cases[0]):
        from pipelines.report.collect import from_csv

        collected = from_csv(Path(cases[0]), _read_columns(columns), metric)
        for line in collected.notes:
            click.echo(line)
        return collected, reference
    names = read_names(predictions or cases, "--predictions" if predictions else "--cases")
    if predictions and reference not in (None, NO_REFERENCE, *names):
        # Refused before the metrics are computed.
        raise UserError(f"--reference: got {reference}; expected one of {', '.join(names)}, or {NO_REFERENCE}")
    tables = [name for name, path in names.items() if path.is_file()]
    if predictions and tables and len(tables) < len(names):
        raise UserError(
            f"--predictions: {tables[0]} is a table, and others are folders, measured otherwise; expected all of a kind"
        )
    if predictions and tables and _is_given(computation):
        raise UserError(f"{_COMPUTATION_FLAGS} belong to folders of predictions, and tables were named")
    if columns is not None and not (cases or tables):
        raise UserError("--columns belongs to tables, and folders of predictions were named")
    from pipelines.report.external_results import from_tables  # not above, for the time that pandas takes

    if cases or tables:
        found = from_tables(names, _read_columns(columns), metric)
    else:
        found = _measured(names, out, computation, metric)
    for line in found.messages:
        click.echo(line)
    collected = found.collected
    if reference is None and found.reference is not None and DEFAULT_REFERENCE not in collected.table.losses:
        reference = found.reference
        note = f"The reference is {reference}, nnU-Net's own trainer (Dice + cross entropy), since none was named."
        collected = replace(collected, notes=(*collected.notes, note))
    return collected, reference


def _is_one_table(text: str) -> bool:
    """Whether a value of --cases is a path, and not NAME=PATH."""
    return "=" not in text or Path(text).is_file()


def _read_columns(text: str | None) -> dict[str, str]:
    from pipelines.report.result_tables import read_columns

    return {} if text is None else read_columns(text)


def _measured(named: dict[str, Path], out: Path, computation: dict[str, Any], metric: str | None) -> "ExternalResults":
    """The metrics of finished predictions."""
    from pipelines.cli.settings import metric_names, whole_numbers
    from pipelines.evaluation.metrics.base import LESION_OVERLAP, LesionRule, MetricSettings, with_default
    from pipelines.evaluation.result_folders import read_classes
    from pipelines.utils.files import write_text
    from pipelines.utils.machine import available_cores

    classes, folds, jobs = computation["classes"], computation["folds"], computation["jobs"]
    tolerance, names = computation["tolerance"], computation["metrics"]
    primary = primary_metrics(metric or "dice")
    chosen = with_default(primary)
    if names is not None:
        chosen = metric_names(",".join([names, *primary]))
    overlap = LESION_OVERLAP if computation["overlap"] is None else computation["overlap"]
    lesions = LesionRule(computation["connectivity"], overlap)
    if tolerance is not None:
        MetricSettings(nsd_tolerance_mm=tolerance)  # refused before any file is read
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: got {jobs}; expected at least 1")
    # Not above, for the time that pandas takes.
    from pipelines.report.external_results import EvaluationSettings, from_predictions

    settings = EvaluationSettings(
        labels=computation["labels"],
        classes=None if classes is None else read_classes(classes),
        folds=None if folds is None else whole_numbers(folds, "--folds"),
        metrics=chosen,
        nsd_tolerance_mm=tolerance,
        lesions=lesions,
        jobs=jobs or available_cores(),
    )
    cache = computation["cache_dir"] or out / "cache"
    found = from_predictions(named, cache, settings, bar=terminal_bar, message=lambda line: click.echo(line, err=True))
    try:
        write_text(out / CASES, found.rows.to_csv(index=False))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
    return found
