"""Distances between sets of samples.

Statistics are pure NumPy in float64 and need no network: any function ``uint8
images [B, H, W, C] -> features [B, D]`` can compute their features.
"""

from diffusion_jax.metrics import inception, inception_weights, moments
from diffusion_jax.metrics.features import extract, pixels
from diffusion_jax.metrics.frechet import (
  frechet,
  frechet_distance,
  frechet_infinity,
  frechet_infinity_std,
  frechet_std,
)
from diffusion_jax.metrics.inception_score import inception_score
from diffusion_jax.metrics.kernel import kernel_distance, squared_mmd
from diffusion_jax.metrics.manifold import precision_recall
from diffusion_jax.metrics.moments import Gaussian, Moments
from diffusion_jax.metrics.random_features import random_features
from diffusion_jax.metrics.reference import (
  Reference,
  read_reference,
  write_reference,
)

__all__ = [
  "Gaussian",
  "Moments",
  "Reference",
  "extract",
  "frechet",
  "frechet_distance",
  "frechet_infinity",
  "frechet_infinity_std",
  "frechet_infinity_std",
  "frechet_std",
  "frechet_std",
  "inception",
  "inception_score",
  "inception_weights",
  "kernel_distance",
  "moments",
  "pixels",
  "precision_recall",
  "random_features",
  "read_reference",
  "squared_mmd",
  "write_reference",
]
