"""`make notebooks`: runs the tutorials, and keeps their outputs in them."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"


def executed(path: Path, timeout_s: int = 900) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run in an empty folder; an error in a cell is raised.

    The command `medloss` is the one of this Python.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = dict(os.environ)
    bin_folder = Path(sys.executable).parent
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook,
                timeout=timeout_s,
                kernel_name="python3",
                coalesce_streams=True,
                resources={"metadata": {"path": folder}},
            )
            client.execute()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which would change with each run
        if cell.cell_type == "code":
            # Without progress, and without the folders of this machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output.text = output.text.replace(f"{bin_folder}/", "").replace(folder, "/tmp/tutorial")
    return notebook


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(path)
