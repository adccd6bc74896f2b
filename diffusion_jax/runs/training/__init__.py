"""Training: the loop, its directory, its signals, and its objectives."""
