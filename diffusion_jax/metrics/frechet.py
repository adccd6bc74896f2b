"""The Frechet distance between two sets of feature vectors: FID and sFID."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.metrics.moments import Gaussian, finite, moments


def frechet(a: Gaussian, b: Gaussian) -> float:
  """Squared 2-Wasserstein distance of two Gaussians.

  |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})  (Heusel et al. 2017,
  eq. 6). With Inception's 2048 features this is the FID, with its spatial ones
  the sFID (Nash et al. 2021).

  The trace of the root comes from the eigenvalues of the symmetric
  C_a^{1/2} C_b C_a^{1/2}, which stay real and non-negative where a and b
  span only part of the space (pixels that never change).

  Args:
    a: Mean and covariance of one set.
    b: Those of the other.

  Returns:
    The distance, at least 0, in squared feature units.

  Raises:
    ValueError: If their dimensions differ.
  """
  if a.mean.shape != b.mean.shape or a.cov.shape != b.cov.shape:
    raise ValueError(
      f"means of shapes {a.mean.shape} and {b.mean.shape}: both sets need "
      "features of the same network"
    )
  root_a = _root(a.cov)
  trace_root = _trace_of_root(root_a @ b.cov @ root_a)
  mean_gap = ((a.mean - b.mean) ** 2).sum()
  distance = mean_gap + np.trace(a.cov) + np.trace(b.cov) - 2 * trace_root
  return float(max(distance, 0.0))


def _root(cov: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
  """C^{1/2}, symmetric."""
  values, vectors = np.linalg.eigh(cov)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _trace_of_root(square: Float[np.ndarray, "D D"]) -> float:
  """The trace of A^{1/2}, for a symmetric A."""
  return np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0)).sum()


def frechet_distance(
  a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]
) -> float:
  """The Frechet distance of the Gaussians fitted to a and b, see ``frechet``.

  Args:
    a: Feature vectors of one set, at least two.
    b: Those of the other.

  Returns:
    The distance, at least 0, in squared feature units. It is biased upwards
    for few samples: compare only numbers with equal N and M.

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
  that FIDs of equal n can still be in the wrong order. FID_n is computed for
  ``points`` sizes between ``least`` and N, on random subsets of the samples,
  and a line through them is extrapolated to 1 / n = 0 (Chong & Forsyth 2020).
  The bias of a finite reference remains.

  Args:
    features: Features of the samples.
    reference: Mean and covariance of the data.
    key: Chooses the subsets.
    least: The smallest subset.
    points: The number of sizes, at least 2.

  Returns:
    FID_inf, which can be below 0 by chance.

  Raises:
    ValueError: If there are not more than ``least`` samples.
  """
  n = len(features)
  _check_parts(n, least, points)
  distance = _distance_of_rows(features, reference)
  return _extrapolated(distance, np.arange(n), key, least, points)


def frechet_std(
  features: Float[np.ndarray, "N D"],
  reference: Gaussian,
  key: jax.Array,
  *,
  replicates: int = 20,
) -> float:
  """How much ``frechet`` varies from one set of samples to the next.

  The bootstrap's estimate (Efron 1979): the standard deviation over sets of N
  samples drawn from the N with replacement. Their mean is of no use, since
  resampling adds the bias of N samples a second time. The estimate does not
  include that the reference is finite, too.

  Args:
    features: Features of the samples.
    reference: Mean and covariance of the data.
    key: Draws the sets.
    replicates: The number of sets; with 20 the result is known to 16 %.

  Returns:
    The standard deviation, in squared feature units.

  Raises:
    ValueError: If there are fewer than 2 samples or replicates, or the
      reference has features of another length.
  """
  distance = _distance_of_rows(features, reference)
  return _bootstrap(lambda rows, _: distance(rows), features, key, replicates)


def frechet_infinity_std(
  features: Float[np.ndarray, "N D"],
  reference: Gaussian,
  key: jax.Array,
  *,
  least: int = 5000,
  points: int = 15,
  replicates: int = 10,
) -> float:
  """How much ``frechet_infinity`` varies, see ``frechet_std``.

  Args:
    features: Features of the samples.
    reference: Mean and covariance of the data.
    key: Draws the sets and their subsets.
    least: See ``frechet_infinity``.
    points: See ``frechet_infinity``.
    replicates: The number of sets; each costs ``points`` distances.

  Returns:
    The standard deviation, in squared feature units.

  Raises:
    ValueError: See ``frechet_infinity`` and ``frechet_std``.
  """
  _check_parts(len(features), least, points)
  distance = _distance_of_rows(features, reference)
  return _bootstrap(
    lambda rows, k: _extrapolated(distance, rows, k, least, points),
    features,
    key,
    replicates,
  )


Rows = Int[np.ndarray, " n"]


def _check_parts(n: int, least: int, points: int) -> None:
  if not 2 <= least < n or points < 2:
    raise ValueError(
      f"{least=} must be at least 2 and less than the {n} samples, {points=} "
      "at least 2"
    )


def _extrapolated(
  distance: Callable[[Rows], float],
  rows: Rows,
  key: jax.Array,
  least: int,
  points: int,
) -> float:
  """The distance at 1 / n = 0, from random subsets of some rows."""
  sizes = np.linspace(least, len(rows), points).astype(int)
  distances = []
  for size, k in zip(sizes, jax.random.split(key, points), strict=True):
    part = np.asarray(jax.random.permutation(k, len(rows)))[:size]
    distances.append(distance(rows[part]))
  _, intercept = np.polyfit(1 / sizes, distances, deg=1)
  return float(intercept)


def _bootstrap(
  statistic: Callable[[Rows, jax.Array], float],
  features: Float[np.ndarray, "N D"],
  key: jax.Array,
  replicates: int,
) -> float:
  """The standard deviation of a statistic of rows drawn with replacement."""
  n = len(features)
  if min(n, replicates) < 2:
    raise ValueError(
      f"a bootstrap of {n} samples in {replicates=}: must be 2 or more of both"
    )
  found = []
  for k in jax.random.split(key, replicates):
    k_rows, k_statistic = jax.random.split(k)
    rows = np.asarray(jax.random.randint(k_rows, (n,), 0, n))
    found.append(statistic(rows, k_statistic))
  return float(np.std(found, ddof=1))


def _distance_of_rows(
  features: Float[np.ndarray, "N D"], reference: Gaussian
) -> Callable[[Rows], float]:
  """``frechet`` from any rows of some features to one reference.

  If row i occurs c_i times among n, its weight is c_i / n in the mean and
  c_i / (n - 1) in the covariance z^T z. The root of the reference's covariance
  is computed once; with fewer rows than dimensions, the smaller matrix with the
  same eigenvalues is used.
  """
  x = finite(features)
  if x.ndim != 2 or x.shape[1:] != reference.mean.shape:
    raise ValueError(
      f"features of shape {x.shape} and a mean of {reference.mean.shape}: both "
      "sets need features of the same network"
    )
  root = _root(reference.cov)
  trace = np.trace(reference.cov)

  def distance(rows: Rows) -> float:
    drawn, counts = np.unique(rows, return_counts=True)
    some, n = x[drawn], len(rows)
    mean = counts @ some / n
    z = (some - mean) * np.sqrt(counts / (n - 1))[:, None]
    if len(z) < x.shape[1]:
      y = z @ root
      trace_root = _trace_of_root(y @ y.T)
    else:
      trace_root = _trace_of_root(root @ (z.T @ z) @ root)
    mean_gap = ((mean - reference.mean) ** 2).sum()
    return float(mean_gap + (z**2).sum() + trace - 2 * trace_root)

  return distance
