"""What the package says of itself: one version, the extra of the commands, and what an import takes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import medloss
import pipelines

ROOT = Path(os.environ.get("MEDLOSS_CHECKOUT") or Path(__file__).parents[2])


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The section `project` of `pyproject.toml`."""
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == medloss.__version__
    assert citation["license"] == "Apache-2.0"
    versions = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", medloss.__version__]


def test_the_command_asks_for_the_modules_of_its_extra(project: dict[str, Any]) -> None:
    extra = {_name(line) for line in project["optional-dependencies"]["pipelines"]}
    brought = packages_distributions()
    # MLflow's module is shared by two packages.
    assert [module for module in pipelines.EXTRA if not {_name(package) for package in brought[module]} & extra] == []
    assert len(pipelines.EXTRA) == len(extra)


def test_a_loss_alone_needs_few_packages(project: dict[str, Any]) -> None:
    assert {_name(line) for line in project["dependencies"]} == {"torch", "monai", "numpy", "scipy", "simpleitk"}
    for extra in ("bundle", "slurm", "nnunet"):
        assert "medloss[pipelines]" in project["optional-dependencies"][extra]


def _name(requirement: str) -> str:
    return Requirement(requirement).name.lower().replace("_", "-")


def test_the_command_without_its_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ("click", "mlflow")
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(SystemExit) as end:
        pipelines.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: the command medloss needs packages that are not installed (click, mlflow); expected those of the "
        "extra: pip install 'medloss[pipelines]', or in a checkout pip install '.[pipelines]'\n"
    )


def test_the_command_with_its_extra_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medloss", "--version"])
    pipelines.main()
    assert medloss.__version__ in capsys.readouterr().out


@pytest.mark.slow
def test_an_import_is_no_larger_than_that_of_monais_losses() -> None:
    ours, theirs = (_imported(f"import {name}") for name in ("medloss; medloss.DiceLoss(softmax=True)", "monai.losses"))
    more = {name.partition(".")[0] for name in ours - theirs}
    assert more == {"medloss"}
    assert len(ours) < len(theirs)
    assert len(_imported("import medloss")) < 200  # not even torch


def _imported(statement: str) -> set[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))
