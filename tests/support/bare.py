"""What of a program works where few packages are installed."""

import subprocess
import sys
from pathlib import Path

#: Packages that are hidden: the losses are to work without them.
HIDDEN = (
    "SimpleITK", "numba", "llvmlite", "pandas", "nibabel", "ignite", "mlflow", "pydantic", "click", "yaml", "rich",
    "tqdm", "psutil", "matplotlib", "PIL", "skimage", "pynvml", "sklearn", "kornia", "pipelines", "pytest",
    "hypothesis",
)  # fmt: skip

# To hide a package is to find no specification of it: what asks whether it is there gets the true answer.
_HIDE = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def run_bare(code: str, cwd: Path | None = None) -> str:
    """Run Python code in a process in which only torch, MONAI, NumPy, scipy and Triton can be imported.

    Raises:
        AssertionError: it failed.
    """
    words = [sys.executable, "-W", "ignore", "-c", _HIDE.format(hidden=set(HIDDEN)) + code]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
