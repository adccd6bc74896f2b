"""Evaluation: what is measured of samples, and how they are kept meanwhile."""
