"""Which loss is best, and is the difference real: statistics on a plain table of results, without training.

```python
table = read_table(Path("results.csv"), METRICS)  # of `pipelines.evaluation.registry`
analysis = analyse(table, reference="dice+binary_cross_entropy")
print(analysis.verdict, *analysis.caveats, sep="\\n")
```

`table` reads and checks, `scores` makes one number per loss and patient of it, `inference` has the tests and intervals
of mean differences, `paired` compares with the reference, `omnibus` all with all, `bootstrap` resamples, `power` shows
what could be seen at all; each says in its head what it does not control. `docs/statistics.md` is the whole in prose.
`NOT_CONTROLLED` is what no table of results can show: a page that shows an analysis shows that, too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.comparison.statistics.exports import *  # noqa: F403
else:
    # Commands use single modules of the package before, or without, the seconds that all of it takes.
    from medloss.lazy import lazy_exports as _lazy_exports

    __getattr__, __dir__ = _lazy_exports(__name__)
