"""How a comparison is carried out, and the object that its steps hand on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.comparison.executors.base import Handover
from pipelines.runs.comparison_folder import RunState, keep_plan, run_folder, run_states
from pipelines.runs.plan import Plan

if TYPE_CHECKING:
    from pipelines.tracking.mlflow_mirror import Mirror


@dataclass(frozen=True)
class Execution:
    """How a plan is carried out."""

    jobs: int = 1  #: runs at a time on this machine
    handover: Handover | None = None  #: has the runs trained elsewhere, and does not wait for them
    retry_failed: bool = False
    check: bool = True  #: whether the whole data set is read, and refused if it has bad files, before anything else
    tracking_uri: str | None = None  #: an MLflow server's; None: a store in the comparison's folder
    groups: bytes | None = None  #: content of a table with groups of cases, named before training, if there is one
    register_model: str | None = None  #: the name under which MLflow registers the best network of the best loss


@dataclass(frozen=True)
class Comparison:
    """A comparison that is being carried out; each rung of its screening and trial of its tuning is one, too."""

    folder: Path
    plan: Plan
    execution: Execution = Execution()
    store: Path | None = None  #: folder of the SQLite store of MLflow where no server is named; None: `folder`

    @property
    def states(self) -> list[RunState]:
        """The current state of every run, in the plan's order."""
        return run_states(self.folder, self.plan)

    @property
    def unfinished(self) -> bool:
        """Whether any run is still to be trained."""
        return any(not state.finished for state in self.states)

    @property
    def epochs(self) -> int:
        """Of each of its runs."""
        return self.plan.runs[0].config.epochs

    def mirror(self) -> "Mirror":
        """Its copy in MLflow."""
        from pipelines.tracking.mlflow_mirror import Mirror  # not above: `status` does not wait for MLflow

        def warn(message: str) -> None:
            click.echo(f"warning: {message}", err=True)

        return Mirror(self.folder, self.plan, self.execution.tracking_uri, warn, self.store)

    def with_plan(self, plan: Plan) -> "Comparison":
        """The comparison with another plan, which its folder has from now on."""
        keep_plan(self.folder, plan)
        return replace(self, plan=plan)

    def forget_failures(self) -> None:
        """Remove the results of failed runs, so that these are trained again."""
        for run in self.plan.runs:
            run_dir = run_folder(self.folder, run)
            if run_dir.result is not None and run_dir.result["state"] == "failed":
                (run_dir.path / "result.json").unlink()
