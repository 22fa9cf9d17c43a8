"""Files, locks, signals, processes, progress: what any program needs."""
