"""Guidance: turns a prediction into a stronger one.

Scales follow one rule: the guided prediction is weak + scale (strong - weak),
so scale 1 is the strong one alone, 0 the weak one, and more than 1 exaggerates
their difference. Guidance by a classifier has another rule, see
``classifier_guidance``.

Scales are data: changing one does not compile the program again. With a
learned variance only the prediction is guided; the variance stays that of the
strong one. Guide first, then clip.
"""

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax import concrete
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

# One scale for each example; or a function of t, a scalar or one for each.
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
    null: ``cond -> cond``, the null condition that training used, see
      ``conditions.without_class``; of the same shapes.
    scale: A number, one for each example, or a function of t; 1 is off.
    interval: Times (low, high) between which to guide, both included
      (Kynkaanniemi et al. 2024); by default all.
    rescale: How far to restore each image's standard deviation to that of the
      unguided prediction, from 0 (not) to 1 (fully) (Lin et al. 2023, eqs. 15,
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
  """The predictions with the condition and without it, in one call."""
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

  Like ``classifier_free``, but on x0_hat, see ``project``: images are less
  saturated at large scales. With momentum it is a solver, ``apg.solver``.

  Args:
    predict: The conditional network.
    schedule: The noise schedule.
    null: As in ``classifier_free``.
    scale: A number, or a function of t; 1 is off.
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
  """``project`` of two predictions.

  Args:
    schedule: The noise schedule.
    strong: The prediction with the condition.
    weak: The prediction without it.
    x_t: The noisy sample.
    t: Its time, one for each example.
    scale: A number, or a function of t; 1 is off.
    **options: Options of ``project``.

  Returns:
    The guided prediction, and ``carried`` for the next step.
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

  d is strong - weak + momentum carried, shortened to the radius; d_parallel is
  its part along strong. With eta = 1, no radius and no momentum this is weak +
  scale (strong - weak).

  Args:
    strong: Clean data predicted with the condition.
    weak: Clean data predicted without it.
    scale: 1 is off.
    eta: Factor of the parallel part, which saturates images.
    radius: Largest norm of d, for each image.
    carried: What the step before returned, d before it was shortened.
    momentum: Factor of ``carried``; below 0 in the paper.

  Returns:
    The guided clean data, and ``carried`` for the next step.

  Raises:
    ValueError: If the radius is known to be below 0.
  """
  known = concrete.known(radius)
  if known is not None and not (known >= 0).all():
    raise ValueError(f"{radius=} must be at least 0")

  def dot(a, b):
    return (a * b).sum(axis=tuple(range(1, a.ndim)), keepdims=True)

  least = jnp.finfo(strong.dtype).tiny
  carried = strong - weak + momentum * carried
  norm = jnp.sqrt(jnp.maximum(dot(carried, carried), least))
  # Not times radius / norm, whose derivative is NaN where it is infinite.
  d = carried / jnp.maximum(1, norm / radius)
  square = dot(strong, strong)
  parallel = dot(d, strong) / jnp.where(square > least, square, 1) * strong
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
    weaker: The weaker network.
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
  if interval is None:
    return
  if len(interval) != 2 or not interval[0] <= interval[1]:
    raise ValueError(f"{interval=} must be (low, high) with low <= high")


def _scale_at(scale: Any, t, x_t: Batch) -> Any:
  """The scale at this time, as a number or one for each example."""
  return per_example(cast(Any, scale(t) if callable(scale) else scale), x_t)


def _extrapolate(
  schedule: Schedule, strong: Prediction, weak: Prediction, x_t, t, scale,
  interval, rescale,
) -> Prediction:  # fmt: skip
  """Weak + scale (strong - weak), in the target of the strong one."""
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
  if not (isinstance(rescale, int | float) and rescale == 0):
    shrunk = _spread(strong.output) / _spread(guided)
    guided = guided * (1 + rescale * (shrunk - 1))
  return read(
    schedule, x_t, t, guided, strong.raw, target=strong.target,
    variance=strong.variance,
  )  # fmt: skip


def _spread(x: Batch) -> Float[Array, "B *ones"]:
  """The standard deviation of each example; that of a constant has a slope."""
  var = jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True)
  return jnp.sqrt(jnp.maximum(var, jnp.finfo(x.dtype).tiny))


__getattr__ = moved(
  __name__, {"drop_labels": "diffusion_jax.conditions:drop_labels"}
)
