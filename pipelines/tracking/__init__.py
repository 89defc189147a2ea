"""MLflow: one process copies the runs' folders to it in the background; its failures never stop a run."""
