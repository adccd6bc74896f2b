"""The diffusion process: forward, and its posterior.

Notation as in the papers: x0 is clean data, x_t its noisy version at time t,
s < t the time that a reverse step moves to, eps standard Gaussian noise. A
time may be a scalar or one per example, [B]; it is broadcast over the
remaining axes. Formulas for a pair (t, s) hold for any s < t, not only
s = t - 1, so skipping steps needs no new tables.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from diffusion_jax import concrete
from diffusion_jax.deprecated import moved
from diffusion_jax.levels import Schedule, Time, before

Batch = Float[Array, "B *image"]


class Posterior(NamedTuple):
  """The Gaussian q(x_s | x_t, x_0)."""

  mean: Batch
  var: Float[Array, "..."]


def beside(
  values: Shaped[ArrayLike, "*any"], like: Batch
) -> Shaped[Array, "*any"]:
  """Values in float32 beside images in float32, if the schedule is in float64.

  They would make the images wider.
  """
  values = jnp.asarray(values)
  if values.dtype == jnp.float64 and like.dtype == jnp.float32:
    return values.astype(like.dtype)
  return values


def per_example(
  values: Shaped[ArrayLike, "..."], like: Batch
) -> Shaped[Array, "..."]:
  """Reshapes [B] (or []) so that it broadcasts over [B, ...] on the left."""
  values = beside(values, like)
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def times(t: Time, like: Batch) -> Shaped[Array, " B"]:
  """One time per example, as a network takes them."""
  return jnp.broadcast_to(jnp.asarray(t), like.shape[:1])


def rates(schedule: Schedule, t: Time, like: Batch):
  """alpha_t and sigma_t, shaped to multiply ``like``."""
  at = schedule.at(t)
  return per_example(at.alpha, like), per_example(at.sigma, like)


def snr(schedule: Schedule, t: Time) -> Float[Array, "..."]:
  """Signal-to-noise ratio alpha_t^2 / sigma_t^2; infinite at t = 0."""
  return jnp.exp(schedule.at(t).log_snr)


# ---------------------------------------------------------------- forward


def check_floats(x0: Batch, name: str = "x0") -> None:
  """Raises ValueError for integers, such as bytes not scaled to [-1, 1]."""
  if not jnp.issubdtype(kind := jnp.result_type(x0), jnp.inexact):
    raise ValueError(f"{name} is {kind}; pass floats, see images.from_uint8")


def _check_noise(eps: Batch, x: Batch) -> None:
  """Refuses noise that would be broadcast: the same for several numbers."""
  if jnp.shape(eps) != x.shape:
    raise ValueError(
      f"eps has shape {jnp.shape(eps)}, the data {x.shape}: each number needs "
      "noise of its own"
    )


def _check_times(t: Time, x: Batch) -> None:
  """Refuses times that would be broadcast to other examples."""
  if jnp.shape(t) not in ((), x.shape[:1]):
    raise ValueError(
      f"t has shape {jnp.shape(t)}: pass one time, or one for each of the "
      f"{len(x)} examples"
    )


def check_descends(t: Time, s: Time) -> None:
  """Raises ValueError for a time s above t: variances would be negative."""
  start, end = concrete.known(t), concrete.known(s)
  if start is None or end is None or not (wrong := end > start).any():
    return
  ends = (np.broadcast_to(x, wrong.shape)[wrong][0] for x in (end, start))
  raise ValueError("s={} is above t={}; s must be the cleaner".format(*ends))


def q_sample(schedule: Schedule, x0: Batch, t: Time, eps: Batch) -> Batch:
  """Jumps from clean data to step t in one go.

  x_t = alpha_t x_0 + sigma_t eps  (DDPM, eq. 4, reparameterised).

  Args:
    schedule: The noise schedule.
    x0: Clean data, images in [-1, 1].
    t: Steps 0..T; t = 0 returns x0.
    eps: Standard Gaussian noise, the shape of x0.

  Returns:
    x_t, the shape of x0.

  Raises:
    ValueError: If x0 are integers, which would be bytes and not in [-1, 1], if
      eps does not have the shape of x0, or t is not one time or one for each
      example.
  """
  check_floats(x0)
  _check_times(t, x0)
  _check_noise(eps, x0)
  alpha, sigma = rates(schedule, t, x0)
  return alpha * x0 + sigma * eps


def q_step(
  schedule: Schedule, x_s: Batch, t: Time, eps: Batch, *, s: Time | None = None
) -> Batch:
  """Adds the noise between s and t (DDPM, eq. 2 where s = t - 1).

  x_t = (alpha_t / alpha_s) x_s + sqrt(beta_{t|s}) eps.

  Args:
    schedule: The noise schedule.
    x_s: The sample at step s.
    t: The time to move to, 1..T.
    eps: Standard Gaussian noise, the shape of x_s.
    s: The time of x_s, below t; by default t - 1.

  Returns:
    x_t, the shape of x_s.

  Raises:
    ValueError: If eps has another shape, s is above t, or there is no s and the
      schedule is continuous.
  """
  _check_noise(eps, x_s)
  start = before(schedule, t) if s is None else s
  check_descends(t, start)
  ratio = per_example(schedule.at(t).alpha / schedule.at(start).alpha, x_s)
  std = per_example(jnp.sqrt(beta(schedule, t, start)), x_s)
  return ratio * x_s + std * eps


def beta(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """beta_{t|s} = 1 - abar_t / abar_s, the variance added from s to t."""
  return schedule.at(t).sigma ** 2 * fresh_noise(schedule, t, s)


def fresh_noise(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """beta_{t|s} / sigma_t^2: the part of x_t's noise that is newer than s.

  Equals 1 - SNR_t / SNR_s. Written with expm1 because the two ratios are
  close to one another for neighbouring steps; at s = 0 it is exactly 1.
  """
  return -jnp.expm1(schedule.at(t).log_snr - schedule.at(s).log_snr)


def posterior_coefficients(schedule: Schedule, t: Time, s: Time):
  """c_0, c_t with E[x_s | x_t, x_0] = c_0 x_0 + c_t x_t (DDPM, eq. 7)."""
  at, to = schedule.at(t), schedule.at(s)
  c_0 = to.alpha * fresh_noise(schedule, t, s)
  c_t = (at.alpha / to.alpha) * (to.sigma / at.sigma) ** 2
  return c_0, c_t


def posterior_var(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """Var[x_s | x_t, x_0] = sigma_s^2 beta_{t|s} / sigma_t^2; 0 at s = 0."""
  return schedule.at(s).sigma ** 2 * fresh_noise(schedule, t, s)


def posterior_log_var(
  schedule: Schedule, t: Time, s: Time, *, above: Time | None = None
) -> Float[Array, "..."]:
  """Log of ``posterior_var``, made finite at s = 0.

  The posterior of the last step is a point. Its log-variance is replaced by
  that of the step before it, from ``above`` to t, as in the published code. If
  there is no step before it, log sigma_t^2 takes its place.

  Args:
    schedule: The noise schedule.
    t: The time to start from, 1..T.
    s: The time to move to, 0..t-1.
    above: The time before t in sampling, used only at s = 0; t itself if
      sampling starts there. By default the smaller of T and 2 t, the time
      before t when steps are even.

  Returns:
    The shape of t.
  """
  t, s = jnp.asarray(t), jnp.asarray(s)
  before = jnp.minimum(2 * t, schedule.T) if above is None else above
  last = s == 0
  # The branch that is not taken must not be a logarithm of 0 either.
  var = posterior_var(
    schedule, jnp.where(last, before, t), jnp.where(last, t, s)
  )
  alone = last & (before <= t)
  return jnp.log(jnp.where(alone, schedule.at(t).sigma ** 2, var))


def q_posterior(
  schedule: Schedule, x0: Batch, x_t: Batch, t: Time, s: Time
) -> Posterior:
  """The reverse step when x_0 is known: q(x_s | x_t, x_0).

  DDPM, eqs. 6 and 7, for any pair 0 <= s < t <= T.

  Args:
    schedule: The noise schedule.
    x0: Clean data.
    x_t: The noisy sample, the shape of x0.
    t: The time of x_t, 1..T.
    s: The time to move to, 0..t-1; at s = 0 the posterior is a point at x0.

  Returns:
    Mean (the shape of x0) and variance (broadcastable to it).

  Raises:
    ValueError: If s is above t.
  """
  check_descends(t, s)
  c_0, c_t = (
    per_example(c, x0) for c in posterior_coefficients(schedule, t, s)
  )
  var = per_example(posterior_var(schedule, t, s), x0)
  return Posterior(c_0 * x0 + c_t * x_t, var)


__getattr__ = moved(
  __name__,
  {
    "TARGETS": "diffusion_jax.targets:TARGETS",
    "VARIANCES": "diffusion_jax.prediction:VARIANCES",
    "v_from_eps": "diffusion_jax.targets:v.of",
    "x0_from_eps": "diffusion_jax.targets:eps.to_x0",
    "x0_from_mean": "diffusion_jax.targets:mean.to_x0",
    "x0_from_v": "diffusion_jax.targets:v.to_x0",
  },
)
