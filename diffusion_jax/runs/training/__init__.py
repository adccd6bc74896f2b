"""Training: the loop, its directory, its signals, and what is learnt."""
