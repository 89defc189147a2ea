"""MLflow: one process mirrors the runs' folders into it, as often as it can, and never stops a training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.comparison.tracking.exports import *  # noqa: F403
else:
    # Commands use single modules of the package before, or without, the seconds that all of it takes.
    from medloss.lazy import lazy_exports as _lazy_exports

    __getattr__, __dir__ = _lazy_exports(__name__)
