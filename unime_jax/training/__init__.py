"""A training run: set-up, state, step, loop, checkpoints."""
