"""Evaluation: the metrics of samples, and the samples on disk meanwhile."""
