"""What a run needs around its arithmetic: command line, processes, locks, signals, clocks."""
