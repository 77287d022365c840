"""Public benchmarks: how their rows are read, what each counts, and scores that papers printed."""
