"""Distances between sets of samples."""

from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.random_features import random_features

__all__ = ["frechet_distance", "random_features"]
