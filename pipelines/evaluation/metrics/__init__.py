"""`METRICS`: every metric by name. A new metric is a file of its own, and one line here."""

# The lines' order is that of columns in tables; a new one comes last, so that columns stay where they are: no sorting.
# isort: off
from pipelines.evaluation.metrics.overlap import dice as dice
from pipelines.evaluation.metrics.surface import nsd as nsd

# isort: on
from pipelines.evaluation.metrics.base import REGISTERED, Metric

#: Name to metric, in the order of columns.
METRICS: dict[str, Metric] = REGISTERED
