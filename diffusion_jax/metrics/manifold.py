"""Improved precision and recall: separate numbers for quality and coverage."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diffusion_jax.metrics.moments import finite

BLOCK = 256  # rows whose distances to all others a thread holds at a time
THREADS = min(8, os.cpu_count() or 1)  # NumPy selects on one core


class PrecisionRecall(NamedTuple):
  """Both in [0, 1].

  Attributes:
    precision: The fraction of samples that lie where data are.
    recall: The fraction of data that lie where samples are.
  """

  precision: float
  recall: float


def precision_recall(
  data: Float[np.ndarray, "N D"], samples: Float[np.ndarray, "M D"], k: int = 3
) -> PrecisionRecall:
  """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

  Each vector of a set has a ball that reaches to its k-th nearest neighbour in
  the set. Precision is the fraction of samples in the balls of the data, recall
  the fraction of data in the balls of the samples.

  Args:
    data: Features of the data.
    samples: Features of the samples. Both numbers depend on N and M: compare
      only results with equal ones.
    k: The neighbour that gives the radius; 3 is usual.

  Returns:
    Both.

  Raises:
    ValueError: If the shapes do not fit, or a set has at most k vectors.
  """
  data, samples = finite(data), finite(samples)
  if data.ndim != 2 or samples.ndim != 2 or data.shape[1] != samples.shape[1]:
    raise ValueError(
      f"feature sets have shapes {data.shape} and {samples.shape}; pass "
      "(N, D), (M, D)"
    )
  if not 1 <= k < min(len(data), len(samples)):
    raise ValueError(
      f"{k=} must be at least 1 and less than the {len(data)} and "
      f"{len(samples)} vectors of the sets"
    )
  # Differences of large squares lose digits: move the origin to the data.
  centre = data.mean(axis=0)
  data, samples = data - centre, samples - centre
  return PrecisionRecall(
    float(covered(samples, data, radii(data, k)).mean()),
    float(covered(data, samples, radii(samples, k)).mean()),
  )


def radii(x: Float[np.ndarray, "N D"], k: int) -> Float[np.ndarray, " N"]:
  """Squared distance of each vector to its k-th nearest other."""
  # The nearest, at index 0, is the vector itself.
  return _by_blocks(
    lambda block: np.partition(squared_distances(block, x), k, axis=1)[:, k], x
  )


def covered(
  x: Float[np.ndarray, "N D"],
  centres: Float[np.ndarray, "M D"],
  radii: Float[np.ndarray, " M"],
) -> Bool[np.ndarray, " N"]:
  """Whether each x is in any ball, of given squared radii."""
  return _by_blocks(
    lambda block: (squared_distances(block, centres) <= radii[None]).any(1), x
  )


def squared_distances(
  x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "N M"]:
  """|x_i - y_j|^2, as |x_i|^2 + |y_j|^2 - 2 x_i . y_j."""
  squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None]
  return np.maximum(squares - 2 * x @ y.T, 0)


def _by_blocks(function: Callable, x: np.ndarray) -> np.ndarray:
  """A function of rows, applied to a block of rows at a time."""
  blocks = [x[start : start + BLOCK] for start in range(0, len(x), BLOCK)]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return np.concatenate(list(pool.map(function, blocks)))
