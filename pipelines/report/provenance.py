"""What was run or measured, in words: data, settings, versions, machine, files."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.evaluation.result_folders import Classes
from pipelines.evaluation.sources import Method, References
from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.statistics.table import CaseTable
from pipelines.training.run_config import NnunetSettings, RunConfig
from pipelines.utils.files import sha256

# What was run, in words: data, settings, versions, and the machine.

Facts = tuple[tuple[str, str], ...]
#: Settings that decide what a score is worth, and how they are called.
_SETTINGS = {
    "network": "network", "epochs": "epochs", "optimizer": "optimizer", "learning_rate": "learning rate",
    "batch_size": "batch size", "patch_size": "patch, voxels", "spacing": "training grid, mm",
    "device": "device asked for",
}  # fmt: skip
#: Beside the versions' packages in a run's result.
_COMMIT = "medloss commit"


def csv_facts(path: Path, table: CaseTable) -> Facts:
    """Of a table of results."""
    frame = table.frame
    facts = [
        ("table", f"{path.name}, {len(frame)} rows"),
        ("its SHA-256", sha256(path)),
        ("losses", ", ".join(table.losses)),
        ("cases", str(frame["case"].nunique())),
    ]
    facts += [(f"{key}s", _several(frame[key].unique())) for key in ("fold", "seed") if key in table.given]
    if table.classes:
        facts.append(("classes", ", ".join(table.classes)))
    return (*facts, ("report by", f"medloss {version('medloss')}, {_date(time.time())}"))


def folder_facts(folder: Path, plan: Plan, results: dict[str, dict[str, Any]]) -> Facts:
    """Of a comparison's folder.

    Args:
        folder: the comparison's.
        plan: its plan.
        results: of the finished runs.
    """
    configs = [_config(folder, run) for run in plan.runs if run.id in results]
    facts = [
        ("data set", plan.manifest_name),
        ("manifest's SHA-256", plan.manifest_sha256),
        ("comparison", f"{plan.id}, begun {_date(plan.created)}"),
        ("losses planned", ", ".join(plan.losses)),
        ("folds", _several(run.config.fold for run in plan.runs)),
        ("seeds", _several(run.config.seed for run in plan.runs)),
        ("runs finished", f"{len(results)} of {len(plan.runs)}"),
    ]
    facts.append(("trainer", _several(_nnunet(config.nnunet) for config in configs if config.nnunet is not None)))
    settings = [config.settings() for config in configs]
    facts += [
        (heading, told)
        for field, heading in _SETTINGS.items()
        if (told := _several(own.get(field) for own in settings))
    ]
    rates = {c.loss: c.learning_rates[c.loss] for c in configs if c.loss in c.learning_rates}
    if rates:
        facts.append(("learning rates of their own", ", ".join(f"{loss} {rate:g}" for loss, rate in rates.items())))
    facts.append(("precision", _several(own.get("precision") for own in results.values())))
    facts.append(_machines([own.get("machine") or {} for own in results.values()]))
    versions: list[dict[str, str]] = [own.get("versions") or {} for own in results.values()]
    packages = dict.fromkeys(name for own in versions for name in own if name != _COMMIT)
    facts += [(f"version of {name}", _several(own.get(name) for own in versions)) for name in packages]
    facts.append((_COMMIT, "; ".join(dict.fromkeys(own[_COMMIT] for own in versions if _COMMIT in own))))
    facts.append(("report by", f"medloss {version('medloss')}, {_date(time.time())}"))
    return tuple(fact for fact in facts if fact[1])


def _nnunet(settings: NnunetSettings) -> str:
    planner = "" if settings.planner is None else f", planned by {settings.planner}"
    return f"nnU-Net, {settings.configuration}{planner}, {settings.iterations} steps an epoch"


def _config(folder: Path, run: PlannedRun) -> RunConfig:
    try:
        # It has filled in what the plan leaves open.
        return run_folder(folder, run).config or run.config
    except ValueError:
        return run.config  # of another version; the scores do not hang on it


def _machines(found: list[dict[str, str]]) -> tuple[str, str]:
    """Each machine that trained runs; of several, how many it trained. Runs of an earlier version say nothing."""
    counts = Counter(_machine(own) for own in found if own)
    if not counts:
        return "machine", ""
    unknown = sum(not own for own in found)
    if len(counts) == 1 and not unknown:
        return "machine", next(iter(counts))
    told = [f"{machine} ({_runs(count)})" for machine, count in counts.most_common()]
    told += [f"not recorded ({_runs(unknown)})"] if unknown else []
    return ("machine" if len(counts) == 1 else f"{len(counts)} machines"), "; ".join(told)


def _machine(own: dict[str, str]) -> str:
    cores = own.get("cores")
    parts = [own.get("processor"), cores and ("1 core" if cores == "1" else f"{cores} cores")]
    parts += [own.get("memory"), own.get("gpu"), own.get("system")]
    return ", ".join(str(part) for part in parts if part)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _several(values: Any) -> str:
    """Each value once, in the order in which they come."""
    return ", ".join(dict.fromkeys(_shown(value) for value in values if value is not None))


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(_shown(own) for own in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


# What was measured, in words, for the report.

#: Names of folders that say nothing of what is in them.
_PLAIN = {"labels", "labelsTr", "labelsTs", "gt_segmentations", "references", "labels_test", "gt"}


def title(methods: Sequence[Method], references: References) -> str:
    """What the data set is called: by nnU-Net, or as the references' folder is."""
    datasets = {method.nnunet.dataset for method in methods if method.nnunet is not None} - {None}
    if len(datasets) == 1:
        return str(datasets.pop())
    folder = references.folder.resolve()
    return folder.parent.name if folder.name in _PLAIN and folder.parent.name else folder.name


def folders_facts(
    methods: Sequence[Method],
    references: References,
    classes: Classes,
    hashed: Mapping[Path, str],
    tolerance: float,
    owned: Mapping[str, Mapping[str, Path]],
    agreed: Sequence[str],
) -> Facts:
    """Of folders of predictions.

    Args:
        methods: the folders.
        references: what they were measured by.
        classes: what was measured.
        hashed: every file's SHA-256.
        tolerance: of the NSD, mm.
        owned: method -> case -> prediction.
        agreed: methods whose summaries, nnU-Net's own, say the same.
    """
    cases = sorted(set().union(*owned.values()))
    facts = [
        ("references", str(references.folder)),
        ("references' SHA-256", _digest(hashed[references.files[case]] for case in cases)),
        ("cases", str(len(cases))),
        ("classes", classes.as_option()),
        ("NSD's tolerance", f"{tolerance:g} mm"),
    ]
    for method in methods:
        told = [str(method.path), f"{len(owned[method.name])} predictions"]
        if method.nnunet is not None and method.nnunet.validations:
            told.append(f"nnU-Net's validation of fold {', '.join(method.nnunet.validations)}, pooled")
        told.append(f"SHA-256 {_digest(hashed[file] for _, file in sorted(owned[method.name].items()))}")
        facts.append((method.name, "; ".join(told)))
    if agreed:
        facts.append(("Dice equals nnU-Net's own", f"{', '.join(agreed)}: every summary.json"))
    return (*facts, _made())


def tables_facts(named: Mapping[str, Path], table: CaseTable) -> Facts:
    """Of tables of one method each."""
    facts = [(name, f"{path}; SHA-256 {sha256(path)}") for name, path in named.items()]
    facts += [("cases", str(table.frame["case"].nunique())), ("classes", ", ".join(table.classes) or "one")]
    return (*facts, _made())


def _digest(digests: Iterable[str]) -> str:
    """Of several files: the SHA-256 of theirs, in the order of the cases."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _made() -> tuple[str, str]:
    return "report by", f"medloss {version('medloss')}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"
