"""The built packages, and installed into empty environments: with the lower bounds, and with the newest releases."""

import email
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny import tiny_manifest

import medloss

pytestmark = pytest.mark.slow

ROOT = Path(os.environ.get("MEDLOSS_CHECKOUT") or Path(__file__).parents[2])
#: torch as pinned: another version would fetch gigabytes. Its own lower bound is stated and not tested.
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
#: nnU-Net has an environment of its own, `make test-nnunet`.
EXTRAS = ("pipelines", "bundle", "fast", "skeleton", "slurm")
_LOSSES = """
import sys, torch, medloss
torch.manual_seed(0)
label = torch.randint(0, 3, (2, 1, 8, 9, 10))
for name in medloss.LOSSES:
    if name == "skeleton_recall":
        continue  # needs the extra skeleton
    logits = torch.randn(2, 3, 8, 9, 10, requires_grad=True)
    medloss.create_training_loss(name, num_classes=3)(logits, label, spacing=(3.0, 1.0, 2.0)).backward()
    assert logits.grad.isfinite().all() and logits.grad.any(), name
from medloss.distance import DistanceMapd
assert "pipelines" not in sys.modules
print(medloss.kernels.in_use(), medloss.__version__, len(medloss.LOSSES))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    if built := os.environ.get("MEDLOSS_DIST"):
        return Path(built)
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def test_the_index_would_take_them(packages: Path) -> None:
    names = sorted(path.name for path in packages.iterdir())
    assert names == [f"medloss-{medloss.__version__}-py3-none-any.whl", f"medloss-{medloss.__version__}.tar.gz"]
    _run(sys.executable, "-m", "twine", "check", "--strict", *packages.iterdir())


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_an_empty_environment(which: str, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses without the command's packages; then the command, from images to a report and MLflow."""
    monkeypatch.chdir(tmp_path)  # the oldest MLflow also makes an empty store in the current folder
    (wheel,) = packages.glob("*.whl")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join([TORCH, *(_lower_bounds(wheel) if which == "lowest" else [])]))
    venv.create(tmp_path / "venv", with_pip=True)
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "medloss"))
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile",
               "--constraint", constraints]  # fmt: skip
    _run(*install, "torch")
    _run(*install, wheel)
    assert _run(python, "-c", _LOSSES) == f"eager {medloss.__version__} {len(medloss.LOSSES)}\n"
    refused = subprocess.run([command, "losses"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.endswith("pip install 'medloss[pipelines]', or in a checkout pip install '.[pipelines]'\n")
    assert refused.stderr.count("\n") == 1

    _run(*install, f"{wheel}[{','.join(EXTRAS)}]")
    _run(python, "-m", "pip", "check")
    assert "installed: " in _run(command, "doctor")
    out = tmp_path / "out"
    manifest = tiny_manifest(tmp_path)
    printed = _run(command, "compare", manifest, "--losses", "dice,focal", "--reference", "dice", "--epochs", "1",
                   "--jobs", "1", "--out", out, MEDLOSS_KERNELS="eager")  # fmt: skip
    assert "\nMLflow    " in printed
    assert "catch up" not in printed
    assert (out / "report" / "report.html").stat().st_size > 100_000


def _lower_bounds(wheel: Path) -> list[str]:
    """`name==bound` for what the package requires, torch and what is only for development left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    bounds = []
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or []):
        wanted = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS)
        if wanted and requirement.name not in ("torch", "medloss"):
            (bound,) = requirement.specifier
            assert bound.operator == ">="
            bounds.append(f"{requirement.name}=={bound.version}")
    assert len(bounds) > 20
    return bounds


def _run(*command: object, **environment: str) -> str:
    """Run a program as from a new shell; returns what it prints."""
    clean = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PYTEST")
    }
    done = subprocess.run(
        [*map(str, command)], env=clean | environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout
