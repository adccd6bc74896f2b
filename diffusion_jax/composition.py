"""Guidance by several conditions, each with its own scale."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.prediction import Cond, Predict, Prediction, read
from diffusion_jax.process import per_example, times
from diffusion_jax.schedules import Schedule


def composed(
  predict: Predict,
  schedule: Schedule,
  without: Callable[[Cond, Sequence[str]], Cond],
  scales: Mapping[str, float | Float[Array, ""] | Float[Array, " B"]],
) -> Predict:
  """Guides each part of a condition with its own scale.

  With c_1, ..., c_n in the order of ``scales``, and p the network's output,

    p() + sum_i scale_i (p(c_1, ..., c_i) - p(c_1, ..., c_{i-1})),

  which for two parts is Brooks et al. 2023 (InstructPix2Pix), eq. 3. If all
  scales are 1 it is p(c_1, ..., c_n), even if the parts depend on each other;
  a sum of p(c_i) - p() is that only for independent parts. Parts that are not
  named are given in every term. One call on n + 1 times the batch.

  Args:
    predict: The conditional network.
    schedule: The noise schedule.
    without: ``(cond, names) -> cond`` with these parts hidden, see
      ``Conditions.without``.
    scales: The scale of each part, by name; 1 is off. A number, or one for each
      example.

  Returns:
    The guided network, to be called with a condition.

  Raises:
    ValueError: If no part is named.
  """
  names = tuple(scales)
  if not names:
    raise ValueError("no parts to guide: name at least one and its scale")

  def guided(x_t, t, cond=None):
    t = times(t, x_t)
    conds = [without(cond, names[i:]) for i in range(len(names))] + [cond]
    base, *more = at_once(predict, x_t, t, conds)
    full = more[-1]
    output, before = base.output, base.output
    for scale, p in zip(scales.values(), more, strict=True):
      gap = p.output - before
      output, before = output + per_example(scale, x_t) * gap, p.output
    return read(
      schedule, x_t, t, output, full.raw, target=full.target,
      variance=full.variance,
    )  # fmt: skip

  return guided


def at_once(
  predict: Predict, x_t, t, conds: Sequence[Cond]
) -> list[Prediction]:
  """The prediction with each condition, in one call."""
  rows = [(x_t, t, cond) for cond in conds]
  whole = predict(*jax.tree.map(lambda *x: jnp.concatenate(x), *rows))
  n = len(rows)
  return [
    jax.tree.map(lambda x, i=i: jnp.split(x, n)[i], whole) for i in range(n)
  ]
