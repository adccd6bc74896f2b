"""Which steps to visit: random ones to train on, a list of pairs to sample.

A sampler walks pairs (t, s): it stands at t and moves to s < t. All T steps
are the pairs (T, T-1), ..., (1, 0); fewer steps are simply fewer pairs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

Pairs = Int[np.ndarray, "S 2"]


def uniform(key: Key[Array, ""], batch: int, T: int) -> Int[Array, " B"]:
  """Draws t uniformly from 1..T, one per example (DDPM, algorithm 1)."""
  return jax.random.randint(key, (batch,), 1, T + 1)


def antithetic(key: Key[Array, ""], batch: int, T: int) -> Int[Array, " B"]:
  """Draws t as evenly as a batch can: one offset, B equal strides.

  Each t is uniform on 1..T, but together they cover 1..T (Kingma et al. 2021,
  appendix I.1), which takes most of the variance out of the batch's loss.
  """
  offset = jax.random.uniform(key)
  u = (offset + jnp.arange(batch) / batch) % 1
  return jnp.minimum((u * T).astype(jnp.int32), T - 1) + 1


def walk(visited: Sequence[int] | np.ndarray) -> Pairs:
  """The pairs that visit these steps from the noisiest down and end at 0.

  Args:
    visited: Distinct steps in 1..T, in any order.

  Returns:
    [S, 2] rows (t, s), from the largest t to (t, 0).

  Raises:
    ValueError: If there are no steps, or one is below 1 or repeated.

  >>> walk([1, 500, 1000]).tolist()
  [[1000, 500], [500, 1], [1, 0]]
  """
  steps = np.sort(np.asarray(visited, np.int32))[::-1]
  if steps.size == 0 or steps[-1] < 1 or (np.diff(steps) == 0).any():
    raise ValueError(
      f"visited steps {list(visited)} must be distinct and at least 1"
    )
  return np.stack([steps, np.append(steps[1:], 0)], axis=1).astype(np.int32)


def every(T: int) -> Pairs:
  """All T single steps: (T, T-1), ..., (1, 0)."""
  return walk(np.arange(1, T + 1))


def above_last(pairs: Pairs | Int[Array, "S 2"]) -> Int[Array, ""]:
  """From where a walk comes to its last step; that step if it is the only one.

  >>> int(above_last(walk([1, 500, 1000]))), int(above_last(walk([1000])))
  (500, 1000)
  """
  return jnp.asarray(pairs)[-2:][0, 0]


def spaced(T: int, num: int) -> Pairs:
  """``num`` evenly spaced steps of T, the first and the last included.

  The published respacing "num": strides of (T - 1) / (num - 1), rounded.

  Args:
    T: Length of the schedule.
    num: How many steps to take, 1..T. A single step starts at T.

  Returns:
    [num, 2] rows (t, s).

  Raises:
    ValueError: If num is not in 1..T.
  """
  if not 1 <= num <= T:
    raise ValueError(f"{num} sampling steps must be in 1..{T=}")
  if num == 1:
    return walk([T])
  return walk(1 + strides(T, num))


def strides(length: int, num: int) -> Int[np.ndarray, " num"]:
  """``num`` of 0..length-1, evenly spaced, both ends included if two fit.

  Strides are added up, not multiplied: sums that should end in a half are
  then rounded as in the published code.
  """
  stride = (length - 1) / max(num - 1, 1)
  sums = np.cumsum(np.full(num - 1, stride))
  return np.rint(np.append(0, sums)).astype(int)
