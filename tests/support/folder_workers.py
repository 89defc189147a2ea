"""Ten workers' part in a comparison's folder, without training: `python folder_workers.py FOLDER`, a process a run.

Each holds its run's lock, samples the machine, and writes an epoch whenever the file `allowed` of the folder allows one
more; with the last epoch it writes the result. The runs differ: the last of the plan is the best.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.evaluation.metrics.base import default_metrics
from pipelines.runs.comparison_folder import require_plan, run_folder
from pipelines.runs.plan import PlannedRun
from pipelines.utils.files import write_json
from pipelines.utils.locks import held_lock
from pipelines.utils.usage import sampled


def _work(folder: Path, run: PlannedRun, index: int) -> None:
    own = run_folder(folder, run)
    with held_lock(own.path / "lock") as mine, sampled(own.path, min_interval_s=0.05):
        assert mine
        own.begin(run.config)
        write_json(own.path / "attempts.json", {"attempts": 1})
        rows: list[dict[str, Any]] = []
        while len(rows) < run.config.epochs:
            time.sleep(0.02)
            if len(rows) >= int((folder / "allowed").read_text()):
                continue
            epoch = len(rows) + 1
            measures = {f"val_{name}": (index + 1 / epoch) / 20 for name in default_metrics()} if epoch % 2 == 0 else {}
            rows.append(
                {"epoch": epoch, "train_loss": index + 1 / epoch, "epoch_s": 0.02, "peak_mb": 1.0, "data_share": 0.1,
                 "time": round(time.time(), 3), **measures}
            )  # fmt: skip
            own.write_epochs(rows)
            own.write_progress(epoch, run.config.epochs, 1.0, None)
        own.write_cases([{"case": "a", "patient": "a", "class": "organ", "dice": index / 20}])
        own.write_result({"state": "done", "error": None, "metrics": {"dice": index / 20}, "epoch_s": 0.02})


def main() -> int:
    """Begin a process for each run, and wait for all; 0 if all ended well."""
    folder = Path(sys.argv[1])
    children = []
    for index, run in enumerate(require_plan(folder).runs):
        child = os.fork()
        if not child:
            code = 1
            try:
                _work(folder, run, index)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
