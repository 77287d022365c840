"""A training run: its state, steps, loop, checkpoints and metrics."""
