"""What was measured, in words, for the report."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.comparison.finished.classes import Classes
from pipelines.comparison.finished.methods import Method
from pipelines.comparison.finished.references import References
from pipelines.comparison.statistics import CaseTable
from pipelines.files import sha256

Facts = tuple[tuple[str, str], ...]
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
        ("classes", classes.told()),
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
