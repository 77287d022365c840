"""Training: from a config to a state, step by step."""
