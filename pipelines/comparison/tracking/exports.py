"""What `pipelines.comparison.tracking` exports; the package imports it when the first of these names is used."""

from pipelines.comparison.tracking.background import mirroring as mirroring
from pipelines.comparison.tracking.findings import Findings as Findings
from pipelines.comparison.tracking.mirror import Mirror as Mirror
from pipelines.comparison.tracking.store import checked_model_name as checked_model_name
from pipelines.comparison.tracking.store import checked_tracking_uri as checked_tracking_uri
from pipelines.comparison.tracking.store import local_uri as local_uri
from pipelines.comparison.tracking.store import quiet_mlflow as quiet_mlflow
from pipelines.comparison.tracking.store import without_password as without_password
