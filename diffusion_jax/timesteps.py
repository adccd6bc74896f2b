"""Times to visit: random ones to train on, a list of pairs to sample.

A sampler visits pairs (t, s): each step moves from t to s < t. All T steps are
the pairs (T, T-1), ..., (1, 0); fewer steps are simply fewer pairs.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from diffusion_jax.levels import check_discrete

Pairs = Int[np.ndarray, "S 2"]
RealPairs = Float[np.ndarray, "S 2"]
AnyPairs = Pairs | RealPairs | Num[Array, "S 2"]
# (u, T) -> t, for u uniform on (0, 1).
Quantile = Callable[[Float[Array, " B"], float], Float[Array, " B"]]
# No draw is closer than this to an end of (0, 1).
ENDS = 1e-6


def uniform(
  key: Key[Array, ""], batch: int, T: int | float
) -> Int[Array, " B"]:
  """Draws t uniformly from 1..T, one per example (DDPM, algorithm 1).

  Raises:
    ValueError: If time is continuous, see ``drawn_by``.
  """
  check_discrete("timesteps.uniform", T)
  return jax.random.randint(key, (batch,), 1, T + 1)


def antithetic(
  key: Key[Array, ""], batch: int, T: int | float
) -> Int[Array, " B"]:
  """Draws t spread evenly over the batch: one offset, B equal strides.

  Each t is uniform on 1..T, but together they cover 1..T (Kingma et al. 2021,
  appendix I.1), which removes most of the variance of the batch's loss.

  Raises:
    ValueError: If time is continuous, see ``drawn_by``.
  """
  check_discrete("timesteps.antithetic", T)
  u = _evenly(key, batch)
  return jnp.minimum((u * T).astype(jnp.int32), T - 1) + 1


def _evenly(key: Key[Array, ""], batch: int) -> Float[Array, " B"]:
  """Numbers that are each uniform on [0, 1), spaced 1 / batch apart."""
  return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1


def drawn_by(quantile: Quantile, *, even: bool = True):
  """Draws continuous times of any distribution, for ``objectives.diffusion``.

  Args:
    quantile: Quantile function of the distribution: ``everywhere``,
      ``logit_normal(...)``, ``log_normal(...)``, or your own.
    even: Spread the times evenly, see ``antithetic``; else independently.

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
  """For t / T = sigmoid(mean + std n), n normal (Esser et al. 2024, 3.1)."""
  _check_normal(mean, std)

  def quantile(u, T):
    part = jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))
    # In float32 sigmoid is 1 from 17 on, and at T no signal is left.
    return T * jnp.clip(part, ENDS, 1 - ENDS)

  return quantile


def log_normal(mean: float = -1.2, std: float = 1.2) -> Quantile:
  """For t = exp(mean + std n), n normal, t is sigma (Karras et al. 2022)."""
  _check_normal(mean, std)
  return lambda u, T: jnp.exp(mean + std * jax.scipy.special.ndtri(u))


def _check_normal(mean: float, std: float) -> None:
  """Raises ValueError unless the mean is finite and the std above 0."""
  if not (math.isfinite(mean) and 0 < std < math.inf):
    raise ValueError(f"{mean=} must be finite and {std=} above 0, of the times")


def walk(visited: Sequence[int] | np.ndarray) -> Pairs:
  """The pairs that visit these steps from the noisiest down and end at 0.

  Args:
    visited: Distinct steps in 1..T, in any order.

  Returns:
    [S, 2] rows (t, s), from the largest t to (t, 0).

  Raises:
    ValueError: If there are no steps, or one is below 1, repeated or no whole
      number, see ``real``.

  >>> walk([1, 500, 1000]).tolist()
  [[1000, 500], [500, 1], [1, 0]]
  """
  steps = np.sort(np.ravel(visited))[::-1]
  whole = np.ndim(visited) == 1 and steps.size > 0 and (steps % 1 == 0).all()
  if not whole or steps[-1] < 1 or (np.diff(steps) == 0).any():
    raise ValueError(
      f"visited steps {list(visited)} must be distinct whole numbers above 0"
    )
  return np.stack([steps, np.append(steps[1:], 0)], axis=1).astype(np.int32)


def real(visited: Sequence[float] | np.ndarray) -> RealPairs:
  """The pairs that visit these continuous times from the noisiest down to 0.

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
    ValueError: If T is not an integer, as for a continuous schedule.
  """
  if not isinstance(T, int | np.integer):
    raise ValueError(
      f"{T=} is of continuous time; pass the pairs (t, s) to walk"
    )
  return walk(np.arange(1, T + 1))


def above_last(pairs: AnyPairs) -> Num[Array, ""]:
  """The time before the last step's; the last step's own if it is the only one.

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
    ValueError: If num is not in 1..T, or time is continuous.
  """
  check_discrete("timesteps.spaced", T)
  check_count(num, T)
  if num == 1:
    return walk([T])
  return walk(1 + strides(T, num))


def check_count(num: int, most: float) -> None:
  """Raises ValueError for a number of sampling steps that is not in 1..most."""
  whole = isinstance(num, int | np.integer) and not isinstance(num, bool)
  if not whole:
    raise ValueError(f"{num!r} sampling steps must be a whole number, an int")
  if not 1 <= num <= most:
    bounds = "at least 1" if most == math.inf else f"in 1..T={most}"
    raise ValueError(f"{num} sampling steps must be {bounds}")


def strides(length: int, num: int) -> Int[np.ndarray, " num"]:
  """``num`` of 0..length-1, evenly spaced, both ends included if num > 1.

  Strides are added up, not multiplied, so that halves round as in the
  published code.
  """
  stride = (length - 1) / max(num - 1, 1)
  sums = np.cumsum(np.full(num - 1, stride))
  return np.rint(np.append(0, sums)).astype(int)
