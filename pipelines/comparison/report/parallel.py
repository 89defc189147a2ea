"""All that a report draws; where that is much, its plots and its pictures of cases at the same time."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pipelines.children import end_at_once, live_with_the_parent
from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.overlays.every import Overlays, every_overlay
from pipelines.comparison.report.plots import Plot, every_plot
from pipelines.comparison.statistics import Analysis
from pipelines.threads import available_cores

#: Losses from which on a second process pays: it takes a second to start, and each picture a fifth of one.
_MANY = 9


def draw_all(analysis: Analysis, collected: Collected) -> tuple[dict[str, Plot], Overlays]:
    """The plots by name, and the pictures of cases."""
    if not collected.predictions or len(collected.table.losses) < _MANY or available_cores() < 2:
        return every_plot(analysis, collected), every_overlay(analysis, collected)
    # Not by fork: a copy of a process with threads may wait for a lock for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=live_with_the_parent) as pool:
        pictures = pool.submit(every_overlay, analysis, collected)
        try:
            plots = every_plot(analysis, collected)
            return plots, pictures.result()
        except KeyboardInterrupt:
            end_at_once(pool)
            raise
        except BrokenProcessPool:  # for lack of memory, most likely
            return plots, every_overlay(analysis, collected)
