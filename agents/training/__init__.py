"""Training runs: configuration, the run directory, checkpoints, validation."""
