"""Samplers: a step is one equation, ``sample`` is the one loop.

A step is ``step(predict, schedule, x_t, t, s, eps) -> (x_s, x0_hat)``. It is
deterministic: its Gaussian noise is the argument ``eps``. ``predict`` is a
network, or several with guidance, see ``prediction``. A ``Solver`` is a step
with a memory; those of higher order are in ``solvers``.

Noise does not come from a stream: for the step of image k to time s it comes
from fold_in(fold_in(key, k), s), and x_T is that of time T. So image k is the
same whatever the batch size or the number of devices, and also if sampling is
split into several calls.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import timesteps
from diffusion_jax.prediction import Predict, p_mean_variance
from diffusion_jax.process import (
  Batch,
  check_descends,
  per_example,
  posterior_var,
  rates,
)
from diffusion_jax.schedules import Schedule, Time

Step = Callable[..., tuple[Batch, Batch]]


class Solver(NamedTuple):
  """A step with a memory, for methods that reuse earlier predictions.

  Attributes:
    init: ``(x_T, t) -> history``, the memory before the first step: a pytree
      whose shapes no step changes.
    step: ``(predict, schedule, x_t, t, s, eps, history) -> (x_s, x0_hat,
      history)``, with t and s scalars.
  """

  init: Callable[[Batch, Time], Any]
  step: Callable[..., tuple[Batch, Batch, Any]]


def as_solver(step: Step | Solver) -> Solver:
  """A step as a solver with an empty memory."""
  if isinstance(step, Solver):
    return step

  def forget(predict, schedule, x_t, t, s, eps, history):
    return *step(predict, schedule, x_t, t, s, eps), history

  return Solver(lambda x_T, t: (), forget)


class Trajectory(NamedTuple):
  """What ``sample`` kept, in the order of ``keep``.

  Attributes:
    s: The steps.
    x: The samples x_s.
    x0_hat: The predicted clean data of the step to s.
    history: The solver's memory at the end, from which ``sample`` can continue.
  """

  s: Int[Array, " K"]
  x: Float[Array, "K B *image"]
  x0_hat: Float[Array, "K B *image"]
  history: Any = ()


def ancestral_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """Draws x_s from p(x_s | x_t) (DDPM, algorithm 2, lines 3 and 4).

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: The time of x_t, 1..T.
    s: The time to move to, 0..t-1. At s = 0 no noise is added.
    eps: Standard Gaussian noise, the shape of x_t.

  Returns:
    x_s and the predicted clean data x0_hat.
  """
  prediction = predict(x_t, t)
  p = p_mean_variance(schedule, prediction, x_t, t, s)
  std = jnp.where(per_example(s, x_t) > 0, jnp.exp(0.5 * p.log_var), 0.0)
  return p.mean + std * eps, prediction.x0_hat


def ddim_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
  *,
  eta: float | Float[Array, ""] = 0.0,
) -> tuple[Batch, Batch]:
  """Moves to x_s along the predicted noise (DDIM, eqs. 12 and 16).

  x_s = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std eps, where std
  is eta times that of the posterior. If x0_hat is clipped, eps_hat follows from
  the clipped one, as in the published code. So eta = 1 is the same step as
  ``ancestral_step`` with fixed_small, clipping included.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: The time of x_t, 1..T.
    s: The time to move to, 0..t-1.
    eps: Standard Gaussian noise; unused where eta is 0.
    eta: 0 is deterministic, 1 is ancestral sampling.

  Returns:
    x_s and the predicted clean data x0_hat.

  Raises:
    ValueError: If eta is not in [0, 1], or s is above t.
  """
  check_eta(eta, 1.0)
  check_descends(t, s)
  p = predict(x_t, t)
  alpha_s, _ = rates(schedule, s, x_t)
  var = per_example(eta**2 * posterior_var(schedule, t, s), x_t)
  # sigma_s^2 - var without a difference of the two: if eta is 1 and the step
  # is long, only rounding errors would remain.
  to = schedule.at(s)
  old_noise = jnp.exp(schedule.at(t).log_snr - to.log_snr)
  rest = to.sigma**2 * (1 - eta**2 + eta**2 * old_noise)
  x_s = (
    alpha_s * p.x0_hat
    + per_example(jnp.sqrt(rest), x_t) * p.eps_hat
    + jnp.sqrt(var) * eps
  )
  return x_s, p.x0_hat


def trapezoid(
  x: Batch,
  h: Float[Array, "..."],
  slope: Batch,
  slope_at: Callable[[Batch], Batch],
  s: Time,
) -> Batch:
  """Heun's method: x + h times the mean of the slopes at both ends of a step.

  Args:
    x: The start of the step.
    h: The length of the step.
    slope: dx/dh at the start.
    slope_at: ``x -> slope`` at the end of Euler's step; not called at s = 0.
    s: The time where the step ends.

  Returns:
    The end of the step; at s = 0 that of Euler's step.
  """
  return jax.lax.cond(
    jnp.asarray(s) > 0,
    lambda ahead: x + h * (slope + slope_at(ahead)) / 2,
    lambda ahead: ahead,
    x + h * slope,
  )


def noise(
  key: Key[Array, ""], s: Time, images: Int[Array, " B"], shape: Sequence[int]
) -> Float[Array, "B *image"]:
  """The standard Gaussian noise of these images for the step to s.

  Args:
    key: The root of all of a run's noise.
    s: The time that the step moves to.
    images: Numbers of the images, one key for each.
    shape: The shape of one image.

  Returns:
    [B, *shape]; row k depends on key, s and images[k] alone. A continuous time
    enters by its bits in float32.
  """
  s = jnp.asarray(s)
  if jnp.issubdtype(s.dtype, jnp.floating):
    s = jax.lax.bitcast_convert_type(s.astype(jnp.float32), jnp.uint32)

  def one(image):
    return jax.random.normal(
      jax.random.fold_in(jax.random.fold_in(key, image), s), shape
    )

  return jax.vmap(one)(images)


def prior(
  schedule: Schedule,
  key: Key[Array, ""],
  t: Time,
  images: Int[Array, " B"],
  shape: Sequence[int],
) -> Float[Array, "B *image"]:
  """The noise from which sampling starts at t, at the schedule's scale.

  Args:
    schedule: The noise schedule.
    key: The root of all of a run's noise.
    t: The time where sampling starts.
    images: Numbers of the images.
    shape: The shape of one image.

  Returns:
    [B, *shape].
  """
  return schedule.noise_scale(t) * noise(key, t, images, shape)


def sample(
  step: Step | Solver,
  predict: Predict,
  schedule: Schedule,
  shape: Sequence[int],
  key: Key[Array, ""],
  *,
  pairs: timesteps.AnyPairs | None = None,
  x_T: Any = None,
  first: int | Int[Array, ""] = 0,
  keep: Sequence[int] = (),
  history: Any = None,
) -> tuple[Batch, Trajectory]:
  """Samples from noise to data (DDPM, algorithm 2): one ``lax.scan``.

  Args:
    step: A step function, options bound with ``functools.partial``, or a
      solver.
    predict: The network, see ``prediction``.
    schedule: The noise schedule, the one ``predict`` was made with.
    shape: The shape of the batch, (B, H, W, C).
    key: The root of all noise, x_T's included.
    pairs: The steps (t, s), see ``timesteps``; by default all T.
    x_T: The sample to start from, instead of noise.
    first: The number of the first image; images 64..127 are ``first=64`` with
      B = 64.
    keep: Times s at which to keep x_s and x0_hat, for previews. Only these
      are held in memory.
    history: If sampling is split into several calls, the ``history`` of the
      call before. A solver then continues as if there had been one call.

  Returns:
    The samples, float64 on a schedule of float64; the trajectory at ``keep``.

  Raises:
    ValueError: If pairs do not descend within 1..T, an entry of ``keep`` is not
      visited or is repeated, or x_T does not have that shape.
  """
  pairs = timesteps.every(schedule.T) if pairs is None else pairs
  check_walk(pairs, schedule.T)
  _check_keep(pairs, keep)
  images = first + jnp.arange(shape[0])
  walked = jnp.asarray(pairs)
  if x_T is None:
    x_T = prior(schedule, key, walked[0, 0], images, shape[1:])
  elif x_T.shape != tuple(shape):
    raise ValueError(f"x_T has shape {x_T.shape}, and shape is {tuple(shape)}")
  # A step computes in the precision of the schedule.
  at = schedule.at(walked[0, 0])
  x_T = jnp.asarray(x_T, jnp.result_type(x_T, at.alpha))
  solver = as_solver(step)
  history = solver.init(x_T, walked[0, 0]) if history is None else history
  empty = jnp.zeros((len(keep), *shape), x_T.dtype)
  wanted = jnp.asarray(keep, walked.dtype)

  def body(carry, pair):
    x_t, memory, kept = carry
    t, s = pair
    eps = noise(key, s, images, shape[1:]).astype(x_t.dtype)
    x_s, x0_hat, memory = solver.step(predict, schedule, x_t, t, s, eps, memory)
    if keep:
      # A step that is not kept has slot len(keep), which mode="drop" ignores.
      slot = jnp.cumprod(wanted != s).sum()
      kept = jax.tree.map(
        lambda buffer, new: buffer.at[slot].set(new, mode="drop"),
        kept,
        (x_s, x0_hat),
      )
    return (x_s, memory, kept), None

  start = (x_T, history, (empty, empty))
  (x, history, kept), _ = jax.lax.scan(body, start, walked)
  return x, Trajectory(wanted, *kept, history)


def check_eta(eta: float | Array, most: float) -> None:
  """Raises for an eta outside 0..most; a traced one cannot be checked."""
  if not isinstance(eta, Tracer) and not 0 <= eta <= most:
    raise ValueError(f"eta={float(eta)} must be in [0, {most}]")


def check_walk(pairs: Any, T: int | float) -> None:
  """Checks that pairs descend within 0..T; traced ones cannot be checked.

  Raises:
    ValueError: With the first pair that is wrong.
  """
  if isinstance(pairs, Tracer):
    return
  pairs = np.asarray(pairs)
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
    raise ValueError(f"pairs have shape {pairs.shape}; pass rows (t, s)")
  if isinstance(T, int) and pairs.dtype.kind not in "iu":
    raise ValueError(f"pairs are {pairs.dtype}; steps are whole numbers")
  right = (pairs[:, 1] < pairs[:, 0]) & (pairs[:, 1] >= 0) & (pairs[:, 0] <= T)
  if not right.all():  # NaN is not
    t, s = pairs[np.argmin(right)]
    raise ValueError(f"pair (t={t}, s={s}) must have 0 <= s < t <= T = {T}")
  apart = pairs[1:, 0] != pairs[:-1, 1]
  if apart.any():
    i = np.argmax(apart)
    raise ValueError(
      f"the pair after s={pairs[i, 1]} begins at t={pairs[i + 1, 0]}; each "
      "must begin where the one before ends, see timesteps.walk"
    )


def _check_keep(pairs: Any, keep: Sequence[int]) -> None:
  """Refuses steps to keep that are named twice, or that a walk has not."""
  if isinstance(pairs, Tracer):
    return
  pairs = np.asarray(pairs)
  if len(set(keep)) < len(keep):
    raise ValueError(f"keep={tuple(keep)} names a step twice")
  missing = sorted(set(keep) - set(pairs[:, 1].tolist()))
  if missing:
    raise ValueError(
      f"keep={missing[0]} is not a step that the walk reaches; "
      f"choose among the s of pairs, {pairs[0, 1]} down to {pairs[-1, 1]}"
    )
