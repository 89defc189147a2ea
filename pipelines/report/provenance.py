"""The provenance of results, as headings with texts: data, settings, versions, machine, files."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.evaluation.result_folders import Classes
from pipelines.evaluation.sources import Method, ReferenceFiles
from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.statistics.table import CaseTable, cases_by_class
from pipelines.training.run_config import NnunetSettings, RunConfig
from pipelines.utils.files import sha256
from pipelines.utils.text import counted

Facts = tuple[tuple[str, str], ...]
#: Settings that a reader needs to judge a score, and their headings.
_SETTINGS = {
    "network": "network", "epochs": "epochs", "optimizer": "optimizer", "learning_rate": "learning rate",
    "batch_size": "batch size", "patch_size": "patch, voxels", "spacing": "training grid, mm",
    "nsd_tolerance": "NSD's tolerance, mm",
    "device": "device asked for",
}  # fmt: skip
#: Listed with the versions of packages in the result of a run.
_COMMIT = "medloss commit"


def csv_facts(path: Path, table: CaseTable) -> Facts:
    """The provenance of a table of results."""
    frame = table.frame
    facts = [
        ("table", f"{path.name}, {len(frame)} rows"),
        ("its SHA-256", sha256(path)),
        ("losses", ", ".join(table.losses)),
        ("cases", str(frame["case"].nunique())),
    ]
    facts += [(f"{key}s", _distinct(frame[key].unique())) for key in ("fold", "seed") if key in table.given]
    if table.classes:
        facts.append(("classes", _classes(table)))
    return (*facts, report_by())


def folder_facts(folder: Path, plan: Plan, results: dict[str, dict[str, Any]]) -> Facts:
    """The provenance of a comparison, with the results of its finished runs by id."""
    configs = [_config(folder, run) for run in plan.runs if run.id in results]
    settings = [config.settings() for config in configs]
    rates = {c.loss: c.learning_rates[c.loss] for c in configs if c.loss in c.learning_rates}
    versions: list[dict[str, str]] = [result.get("versions") or {} for result in results.values()]
    packages = dict.fromkeys(name for of_run in versions for name in of_run if name != _COMMIT)
    facts = [
        ("data set", plan.manifest_name),
        ("manifest's SHA-256", plan.manifest_sha256),
        ("comparison", f"{plan.id}, started {_date(plan.created)}"),
        ("losses planned", ", ".join(plan.losses)),
        ("folds", _distinct(run.config.fold for run in plan.runs)),
        ("seeds", _distinct(run.config.seed for run in plan.runs)),
        ("runs finished", f"{len(results)} of {len(plan.runs)}"),
        ("trainer", _distinct(_nnunet(config.nnunet) for config in configs if config.nnunet is not None)),
        *((heading, _distinct(of_run.get(name) for of_run in settings)) for name, heading in _SETTINGS.items()),
        ("learning rates of their own", ", ".join(f"{loss} {rate:g}" for loss, rate in rates.items())),
        ("precision", _distinct(result.get("precision") for result in results.values())),
        _machines([result.get("machine") or {} for result in results.values()]),
        *((f"version of {name}", _distinct(of_run.get(name) for of_run in versions)) for name in packages),
        (_COMMIT, "; ".join(dict.fromkeys(of_run[_COMMIT] for of_run in versions if _COMMIT in of_run))),
        report_by(),
    ]
    return tuple(fact for fact in facts if fact[1])


def _nnunet(settings: NnunetSettings) -> str:
    planner = "" if settings.planner is None else f", planned by {settings.planner}"
    return f"nnU-Net, {settings.configuration}{planner}, {settings.iterations} steps per epoch"


def _config(folder: Path, run: PlannedRun) -> RunConfig:
    try:
        # The config of the run has the settings that the plan leaves open.
        return run_folder(folder, run).config or run.config
    except ValueError:
        return run.config  # written by another version; the scores do not depend on it


def _machines(found: list[dict[str, str]]) -> tuple[str, str]:
    """The machines that trained runs, with the number of runs if there are several; earlier versions recorded none."""
    counts = Counter(_machine(machine) for machine in found if machine)
    if not counts:
        return "machine", ""
    unknown = sum(not machine for machine in found)
    if len(counts) == 1 and not unknown:
        return "machine", next(iter(counts))
    machines = [f"{machine} ({counted(count, 'run')})" for machine, count in counts.most_common()]
    machines += [f"not recorded ({counted(unknown, 'run')})"] if unknown else []
    return ("machine" if len(counts) == 1 else f"{len(counts)} machines"), "; ".join(machines)


def _machine(machine: dict[str, str]) -> str:
    cores = {"cores": counted(int(machine["cores"]), "core")} if "cores" in machine else {}
    parts = machine | cores
    return ", ".join(parts[name] for name in ("processor", "cores", "memory", "gpu", "system") if parts.get(name))


def _distinct(values: Any) -> str:
    """The distinct values, in the order of their first appearance."""
    return ", ".join(dict.fromkeys(_shown(value) for value in values if value is not None))


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


#: Names of folders that do not describe their contents.
_PLAIN = {"labels", "labelsTr", "labelsTs", "gt_segmentations", "references", "labels_test", "gt"}


def title(methods: Sequence[Method], references: ReferenceFiles) -> str:
    """The name of the data set: nnU-Net's, or that of the folder of references."""
    datasets = {method.nnunet.dataset for method in methods if method.nnunet is not None} - {None}
    if len(datasets) == 1:
        return str(datasets.pop())
    folder = references.folder.resolve()
    return folder.parent.name if folder.name in _PLAIN and folder.parent.name else folder.name


def folders_facts(
    methods: Sequence[Method],
    references: ReferenceFiles,
    classes: Classes,
    hashed: Mapping[Path, str],
    tolerance: float,
    predictions: Mapping[str, Mapping[str, Path]],
    agreed: Sequence[str],
) -> Facts:
    """The provenance of folders of predictions.

    Args:
        methods: the methods with their folders.
        references: the reference labels.
        classes: the evaluated classes.
        hashed: SHA-256 of every file.
        tolerance: tolerance of the NSD, mm.
        predictions: method -> case -> prediction.
        agreed: methods whose Dice equals that of nnU-Net's summaries.
    """
    cases = sorted(set().union(*predictions.values()))
    facts = [
        ("references", str(references.folder)),
        ("references' SHA-256", _digest(hashed[references.files[case]] for case in cases)),
        ("cases", str(len(cases))),
        ("classes", classes.as_option()),
        ("NSD's tolerance", f"{tolerance:g} mm"),
    ]
    for method in methods:
        files = predictions[method.name]
        parts = [str(method.path), f"{len(files)} predictions"]
        if method.nnunet is not None and method.nnunet.validations:
            parts.append(f"nnU-Net's validation of fold {', '.join(method.nnunet.validations)}, pooled")
        parts.append(f"SHA-256 {_digest(hashed[file] for _, file in sorted(files.items()))}")
        facts.append((method.name, "; ".join(parts)))
    if agreed:
        facts.append(("Dice equals nnU-Net's own", f"{', '.join(agreed)}: every summary.json"))
    return (*facts, report_by())


def tables_facts(named: Mapping[str, Path], table: CaseTable) -> Facts:
    """The provenance of tables of one method each."""
    facts = [(name, f"{path}; SHA-256 {sha256(path)}") for name, path in named.items()]
    facts += [("cases", str(table.frame["case"].nunique())), ("classes", _classes(table) or "one")]
    return (*facts, report_by())


def _classes(table: CaseTable) -> str:
    """The names of the classes, with their numbers of cases if these differ."""
    cases = cases_by_class(table)
    return ", ".join(f"{name} ({counted(cases[name], 'case')})" if cases else name for name in table.classes)


def _digest(digests: Iterable[str]) -> str:
    """The SHA-256 of the SHA-256 of several files, in the order of the cases."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def report_by() -> tuple[str, str]:
    """The version and the time of the report, as a fact."""
    return "report by", f"medloss {version('medloss')}, {_date(time.time())}"
