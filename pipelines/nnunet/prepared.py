"""A manifest's cases as nnU-Net plans and preprocesses them: once, for all runs of a comparison."""

import hashlib
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from pipelines.dataset.data_root import resolve_data
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.errors import UserError
from pipelines.files import read_json, write_json
from pipelines.locks import held_lock, is_held
from pipelines.nnunet.folders import Configuration
from pipelines.nnunet.raw_dataset import write_raw_dataset
from pipelines.training.run_config import NnunetSettings, RunConfig

_MARK = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """What nnU-Net has made of a data set.

    Attributes:
        folder: with nnU-Net's `raw` and `preprocessed` in it.
        dataset: `Dataset<number>_<name>`.
        plans: what its plans are called.
    """

    folder: Path
    dataset: str
    plans: str

    def environment(self, results: Path) -> dict[str, str]:
        """The variables by which nnU-Net finds it, and where it then writes."""
        return {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(results),
        }

    def content(self, name: str) -> dict[str, Any]:
        """One of its files: `dataset`, or the plans by their name."""
        found: dict[str, Any] = read_json(self.folder / "preprocessed" / self.dataset / f"{name}.json")
        return found


def require_nnunet() -> None:
    """Raise a `UserError` where nnU-Net is not installed; it is looked for, not imported."""
    if find_spec("nnunetv2") is None:
        raise UserError(
            "--trainer nnunet: nnU-Net is not installed here; in an environment of its own, `pip install torch "
            "torchvision`, then `pip install '.[nnunet]'` in a checkout of medloss: see docs/nnunet.md"
        )


def prepare(config: RunConfig, cache: Path, processes: int, log: Path, tell: Callable[[str], None]) -> Prepared:
    """Have nnU-Net plan and preprocess a data set, unless it is there.

    Args:
        config: of any of the runs.
        cache: the folder of prepared cases.
        processes: at a time.
        log: gets what nnU-Net says.
        tell: called with lines for people.

    Raises:
        UserError: nnU-Net cannot take the data, fails, or plans no such configuration.
    """
    manifest, settings = load_manifest(config.manifest), _settings(config)
    folder = _folder(manifest, settings, cache)
    lock = folder.with_name(f"{folder.name}.lock")
    if is_held(lock):  # by another comparison, whose cases these are, too
        tell(f"waiting: another process prepares these cases, in {folder}")
    with held_lock(lock, math.inf):
        if (found := _found(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
            tell(f"preparing: nnU-Net plans and preprocesses {len(manifest.cases)} cases; it says how in {log}")
            found = _prepare(manifest, settings, root, folder, processes, log)
    configurations = found.content(found.plans)["configurations"]
    if settings.configuration not in configurations:
        raise UserError(
            f"--nnunet-configuration: got {settings.configuration}; for '{manifest.name}' nnU-Net plans "
            f"{', '.join(name for name in configurations if name in get_args(Configuration))}"
        )
    return found


def find_prepared(config: RunConfig, cache: Path) -> Prepared:
    """What `prepare` has left in a cache.

    Raises:
        UserError: it is not there, or nnU-Net is not.
    """
    require_nnunet()
    folder = _folder(load_manifest(config.manifest), _settings(config), cache)
    found = _found(folder)
    if found is None:
        raise UserError(f"{folder}: no cases that nnU-Net has prepared; call `medloss compare` as before, which does")
    return found


def _settings(config: RunConfig) -> NnunetSettings:
    assert config.nnunet is not None
    return config.nnunet


def _folder(manifest: Manifest, settings: NnunetSettings, cache: Path) -> Path:
    """Named by all that decides what is in it."""
    decisive = [manifest.sha256, settings.configuration, settings.planner or "", version("nnunetv2")]
    return cache / f"nnunet-{hashlib.sha256(' '.join(decisive).encode()).hexdigest()[:12]}"


def _found(folder: Path) -> Prepared | None:
    mark = read_json(folder / _MARK)
    return None if mark is None else Prepared(folder, mark["dataset"], mark["plans"])


def _prepare(
    manifest: Manifest, settings: NnunetSettings, root: Path, folder: Path, processes: int, log: Path
) -> Prepared:
    dataset = write_raw_dataset(manifest, root, folder / "raw").name
    named = Prepared(folder, dataset, "").environment(folder / "results")
    own = {"nnUNet_def_n_proc": str(processes), "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    number, at_once = dataset[len("Dataset") :].split("_")[0], str(processes)
    command = [sys.executable, "-m", "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "-d", number]
    command += ["-c", settings.configuration, "-np", at_once, "-npfp", at_once]
    command += [] if settings.planner is None else ["-pl", settings.planner]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        ended = subprocess.run(
            command, env=os.environ | named | own, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    if ended.returncode != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
        told = lines[-1] if lines else f"exit code {ended.returncode}"
        raise UserError(f"nnU-Net could not prepare the cases: {told[:300]}; see {log}")
    places = (folder / "preprocessed" / dataset).glob("*.json")
    plans = next(path.stem for path in places if "plans_name" in read_json(path))
    write_json(folder / _MARK, {"dataset": dataset, "plans": plans})
    return Prepared(folder, dataset, plans)
