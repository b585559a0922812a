"""Training: schedule, optimizer, the pure step, the loop, checkpoints and telemetry."""
