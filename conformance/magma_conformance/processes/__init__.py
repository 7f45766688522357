"""Our own processes: how they start, work and end."""
