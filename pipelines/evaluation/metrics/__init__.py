"""`METRICS`: every metric by name. To add a metric, write a file for it here and import it below."""

# The order of imports is that of columns in tables. A new metric comes last, so that columns keep their places.
# isort: off
from pipelines.evaluation.metrics.overlap import dice as dice
from pipelines.evaluation.metrics.surface import nsd as nsd
from pipelines.evaluation.metrics.lesions import lesion_f1 as lesion_f1
from pipelines.evaluation.metrics.volume import volume_difference as volume_difference
from pipelines.evaluation.metrics.centreline import cldice as cldice
from pipelines.evaluation.metrics.calibration import ece as ece
from pipelines.evaluation.metrics.volume_ml import volume_bias_ml as volume_bias_ml

# isort: on
from pipelines.evaluation.metrics.base import REGISTERED, Metric

#: Name to metric, in the order of columns.
METRICS: dict[str, Metric] = REGISTERED
