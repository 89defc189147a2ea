"""One training: its config and plan, its parts, the engines, checkpoints, and the run that leaves a folder."""
