"""Guidance: a prediction in, a stronger one out.

Scales follow one rule: the guided prediction is weak + scale (strong - weak),
so scale 1 is the strong one alone, 0 the weak one, and more than 1
exaggerates what tells them apart. That of a classifier, with a rule of its
own, is in ``classifier_guidance``.

Scales are data: a program is not compiled again for another one. With a
learned variance only the prediction is guided; the variance stays that of the
strong one. Guide first, then clip.
"""

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.classifier_guidance import (
  Gradient as Gradient,
  Scale as Scale,
  classifier as classifier,
  classifier_step as classifier_step,
  log_prob as log_prob,
  log_prob_gradient as log_prob_gradient,
)
from diffusion_jax.composition import at_once
from diffusion_jax.deprecated import moved
from diffusion_jax.prediction import Cond, Predict, Prediction, read
from diffusion_jax.process import Batch, per_example, times
from diffusion_jax.schedules import Schedule, Time

# One for each example; or of their times: a scale that changes on the way.
ScaleAt = (
  Float[Array, " B"]
  | Callable[[Float[Array, " B"] | Int[Array, " B"]], Float[Array, " B"]]
)


def classifier_free(
  predict: Predict,
  schedule: Schedule,
  null: Callable[[Cond], Cond],
  scale: Scale | ScaleAt,
  *,
  interval: tuple[float, float] | None = None,
  rescale: Scale = 0.0,
) -> Predict:
  """Guides a conditional network with itself, without its condition.

  null + scale (cond - null)  (Ho and Salimans 2022, eq. 6, whose w is
  scale - 1). Both predictions come from one call on a doubled batch.

  Args:
    predict: The conditional network.
    schedule: The noise schedule.
    null: What takes the place of a condition, as training had it, see
      ``conditions.without_class``; of the same shapes.
    scale: 1 is off; a number, one for each example, or a function of t.
    interval: Times (low, high) between which to guide, both included
      (Kynkaanniemi et al. 2024); by default all.
    rescale: How much of the way to go back to the standard deviation, by
      image, of the unguided prediction, 0 to 1 (Lin et al. 2023, eqs. 15,
      16).

  Returns:
    The guided network, to be called with a condition.

  Raises:
    ValueError: If the interval is empty.
  """
  _check_interval(interval)

  def guided(x_t, t, cond=None):
    t = times(t, x_t)
    strong, weak = _both(predict, null, x_t, t, cond)
    return _extrapolate(
      schedule, strong, weak, x_t, t, scale, interval, rescale
    )

  return guided


def _both(
  predict: Predict, null, x_t, t, cond
) -> tuple[Prediction, Prediction]:
  """With the condition and without it, by one call."""
  strong, weak = at_once(predict, x_t, t, (cond, null(cond)))
  return strong, weak


def projected(
  predict: Predict,
  schedule: Schedule,
  null: Callable[[Cond], Cond],
  scale: Scale | ScaleAt,
  *,
  eta: Scale = 0.0,
  radius: Scale = jnp.inf,
) -> Predict:
  """Adaptive projected guidance (APG, Sadat et al. 2024).

  As ``classifier_free``, of x0_hat, see ``project``: less saturated pictures
  at large scales. With momentum it is a solver, ``apg.solver``.

  Args:
    predict: The conditional network.
    schedule: The noise schedule.
    null: As in ``classifier_free``.
    scale: 1 is off; a number, or a function of t.
    eta: See ``project``.
    radius: See ``project``.

  Returns:
    The guided network, to be called with a condition.
  """

  def guided(x_t, t, cond=None):
    t = times(t, x_t)
    strong, weak = _both(predict, null, x_t, t, cond)
    return projected_prediction(
      schedule, strong, weak, x_t, t, scale, eta=eta, radius=radius
    )[0]

  return guided


def projected_prediction(
  schedule: Schedule, strong: Prediction, weak: Prediction, x_t: Batch, t: Time,
  scale: Scale | ScaleAt, **options: Any,
) -> tuple[Prediction, Batch]:  # fmt: skip
  """``project`` of two predictions, and what to carry on.

  Args:
    schedule: The noise schedule.
    strong: With the condition.
    weak: Without it.
    x_t: The noisy sample.
    t: Where it stands, one for each example.
    scale: 1 is off; a number, or a function of t.
    **options: Of ``project``.

  Returns:
    The guided prediction, and d.
  """
  x0_hat, d = project(
    strong.x0_hat, weak.x0_hat, _scale_at(scale, t, x_t), **options
  )
  return read(schedule, x_t, t, x0_hat, strong.raw, variance=strong.variance), d


def project(
  strong: Batch,
  weak: Batch,
  scale: Scale | Float[Array, "..."],
  *,
  eta: Scale = 0.0,
  radius: Scale = jnp.inf,
  carried: Batch | float = 0.0,
  momentum: Scale = 0.0,
) -> tuple[Batch, Batch]:
  """APG, algorithm 1: strong + (scale - 1) (d_perp + eta d_parallel).

  d is strong - weak, with what is carried on from the step before and no
  longer than the radius; its parallel part is along strong. With eta = 1, no
  radius and no momentum this is weak + scale (strong - weak).

  Args:
    strong: Clean data as predicted with the condition.
    weak: Without it.
    scale: 1 is off.
    eta: What is left of the part that saturates.
    radius: Largest norm of d, for each image.
    carried: The d of the step before.
    momentum: Its factor; below 0 in the paper.

  Returns:
    The guided clean data, and what to carry on.
  """

  def dot(a, b):
    return (a * b).sum(axis=tuple(range(1, a.ndim)), keepdims=True)

  least = jnp.finfo(strong.dtype).tiny
  carried = strong - weak + momentum * carried
  norm = jnp.sqrt(jnp.maximum(dot(carried, carried), least))
  d = carried * jnp.minimum(1, radius / norm)
  parallel = dot(d, strong) / jnp.maximum(dot(strong, strong), least) * strong
  update = d - parallel + eta * parallel
  return strong + (scale - 1) * update, carried


def autoguidance(
  predict: Predict,
  weaker: Predict,
  schedule: Schedule,
  scale: Scale | ScaleAt,
  *,
  interval: tuple[float, float] | None = None,
  rescale: Scale = 0.0,
) -> Predict:
  """Guides a network away from a weaker version of itself.

  weaker + scale (predict - weaker)  (Karras et al. 2024, section 4: w D_1 +
  (1 - w) D_0): the weaker one is smaller or less trained, on the same classes
  and noise.

  Args:
    predict: The network.
    weaker: The same, worse.
    schedule: The noise schedule.
    scale: 1 is off.
    interval: As in ``classifier_free``.
    rescale: As in ``classifier_free``.

  Returns:
    The guided network.

  Raises:
    ValueError: If the interval is empty.
  """
  _check_interval(interval)

  def guided(x_t, t, cond=None):
    strong, weak = predict(x_t, t, cond), weaker(x_t, t, cond)
    return _extrapolate(
      schedule, strong, weak, x_t, t, scale, interval, rescale
    )

  return guided


def _check_interval(interval: tuple[float, float] | None) -> None:
  if interval is not None and not interval[0] <= interval[1]:
    raise ValueError(f"{interval=} must be (low, high) with low <= high")


def _scale_at(scale: Any, t, x_t: Batch) -> Any:
  """The scale, or that of each example, at this time."""
  return per_example(cast(Any, scale(t) if callable(scale) else scale), x_t)


def _extrapolate(
  schedule: Schedule, strong: Prediction, weak: Prediction, x_t, t, scale,
  interval, rescale,
) -> Prediction:  # fmt: skip
  """Weak + scale (strong - weak), of the strong one's target."""
  if weak.target != strong.target:
    output = strong.target.of(schedule, weak.x0_hat, t, weak.eps_hat)
  else:
    output = weak.output
  scale = _scale_at(scale, t, x_t)
  if interval is not None:
    low, high = interval
    inside = per_example((low <= t) & (t <= high), x_t)
    scale = jnp.where(inside, scale, 1.0)
  guided = output + scale * (strong.output - output)
  axes = tuple(range(1, x_t.ndim))
  spread = jnp.std(guided, axis=axes, keepdims=True)
  shrunk = jnp.std(strong.output, axis=axes, keepdims=True) / jnp.maximum(
    spread, jnp.finfo(spread.dtype).tiny
  )
  guided = guided * (1 + rescale * (shrunk - 1))
  return read(
    schedule, x_t, t, guided, strong.raw, target=strong.target,
    variance=strong.variance,
  )  # fmt: skip


__getattr__ = moved(
  __name__, {"drop_labels": "diffusion_jax.conditions:drop_labels"}
)
