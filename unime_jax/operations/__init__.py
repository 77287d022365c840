"""Operation of a run: processes, locks, signals, watchdog, goodput."""
