"""Which steps to visit: random ones to train on, a list of pairs to sample.

A sampler walks pairs (t, s): it stands at t and moves to s < t. All T steps
are the pairs (T, T-1), ..., (1, 0); fewer steps are simply fewer pairs.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.levels import check_whole

Pairs = Int[np.ndarray, "S 2"]
RealPairs = Float[np.ndarray, "S 2"]
# (u, T) -> t, of u evenly distributed on (0, 1).
Quantile = Callable[[Float[Array, " B"], float], Float[Array, " B"]]
# No draw is nearer to an end of (0, 1).
ENDS = 1e-6


def uniform(
  key: Key[Array, ""], batch: int, T: int | float
) -> Int[Array, " B"]:
  """Draws t uniformly from 1..T, one per example (DDPM, algorithm 1).

  Raises:
    ValueError: If T is of real time, see ``drawn_by``.
  """
  check_whole("timesteps.uniform", T)
  return jax.random.randint(key, (batch,), 1, T + 1)


def antithetic(
  key: Key[Array, ""], batch: int, T: int | float
) -> Int[Array, " B"]:
  """Draws t as evenly as a batch can: one offset, B equal strides.

  Each t is uniform on 1..T, but together they cover 1..T (Kingma et al. 2021,
  appendix I.1), which takes most of the variance out of the batch's loss.

  Raises:
    ValueError: If T is of real time, see ``drawn_by``.
  """
  check_whole("timesteps.antithetic", T)
  u = _evenly(key, batch)
  return jnp.minimum((u * T).astype(jnp.int32), T - 1) + 1


def _evenly(key: Key[Array, ""], batch: int) -> Float[Array, " B"]:
  """Each uniform on [0, 1), all of them a stride apart."""
  return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1


def drawn_by(quantile: Quantile, *, even: bool = True):
  """Draws real times of any distribution, for ``objectives.diffusion``.

  Args:
    quantile: Of the distribution: ``everywhere``, ``logit_normal(...)``,
      ``log_normal(...)``, or one of your own.
    even: As evenly as a batch can, see ``antithetic``; else independently.

  Returns:
    ``(key, B, T) -> t``.
  """

  def draw(key, batch, T):
    u = _evenly(key, batch) if even else jax.random.uniform(key, (batch,))
    return quantile(jnp.clip(u, ENDS, 1 - ENDS), T)

  return draw


def everywhere(u, T):
  """Uniform on 0..T."""
  return u * T


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Quantile:
  """For t / T = sigmoid(mean + std n) (Esser et al. 2024, section 3.1)."""
  _check_normal(mean, std)

  def quantile(u, T):
    part = jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))
    # Float32 has 1 from sigmoid(17) on, where no signal is left at T.
    return T * jnp.clip(part, ENDS, 1 - ENDS)

  return quantile


def log_normal(mean: float = -1.2, std: float = 1.2) -> Quantile:
  """For t = exp(mean + std n), where time is sigma (Karras et al. 2022)."""
  _check_normal(mean, std)
  return lambda u, T: jnp.exp(mean + std * jax.scipy.special.ndtri(u))


def _check_normal(mean: float, std: float) -> None:
  """Refuses a distribution of times that is none, or a single time."""
  if not (math.isfinite(mean) and 0 < std < math.inf):
    raise ValueError(f"{mean=} must be finite and {std=} above 0, of the times")


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


def real(visited: Sequence[float] | np.ndarray) -> RealPairs:
  """The pairs that visit these real times from the noisiest down, then 0.

  Args:
    visited: Distinct times above 0 of a continuous schedule, in any order.

  Returns:
    [S, 2] rows (t, s), from the largest t to (t, 0).

  Raises:
    ValueError: If there are no times, or one is repeated or not above 0.
  """
  times = np.sort(np.asarray(visited, float))[::-1]
  if times.size == 0 or not times[-1] > 0 or (np.diff(times) == 0).any():
    raise ValueError(f"visited times {list(visited)} must be distinct, above 0")
  return np.stack([times, np.append(times[1:], 0)], axis=1)


def every(T: int | float) -> Pairs:
  """All T single steps: (T, T-1), ..., (1, 0).

  Raises:
    ValueError: If T is no whole number, as that of a continuous schedule.
  """
  if not isinstance(T, int | np.integer):
    raise ValueError(f"{T=} is a real time; pass the pairs (t, s) to walk")
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
