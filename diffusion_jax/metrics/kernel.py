"""The kernel distance (KID): unbiased also for few samples."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.moments import finite

LEAST_SUBSETS = 10  # a standard error of fewer is itself a guess


class KernelDistance(NamedTuple):
  """KID and its standard error.

  Attributes:
    distance: The mean over subsets; about 0, and below it half of the time, if
      both sets have the same distribution.
    standard_error: Standard error of that mean.
    subset_size: Samples of each set in a subset.
    subsets: Number of subsets; no sample is in two of them.
  """

  distance: float
  standard_error: float
  subset_size: int
  subsets: int


def cubic_kernel(
  x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "N M"]:
  """k(x, y) = (x . y / D + 1)^3 (Binkowski et al. 2018, sec. 4)."""
  return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(
  x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> float:
  """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3).

  mean over i != j of k(x_i, x_j), plus the same of y, minus twice the mean of
  k(x_i, y_j).

  Args:
    x: Feature vectors of one set, at least two.
    y: Those of the other.

  Returns:
    The estimate, which may be negative.

  Raises:
    ValueError: If the shapes do not fit or a set has fewer than two.
  """
  x, y = finite(x), finite(y)
  if min(len(x), len(y)) < 2 or x.ndim != 2 or x.shape[1:] != y.shape[1:]:
    raise ValueError(
      f"feature sets have shapes {x.shape} and {y.shape}; pass (N, D), (M, D) "
      "with N and M at least 2"
    )

  def within(z):
    k = cubic_kernel(z, z)
    return (k.sum() - np.trace(k)) / (len(z) * (len(z) - 1))

  return float(within(x) + within(y) - 2 * cubic_kernel(x, y).mean())


def kernel_distance(
  x: Float[np.ndarray, "N D"],
  y: Float[np.ndarray, "M D"],
  key: jax.Array,
  *,
  subset_size: int = 1000,
  subsets: int = 100,
) -> KernelDistance:
  """KID: the mean of ``squared_mmd`` over random subsets.

  Subsets share no samples, so they are independent and their spread gives a
  valid standard error. In the published code they overlap; the expectation is
  the same.

  Args:
    x: Features of one set.
    y: Those of the other.
    key: Shuffles both.
    subset_size: Samples of each set in a subset; fewer if the sets are small,
      so that there are at least 10 subsets.
    subsets: The largest number of subsets, at least 2.

  Returns:
    The distance and its standard error.

  Raises:
    ValueError: If a set has fewer than 20 vectors, or there are fewer than 2
      subsets, of which nothing says how far they scatter.
  """
  n = min(len(x), len(y))
  size = min(subset_size, n // LEAST_SUBSETS)
  if size < 2:
    raise ValueError(
      f"feature sets of {len(x)} and {len(y)} with {subset_size=}: the kernel "
      f"distance needs {2 * LEAST_SUBSETS} vectors and subsets of at least 2"
    )
  if subsets < 2:
    raise ValueError(f"{subsets=} must be at least 2, to have a standard error")
  count = min(subsets, n // size)
  parts = [
    np.asarray(jax.random.permutation(k, len(z)))[: count * size]
    for z, k in zip((x, y), jax.random.split(key), strict=True)
  ]
  values = [
    squared_mmd(x[i], y[j])
    for i, j in zip(*(np.split(part, count) for part in parts), strict=True)
  ]
  error = np.std(values, ddof=1) / np.sqrt(count)
  return KernelDistance(float(np.mean(values)), float(error), size, count)
