"""The imports of each command: errors in a call, and short answers, do not wait for the large packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_comparison import made_comparison

import medloss
from medloss.loss_entry import REGISTERED
from medloss.names import loss_names

#: Calls `medloss` with its arguments, and prints what was imported for it as its last line.
_PROBE = """
import json, sys
from pipelines.cli import main
try:
    main()
    code = 0
except SystemExit as end:
    code = end.code
print()
print(json.dumps([code, list(sys.modules)]))
"""
_TRAINING = ("torch", "monai", "ignite", "mlflow", "SimpleITK", "numba", "triton", "nnunetv2", "sklearn")
#: Of scipy by its parts: nibabel asks whether scipy is there, which takes no time.
_REPORT = ("pandas", "matplotlib", "scipy.special", "scipy.ndimage", "scipy.spatial", "scipy.stats", "scipy.linalg")
_ALL = (*_TRAINING, *_REPORT)
_MORE = (*_ALL, "numpy", "pydantic", "yaml", "rich", "nibabel")

#: The arguments, the exit code, what is printed, and what must not be imported.
_ROWS: list[tuple[str, int, str, tuple[str, ...]]] = [
    ("", 0, "I have predictions, of networks trained elsewhere", _MORE),
    ("--help", 0, "Train one network with one loss", _MORE),
    ("doctor --help", 0, "what is slow on this machine and why", _MORE),
    ("compare --help", 0, "Train every loss on MANIFEST", _MORE),
    ("train --help", 0, "Train one network with one loss", _MORE),
    ("report --help", 0, "Write the report", _MORE),
    ("trian", 2, "No such command 'trian'. Did you mean 'train'?", _MORE),
    ("nnunet exprot x.pth", 2, "No such command 'exprot'. Did you mean 'export'?", _MORE),
    ("compare phantom --out {out} --epoch 3", 2, "No such option", _MORE),
    ("compare phantom --losses dice,focl --out {out}", 2, "no loss 'focl'; did you mean 'focal'?", _ALL),
    ("compare phantom --reference dise+focal --out {out}", 2, "no loss 'dise'; did you mean 'dice'?", _ALL),
    ("compare phantm --out {out}", 2, "no manifest 'phantm'", _ALL),
    ("compare phantom --metric dicee --out {out}", 2, "--metric: got 'dicee'", _ALL),
    ("compare phantom --folds 9 --out {out}", 2, "fold", _ALL),
    ("compare phantom --seeds 0,0 --out {out}", 2, "--seeds: one is repeated", _ALL),
    ("compare phantom --patch 3,3,3 --out {out}", 2, "patch size: got (3, 3, 3)", _ALL),
    ("compare phantom --set lrr=1 --out {out}", 2, "no setting 'lrr'; did you mean lr?", _ALL),
    ("train phantom --set lrr=1 --out {out}", 2, "no setting 'lrr'; did you mean lr?", _ALL),
    ("compare phantom --recipe quik --out {out}", 2, "recipe: got 'quik'", _ALL),
    ("compare phantom --out {file}/out", 2, "--out: cannot write in {file}/out: Not a directory", _ALL),
    ("compare phantom --tracking-uri x --out {out}", 2, "--tracking-uri: got 'x'", _ALL),
    ("train phantom --loss dise --out {out}", 2, "no loss 'dise'; did you mean 'dice'?", _ALL),
    ("train phantm --out {out}", 2, "no manifest 'phantm'", _ALL),
    ("train phantom --out {file}/out", 2, "--out: cannot write in {file}/out: Not a directory", _ALL),
    ("train phantom --resume --out {out}", 2, "holds no checkpoint", _ALL),
    ("predict x.nii.gz --run {out} --out {out}", 2, "--run: {out}: no such folder", _ALL),
    ("predict --model {file} --manifest phantm --out {out}", 2, "no manifest 'phantm'", _ALL),
    ("predict {image} --model {file} --out {file}/out", 2, "--out: cannot write in {file}/out", _ALL),
    ("evaluate {out} --manifest phantm", 2, "no manifest 'phantm'", _ALL),
    ("evaluate {out} --labels {out} --out {file}/a.csv", 2, "--out: {file}/a.csv cannot be written", _ALL),
    ("report {out}", 2, "{out} holds no comparison", _ALL),
    ("report {made} --metric dicee", 2, "--metric: got 'dicee'", _ALL),
    ("report {made} --out {file}/out", 2, "--out: {file}/out cannot be written", _ALL),
    ("explain --loss dise --image {out} --label {out}", 2, "no loss 'dise'", _ALL),
    ("gallery --loss dise --out {out}", 2, "no loss 'dise'", _ALL),
    ("losses dise", 2, "no loss 'dise'; did you mean 'dice'?", _ALL),
    ("check phantm", 2, "no manifest 'phantm'", _ALL),
    ("worker {out}", 2, "{out} holds no comparison", _ALL),
    ("status {out}", 2, "{out} holds no comparison", _ALL),
    ("status {made}", 0, "2 runs: 2 done", _ALL),
    # A loss's recipe describes what was trained, and the losses import torch.
    ("report {made}", 0, "report.html", _TRAINING[1:]),
    ("compare phantom --losses dice@mona --out {out}", 2, "dice@mona: no preset 'mona'; did you mean 'monai'?", _ALL),
    ("train phantom --loss focal@nnunet --out {out}", 2, "focal@nnunet: nnunet has no focal; the presets", _ALL),
    ("losses", 0, "soft overlap", ("torch._dynamo", "monai", "ignite", "mlflow", "SimpleITK", *_REPORT)),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A comparison, a file, an image by its name, and a folder that does not exist."""
    folder = tmp_path_factory.mktemp("startup")
    made_comparison(folder / "made", ["dice", "focal"])
    for name in ("file", "x.nii.gz"):
        (folder / name).touch()
    return {"made": folder / "made", "file": folder / "file", "image": folder / "x.nii.gz", "out": folder / "out"}


def _run(program: str, *arguments: str) -> tuple[str, int, set[str]]:
    """What a program prints in a separate process, its exit code, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    return printed + done.stderr, code, set(modules)


@pytest.mark.parametrize(("arguments", "code", "expected", "forbidden"), _ROWS, ids=[row[0] for row in _ROWS])
def test_a_command_imports_no_more_than_it_uses(
    arguments: str, code: int, expected: str, forbidden: tuple[str, ...], places: dict[str, Path]
) -> None:
    printed, got, modules = _run(_PROBE, *(word.format(**places) for word in arguments.split()))
    assert expected.format(**places) in " ".join(printed.split())
    assert got == code
    assert not modules & set(forbidden)
    assert not places["out"].exists()


def test_no_warning_of_an_import_ends_a_command_that_makes_errors_of_warnings() -> None:
    # The command's module is imported first, also in pools of processes.
    program = "import pipelines.cli, pipelines.training.run"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_imports_torch_when_it_is_used_and_never_monai() -> None:
    program = """
import json, sys
import medloss
assert "torch" not in sys.modules
assert not hasattr(medloss, "__wrapped__") and "torch" not in sys.modules
assert not hasattr(medloss, "DiceLos")
from medloss import *
assert DiceLoss is medloss.DiceLoss is medloss.LOSSES["dice"].cls
assert {"DiceLoss", "kernels", "create_loss"} <= set(dir(medloss))
medloss.create_training_loss("hausdorff_dt", num_classes=2)
print()
print(json.dumps([0, list(sys.modules)]))
"""
    modules = _run(program)[2]
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "monai", "ignite", "mlflow", "SimpleITK", "numba", "triton", *_REPORT}


def test_a_losss_file_has_its_name_and_its_folder_its_familys() -> None:
    assert loss_names() == tuple(medloss.LOSSES)
    ours = {name for name, entry in REGISTERED.items() if entry.cls.__module__.startswith("medloss.")}
    assert set(loss_names()) == ours
    for name, entry in medloss.LOSSES.items():
        folder = "wrappers" if entry.family == "wrapper" else entry.family
        assert entry.cls.__module__ == f"medloss.{folder}.{name}"


def test_the_names_of_metrics_and_executors_take_no_time() -> None:
    program = """
import json, sys
from pipelines.comparison.executors import EXECUTORS
from pipelines.statistics.table import in_report_order
from pipelines.evaluation.metrics import METRICS
assert in_report_order(METRICS) and EXECUTORS
print()
print(json.dumps([0, list(sys.modules)]))
"""
    assert not _run(program)[2] & set(_MORE)


@pytest.mark.slow
def test_a_worker_imports_monai_without_mlflow() -> None:
    program = """
import contextlib, json, sys, tempfile
from pathlib import Path
from pipelines.comparison.worker import _train_by_engines
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError
with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
    _train_by_engines(RunConfig(manifest="missing.yaml", loss="dice"), RunFolder(Path(folder)))
modules = list(sys.modules)
import mlflow.entities
print()
print(json.dumps([0, modules]))
"""
    modules = _run(program)[2]
    assert {"pipelines.training.run", "monai.handlers"} <= modules
    assert not [name for name in modules if name.partition(".")[0] == "mlflow"]


def test_what_asks_for_colours_makes_no_terminal(places: dict[str, Path]) -> None:
    """Jupyter and CI set FORCE_COLOR; a file or a notebook must not get what moves a terminal's cursor."""
    command = [sys.executable, "-m", "pipelines.cli", "status", str(places["made"])]
    done = subprocess.run(
        command, env=os.environ | {"FORCE_COLOR": "1"}, capture_output=True, text=True, timeout=300, check=True
    )
    assert "2 runs: 2 done" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(("typed", "completed"), [
    ("medloss co", ["plain,compare"]),
    ("medloss train --reci", ["plain,--recipe"]),
    ("medloss nnunet ex", ["plain,export"]),
])  # fmt: skip
def test_the_shell_completes_commands_and_options(typed: str, completed: list[str]) -> None:
    program = "import sys; sys.argv = ['medloss']; import pipelines; pipelines.main()"
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_MEDLOSS_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True, timeout=300
    )
    assert (done.stdout.split(), done.stderr) == (completed, "")
