"""What of a plan is left to train, read from the folders alone."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.comparison.plan import Plan, read_plan
from pipelines.comparison.planning.forecast import Forecast
from pipelines.comparison.planning.matrix import Matrix, Training
from pipelines.comparison.planning.rungs import begun_rungs
from pipelines.comparison.state import RunState, run_states


def stages_left(folder: Path, plan: Plan, matrix: Matrix, forecast: Forecast) -> list[list[Training]]:
    """What is left to train, one stage after another; see `Forecast.stages`.

    Args:
        folder: the comparison's, which may not be there.
        plan: of the comparison.
        matrix: its runs; with halving, as if no loss were dropped.
        forecast: knows which losses are slow.
    """
    if read_plan(folder) is None:
        return forecast.stages(matrix, plan.halving, plan.tuning)
    if (plan.halving is None or plan.halving.over) and (plan.tuning is None or plan.tuning.over):
        return [_left(run_states(folder, plan))]
    stages = forecast.stages(matrix, plan.halving, plan.tuning)
    for place, rung in enumerate(begun_rungs(folder, plan)):
        stages[place] = _left(rung.states)
    return stages


def _left(states: Sequence[RunState]) -> list[Training]:
    return [
        Training(state.run.config.loss, state.run.config.fold, state.epochs, state.epoch)
        for state in states
        if not state.finished
    ]
