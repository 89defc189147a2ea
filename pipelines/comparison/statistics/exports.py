"""What `pipelines.comparison.statistics` exports; the package imports it when the first of these names is used."""

from pipelines.comparison.statistics.analysis import analyse as analyse
from pipelines.comparison.statistics.caveats import NOT_CONTROLLED as NOT_CONTROLLED
from pipelines.comparison.statistics.caveats import gap_notes as gap_notes
from pipelines.comparison.statistics.metrics import MetricInfo as MetricInfo
from pipelines.comparison.statistics.results import Analysis as Analysis
from pipelines.comparison.statistics.results import MetricAnalysis as MetricAnalysis
from pipelines.comparison.statistics.table import CaseTable as CaseTable
from pipelines.comparison.statistics.table import check_table as check_table
from pipelines.comparison.statistics.table import read_table as read_table
from pipelines.comparison.statistics.table import refuse_disjoint as refuse_disjoint
from pipelines.comparison.statistics.table import with_failed_runs as with_failed_runs
