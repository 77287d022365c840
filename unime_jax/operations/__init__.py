"""What keeps a run alive and tells about it: processes, locks, signals, watchdog, goodput."""
