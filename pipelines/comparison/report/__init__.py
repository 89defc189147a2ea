"""The report of a comparison: one page that says which loss is best, how sure that is, and what it rests on.

`collect` reads a comparison's folder or a table, `plots` and `tables` show its analysis, `page` puts them in one
self-contained HTML file, and `write` writes all of it, into a `folder`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.comparison.report.exports import *  # noqa: F403
else:
    # Commands use single modules of the package before, or without, the seconds that all of it takes.
    from medloss.lazy import lazy_exports as _lazy_exports

    __getattr__, __dir__ = _lazy_exports(__name__)
