"""Triton's kernels: in its interpreter, on a GPU where there is one, and compiled for a GPU where there is none."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _run(file: str, *, interpret: bool) -> None:
    # A process of its own: Triton reads the variable when it is imported, and for good.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpret))}
    ran = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


@needs_triton
def test_cases_in_the_interpreter() -> None:
    _run("triton_cases.py", interpret=True)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cases_on_a_gpu() -> None:
    _run("triton_cases.py", interpret=False)


@needs_triton
def test_kernels_compile_for_a_gpu() -> None:
    _run("triton_compiled.py", interpret=False)


def test_medloss_does_not_import_triton() -> None:
    # torch may import it, so what counts is that medloss comes along without.
    code = "import sys; sys.modules['triton'] = None; import medloss; print(medloss.kernels.available())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "triton" not in ran.stdout and "eager" in ran.stdout
