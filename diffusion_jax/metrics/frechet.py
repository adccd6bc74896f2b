"""The Frechet distance between two sets of feature vectors."""

import numpy as np
from jaxtyping import Float


def frechet_distance(
  a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]
) -> float:
  """Squared 2-Wasserstein distance of the Gaussians fitted to a and b.

  |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})  (Heusel et al. 2017,
  eq. 6). With Inception features this is the FID; any features will do.

  The trace of the root comes from the eigenvalues of the symmetric
  C_a^{1/2} C_b C_a^{1/2}, which stay real and non-negative where a and b
  span only part of the space (pixels that never change).

  Args:
    a: Feature vectors of one set, at least two.
    b: Of the other.

  Returns:
    The distance, at least 0, in squared feature units. It is biased upwards
    for few samples: compare only numbers of equal N and M.

  Raises:
    ValueError: If the shapes do not fit or a set has fewer than two.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f"feature sets have shapes {a.shape} and {b.shape}; pass (N, D), (M, D)"
    )
  if min(len(a), len(b)) < 2:
    raise ValueError(
      f"feature sets of {len(a)} and {len(b)}: a covariance needs at least 2"
    )
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  cov_a, cov_b = np.atleast_2d(cov_a), np.atleast_2d(cov_b)
  values, vectors = np.linalg.eigh(cov_a)
  root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  eigenvalues = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
  trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
  mean_gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
  distance = mean_gap + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
  return float(max(distance, 0.0))
