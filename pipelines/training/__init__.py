"""Training of one run: config and planning, components, engines, checkpoints, and the run's folder."""
