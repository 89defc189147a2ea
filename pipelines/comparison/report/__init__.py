"""The report of a comparison: one page that says which loss is best, how sure that is, and what it rests on.

`collect` reads a comparison's folder or a table, `plots` and `tables` show its analysis, `page` puts them in one
self-contained HTML file, and `write` writes all of it, into a `folder`.
"""

from pipelines.comparison.report.collect import Collected as Collected
from pipelines.comparison.report.collect import from_csv as from_csv
from pipelines.comparison.report.collect import from_folder as from_folder
from pipelines.comparison.report.folder import claimed as claimed
from pipelines.comparison.report.write import DEFAULT_REFERENCE as DEFAULT_REFERENCE
from pipelines.comparison.report.write import write_report as write_report
