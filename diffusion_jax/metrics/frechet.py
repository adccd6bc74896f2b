"""The Frechet distance between two sets of feature vectors: FID and sFID."""

import jax
import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.moments import Gaussian, moments


def frechet(a: Gaussian, b: Gaussian) -> float:
  """Squared 2-Wasserstein distance of two Gaussians.

  |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})  (Heusel et al. 2017,
  eq. 6). Of Inception's 2048 features this is the FID, of its spatial ones
  the sFID (Nash et al. 2021).

  The trace of the root comes from the eigenvalues of the symmetric
  C_a^{1/2} C_b C_a^{1/2}, which stay real and non-negative where a and b
  span only part of the space (pixels that never change).

  Args:
    a: Mean and covariance of one set.
    b: Of the other.

  Returns:
    The distance, at least 0, in squared feature units.

  Raises:
    ValueError: If they are of different dimensions.
  """
  if a.mean.shape != b.mean.shape or a.cov.shape != b.cov.shape:
    raise ValueError(
      f"means of shapes {a.mean.shape} and {b.mean.shape}: both sets need "
      "features of the same network"
    )
  values, vectors = np.linalg.eigh(a.cov)
  root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  eigenvalues = np.linalg.eigvalsh(root_a @ b.cov @ root_a)
  trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
  mean_gap = ((a.mean - b.mean) ** 2).sum()
  distance = mean_gap + np.trace(a.cov) + np.trace(b.cov) - 2 * trace_root
  return float(max(distance, 0.0))


def frechet_distance(
  a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]
) -> float:
  """The Frechet distance of the Gaussians fitted to a and b, see ``frechet``.

  Args:
    a: Feature vectors of one set, at least two.
    b: Of the other.

  Returns:
    The distance, at least 0, in squared feature units. It is biased upwards
    for few samples: compare only numbers of equal N and M.

  Raises:
    ValueError: If the shapes do not fit or a set has fewer than two.
  """
  a, b = np.asarray(a), np.asarray(b)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f"feature sets have shapes {a.shape} and {b.shape}; pass (N, D), (M, D)"
    )
  if min(len(a), len(b)) < 2:
    raise ValueError(
      f"feature sets of {len(a)} and {len(b)}: a covariance needs at least 2"
    )
  return frechet(moments(a).gaussian(), moments(b).gaussian())


def frechet_infinity(
  features: Float[np.ndarray, "N D"],
  reference: Gaussian,
  key: jax.Array,
  *,
  least: int = 5000,
  points: int = 15,
) -> float:
  """The Frechet distance of infinitely many samples, extrapolated.

  To first order FID_n = FID_inf + b / n, where b depends on the model, so
  that FIDs of equal n can still be in the wrong order. FID_n is measured at
  ``points`` sizes between ``least`` and N, on random parts of the samples,
  and the line through them followed to 1 / n = 0 (Chong & Forsyth 2020).
  The bias of a finite reference stays.

  Args:
    features: Of the samples.
    reference: Of the data.
    key: Chooses the parts.
    least: Fewest samples in a part.
    points: Sizes, at least 2.

  Returns:
    FID_inf, which chance can take below 0.

  Raises:
    ValueError: If there are not more samples than ``least``.
  """
  n = len(features)
  if not 2 <= least < n or points < 2:
    raise ValueError(
      f"{least=} must be at least 2 and less than the {n} samples, {points=} "
      "at least 2"
    )
  features = np.asarray(features)
  sizes = np.linspace(least, n, points).astype(int)
  distances = []
  for size, k in zip(sizes, jax.random.split(key, points), strict=True):
    part = np.asarray(jax.random.permutation(k, n))[:size]
    distances.append(frechet(moments(features[part]).gaussian(), reference))
  _, intercept = np.polyfit(1 / sizes, distances, deg=1)
  return float(intercept)
