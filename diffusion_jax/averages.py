"""Averages of parameters whose length is chosen after training (EDM2).

Karras et al. 2024, section 3: an average with the profile t^gamma keeps its
width relative to the run, sigma_rel. Two of them, saved at a few times, give
those of other widths as linear combinations. They are saved in snapshots of
half the size, beside the checkpoints and far more often.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PREFIX = "std"  # of these averages' names in a state


class Snapshot(NamedTuple):
  """The averages at one step, in half precision.

  Attributes:
    step: Number of updates so far.
    ema: The averages by name, float16.
  """

  step: Any
  ema: Any


def snapshot(step: Any, ema: Mapping[str, Any]) -> Snapshot:
  """What other widths are computed from, rounded to 11 bits as in EDM2.

  The running average itself must not be rounded: late in a run, its updates
  would be rounded away.

  Args:
    step: Number of updates so far.
    ema: All averages of a state; the snapshot has those with a width.

  Returns:
    The snapshot.
  """
  widths = {k: tree for k, tree in ema.items() if std_in(k) is not None}
  return Snapshot(step, jax.tree.map(lambda x: x.astype(jnp.float16), widths))


def name(std: float) -> str:
  """The name of the average of this width in a state."""
  return f"{PREFIX}{std:g}"


def std_in(name: str) -> float | None:
  """The width in an average's name; None for averages without one.

  Raises:
    ValueError: If what follows "std" is no number.
  """
  if not name.startswith(PREFIX):
    return None
  try:
    return float(name.removeprefix(PREFIX))
  except ValueError:
    raise ValueError(
      f"average {name!r} must be a width as '{PREFIX}0.1'"
    ) from None


def exponent(std: float) -> float:
  """The gamma of a width: std^2 = (g + 1) / ((g + 2)^2 (g + 3)) (eq. 126).

  Args:
    std: Width of the profile, relative to the length of the run, below 0.28.

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
  """Weight of the newest parameters: 1 - (1 - 1/n)^(gamma + 1) (eq. 127).

  Args:
    gamma: See ``exponent``.
    step: n, the number of updates, this one included.

  Returns:
    The weight, accurate also where it is small.
  """
  return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / step))


def coefficients(
  steps: Sequence[float], stds: Sequence[float], step: float, std: float
) -> Float[np.ndarray, " K"]:
  """Coefficients of K saved averages that give another one (algorithm 3).

  The least-squares fit of its profile, with coefficients that add up to 1.

  Args:
    steps: The step at which each average was saved.
    stds: The width of each.
    step: The step of the average wanted, not after the last saved one.
    std: Its width.

  Returns:
    The coefficients.

  Raises:
    ValueError: If there are no averages, two are the same, one has no width or
      no step above 0, or the step is not in 1..the last saved.
  """
  if len(steps) != len(stds):
    raise ValueError(
      f"{len(steps)} steps and {len(stds)} widths: pass one of each for every "
      "average"
    )
  kept = list(zip(steps, stds, strict=True))
  if not kept or len(set(kept)) < len(kept):
    raise ValueError(f"the averages kept, {kept}, must be some, and distinct")
  if min(steps) <= 0 or not 0 < step <= max(steps):
    raise ValueError(
      f"averages of {steps=} have none of {step=}: all must be above 0, and it "
      "not above the last of them"
    )
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

  Its dtype is the widest among them, and at least float32.

  Raises:
    ValueError: If there are not as many coefficients as parameters, or none.
  """
  if len(trees) != len(coefs) or not trees:
    raise ValueError(
      f"{len(trees)} averages and {len(coefs)} coefficients: pass one for each"
    )

  def add(*leaves):
    pairs = zip(coefs, leaves, strict=True)
    total = sum(c * np.asarray(x, np.float64) for c, x in pairs)
    dtype = np.result_type(np.float32, *leaves)
    return np.asarray(total).astype(dtype)

  return jax.tree.map(add, *trees)
