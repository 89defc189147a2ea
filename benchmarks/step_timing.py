"""What a loss adds to a training step, and takes in it: steps with each side's loss, taking turns in this process."""

import statistics

from benchmarks.cases import EXACT
from benchmarks.measure import quartiles
from benchmarks.step_losses import losses_of
from benchmarks.step_memory import added_memory
from benchmarks.step_results import COMPILED, Found, not_measured
from benchmarks.step_run import TrainingStep, missing_package
from benchmarks.step_settings import WARMUP, Setting


def run_setting(setting: Setting, regime: str) -> list[Found]:
    """A row per side and loss: times, or in the regime `exact` memory."""
    if note := missing_package(setting):
        return [not_measured(setting, regime, note)]
    step = TrainingStep(setting)
    losses, notes = losses_of(setting, regime, step)
    if regime == EXACT:
        return added_memory(setting, losses, step)
    order = [None, *losses]
    times: dict[tuple[str, str] | None, list[tuple[float, float]]] = {side: [] for side in order}
    for number in range(WARMUP + setting.rounds):
        # Each leaves its memory to the next.
        for side in order if number % 2 else reversed(order):
            measured = step.run(None if side is None else losses[side])
            if number >= WARMUP:
                times[side].append(measured)
    bare = [total for total, _ in times.pop(None)]
    rows = []
    for side, measured_times in times.items():
        assert side is not None
        name, loss = side
        low, middle, high = quartiles([1e3 * (t - b) for (t, _), b in zip(measured_times, bare, strict=True)])
        place = 1e3 * statistics.median(p for _, p in measured_times)
        rows.append(
            Found(setting.key, regime, loss, name, middle, low, high, place, step=1e3 * statistics.median(bare))
        )
    return rows + [Found(setting.key, regime, loss, COMPILED, note=note) for loss, note in notes.items()]
