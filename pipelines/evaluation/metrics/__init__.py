"""`METRICS`: every metric by name. To add a metric, write a file for it here and import it below."""

# The order of imports is that of columns in tables. A new metric comes last, so that columns keep their places.
# isort: off
from pipelines.evaluation.metrics.overlap import dice as dice
from pipelines.evaluation.metrics.surface import nsd as nsd

# isort: on
from pipelines.evaluation.metrics.base import REGISTERED, Metric

#: Name to metric, in the order of columns.
METRICS: dict[str, Metric] = REGISTERED
