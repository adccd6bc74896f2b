"""Distances between sets of samples."""

from diffusion_jax.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
