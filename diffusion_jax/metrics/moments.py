"""Means and covariances of streams, in float64."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Gaussian(NamedTuple):
  """A mean and a covariance, all that FID depends on.

  Attributes:
    mean: float64.
    cov: float64.
  """

  mean: Float[np.ndarray, " D"]
  cov: Float[np.ndarray, "D D"]


class Moments(NamedTuple):
  """Running sums over vectors that are seen only once.

  Attributes:
    n: The number of vectors.
    mean: Their mean m.
    scatter: sum of (x - m) (x - m)^T over them.
  """

  n: int
  mean: Float[np.ndarray, " D"]
  scatter: Float[np.ndarray, "D D"]

  def gaussian(self) -> Gaussian:
    """Mean and unbiased covariance, scatter / (n - 1).

    Raises:
      ValueError: If there are fewer than two vectors.
    """
    if self.n < 2:
      raise ValueError(
        f"feature sets of {self.n}: a covariance needs at least 2"
      )
    return Gaussian(self.mean, self.scatter / (self.n - 1))


def finite(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Features in float64.

  Raises:
    FloatingPointError: If any is NaN or infinite.
  """
  x = np.asarray(x, np.float64)
  wrong = x.size - np.isfinite(x).sum()
  if wrong:
    raise FloatingPointError(
      f"{wrong:,} of {x.size:,} features are NaN or infinite; look at the "
      "network that makes them"
    )
  return x


def moments(x: Float[np.ndarray, "N D"]) -> Moments:
  """Moments of the rows of x.

  Raises:
    ValueError: If x is not a matrix or has no rows.
    FloatingPointError: See ``finite``.
  """
  x = finite(x)
  if x.ndim != 2 or not len(x):
    raise ValueError(
      f"features have shape {x.shape}; pass (N, D), N at least 1"
    )
  mean = x.mean(axis=0)
  centred = x - mean
  return Moments(len(x), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
  """Moments of a's and b's vectors together (Chan et al. 1983).

  With d = m_b - m_a: m = m_a + d n_b / n and
  S = S_a + S_b + d d^T n_a n_b / n, which cancels no digits.

  Raises:
    ValueError: If the vectors differ in length.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"features of {len(b.mean)} numbers after some of {len(a.mean)}: take "
      "all of one network"
    )
  n = a.n + b.n
  gap = b.mean - a.mean
  return Moments(
    n,
    a.mean + gap * (b.n / n),
    a.scatter + b.scatter + np.outer(gap, gap) * (a.n * b.n / n),
  )


def stream(batches: Iterable[Float[np.ndarray, "B D"]]) -> Moments:
  """Moments of all rows of all batches; holds one batch at a time.

  >>> stream(np.array([[[0.0], [2.0]], [[4.0], [6.0]]])).gaussian().mean
  array([3.])

  Raises:
    ValueError: If there are no batches, or vectors differ in length.
  """
  total = None
  for batch in batches:
    part = moments(batch)
    total = part if total is None else merge(total, part)
  if total is None:
    raise ValueError("there are no features; pass at least one batch")
  return total
