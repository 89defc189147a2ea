"""MLflow: one process mirrors the runs' folders into it, as often as it can, and never stops a training."""
