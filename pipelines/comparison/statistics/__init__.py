"""Which loss is best, and is the difference real: statistics on a plain table of results, without training.

```python
analysis = analyse(read_table(Path("results.csv")), reference="dice+binary_cross_entropy")
print(analysis.verdict, *analysis.caveats, sep="\\n")
```

`table` reads and checks, `scores` makes one number per loss and patient of it, `inference` has the tests and intervals
of mean differences, `paired` compares with the reference, `omnibus` all with all, `bootstrap` resamples, `power` shows
what could be seen at all; each says in its head what it does not control. `docs/statistics.md` is the whole in prose.
`NOT_CONTROLLED` is what no table of results can show: a page that shows an analysis shows that, too.
"""

from pipelines.comparison.statistics.analysis import analyse as analyse
from pipelines.comparison.statistics.caveats import NOT_CONTROLLED as NOT_CONTROLLED
from pipelines.comparison.statistics.caveats import empty_notes as empty_notes
from pipelines.comparison.statistics.metrics import METRICS as METRICS
from pipelines.comparison.statistics.results import Analysis as Analysis
from pipelines.comparison.statistics.results import MetricAnalysis as MetricAnalysis
from pipelines.comparison.statistics.table import CaseTable as CaseTable
from pipelines.comparison.statistics.table import check_table as check_table
from pipelines.comparison.statistics.table import read_table as read_table
from pipelines.comparison.statistics.table import refuse_disjoint as refuse_disjoint
from pipelines.comparison.statistics.table import with_failed_runs as with_failed_runs
