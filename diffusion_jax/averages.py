"""Averages of parameters whose length is chosen after training (EDM2).

Karras et al. 2024, section 3: an average with the profile t^gamma keeps its
width relative to the run, sigma_rel. Two of them, kept at a few times, span
those of other widths: any is a linear combination of what was kept. Kept are
snapshots of half the size, beside the checkpoints and many more than these.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PREFIX = "std"  # of the names of these averages in a state


class Snapshot(NamedTuple):
  """The averages of one step, small.

  Attributes:
    step: Number of updates made.
    ema: By name, float16.
  """

  step: Any
  ema: Any


def snapshot(step: Any, ema: Mapping[str, Any]) -> Snapshot:
  """What other widths are made of, rounded to 11 bits as EDM2 rounds it.

  An average itself must not be kept so: from a large n on, its updates would be
  rounded away.

  Args:
    step: Number of updates made.
    ema: All averages of a state, of which those with a width are kept.

  Returns:
    The snapshot.
  """
  widths = {k: tree for k, tree in ema.items() if std_in(k) is not None}
  return Snapshot(step, jax.tree.map(lambda x: x.astype(jnp.float16), widths))


def name(std: float) -> str:
  """What the average of this width is called in a state."""
  return f"{PREFIX}{std:g}"


def std_in(name: str) -> float | None:
  """The width that a name says; None if it is that of another average."""
  if not name.startswith(PREFIX):
    return None
  return float(name.removeprefix(PREFIX))


def exponent(std: float) -> float:
  """The gamma of a width: std^2 = (g + 1) / ((g + 2)^2 (g + 3)) (eq. 126).

  Args:
    std: Of the profile, relative to the length of the run, below 0.28.

  Returns:
    The largest root of g^3 + 7 g^2 + (16 - std^-2) g + 12 - std^-2.

  Raises:
    ValueError: If no profile is that wide.
  """
  if not 0 < std < 12**-0.5:
    raise ValueError(
      f"an average of width {std} must be in (0, 0.288), a part of the run"
    )
  t = std**-2.0
  return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def weight(gamma: float, step: Any) -> Float[Array, ""]:
  """What the newest parameters count: 1 - (1 - 1/n)^(gamma + 1) (eq. 127).

  Args:
    gamma: See ``exponent``.
    step: n, the number of updates, this one included.

  Returns:
    The weight, exact where it is small.
  """
  return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / step))


def coefficients(
  steps: Sequence[float], stds: Sequence[float], step: float, std: float
) -> Float[np.ndarray, " K"]:
  """What each of K kept averages counts in another (algorithm 3).

  The least squares of the profiles, whose coefficients add up to 1.

  Args:
    steps: When each was kept.
    stds: Of each.
    step: The end of the profile wanted, none after the last that was kept.
    std: Its width.

  Returns:
    The coefficients.

  Raises:
    ValueError: If there are none, or two are the same.
  """
  kept = list(zip(steps, stds, strict=True))
  if not kept or len(set(kept)) < len(kept):
    raise ValueError(f"the averages kept, {kept}, must be some, and distinct")
  t, g = np.array(steps, float), np.array([exponent(x) for x in stds])
  products = _product(t[:, None], g[:, None], t, g)
  wanted = _product(t, g, float(step), exponent(std))
  solved = np.linalg.solve(products, wanted)
  return solved / solved.sum()


def _product(t_a, g_a, t_b, g_b):
  """The scalar product of two profiles (algorithm 3)."""
  ratio = t_a / t_b
  power = np.where(t_a < t_b, g_b, -g_a)
  return (
    (g_a + 1) * (g_b + 1) * ratio**power
    / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
  )  # fmt: skip


def combined(
  trees: Sequence[Any], coefs: Sequence[float] | Float[np.ndarray, " K"]
) -> Any:
  """The linear combination of parameters, summed in float64.

  Its precision is the highest among them, and at least float32.
  """

  def add(*leaves):
    pairs = zip(coefs, leaves, strict=True)
    total = sum(c * np.asarray(x, np.float64) for c, x in pairs)
    dtype = np.result_type(np.float32, *leaves)
    return np.asarray(total).astype(dtype)

  return jax.tree.map(add, *trees)
