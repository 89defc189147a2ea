"""What `pipelines.comparison.report` exports; the package imports it when the first of these names is used."""

from pipelines.comparison.report.collect import Collected as Collected
from pipelines.comparison.report.collect import from_csv as from_csv
from pipelines.comparison.report.collect import from_folder as from_folder
from pipelines.comparison.report.folder import claimed as claimed
from pipelines.comparison.report.write import DEFAULT_REFERENCE as DEFAULT_REFERENCE
from pipelines.comparison.report.write import write_report as write_report
