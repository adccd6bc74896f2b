"""The diffusion process: forward, its posterior, and the learned reverse.

Notation as in the papers: x0 is clean data, x_t its noisy version at step t,
s < t the step that a reverse move walks to, eps standard Gaussian noise. A
time may be a scalar or one per example, [B]; it is broadcast over the
remaining axes. Formulas for a pair (t, s) hold for any s < t, not only
s = t - 1, so skipping steps needs no new tables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from diffusion_jax.schedules import Schedule

TARGETS = ("eps", "x0", "mean", "v")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")

Batch = Float[Array, "B *image"]
Time = Int[Array, " B"] | Int[Array, ""] | int | np.integer
# Any callable that answers for (x_t, t) as a network would: a U-Net with its
# parameters, a closed form, a guided model. t holds one step per example. What
# comes back is an array; Flax's apply has no such static type, hence Any.
Denoise = Callable[[Batch, Int[Array, " B"]], Any]


class Posterior(NamedTuple):
  """The Gaussian q(x_s | x_t, x_0)."""

  mean: Batch
  var: Float[Array, "..."]


class Reverse(NamedTuple):
  """The Gaussian p(x_s | x_t) that a network's output stands for.

  Attributes:
    mean: Its mean.
    log_var: Log of its variance, broadcastable to the mean. Finite also at
      s = 0, see ``posterior_log_var``.
    x0_hat: The clean data that the output predicts, clipped if asked.
    eps_hat: The noise that leads from x0_hat to x_t.
  """

  mean: Batch
  log_var: Float[Array, "..."]
  x0_hat: Batch
  eps_hat: Batch


def per_example(
  values: Shaped[ArrayLike, "..."], like: Batch
) -> Shaped[Array, "..."]:
  """Reshapes [B] (or []) so that it broadcasts over [B, ...] on the left."""
  values = jnp.asarray(values)
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def rates(schedule: Schedule, t: Time, like: Batch):
  """alpha_t and sigma_t, shaped to multiply ``like``."""
  return per_example(schedule.alpha[t], like), per_example(
    schedule.sigma[t], like
  )


def snr(schedule: Schedule, t: Time) -> Float[Array, "..."]:
  """Signal-to-noise ratio alpha_t^2 / sigma_t^2; infinite at t = 0."""
  return jnp.exp(schedule.log_snr[t])


# ---------------------------------------------------------------- forward


def check_floats(x0: Batch) -> None:
  """Refuses bytes, which would be images of a hundredfold contrast."""
  if not jnp.issubdtype(kind := jnp.result_type(x0), jnp.inexact):
    raise ValueError(f"x0 is {kind}; pass floats, see images.from_uint8")


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
    ValueError: If x0 are integers, which would be bytes and not in [-1, 1].
  """
  check_floats(x0)
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
    t: Where to go, 1..T.
    eps: Standard Gaussian noise, the shape of x_s.
    s: Where x_s stands, below t; by default t - 1.

  Returns:
    x_t, the shape of x_s.
  """
  start = t - 1 if s is None else s
  ratio = per_example(schedule.alpha[t] / schedule.alpha[start], x_s)
  std = per_example(jnp.sqrt(beta(schedule, t, start)), x_s)
  return ratio * x_s + std * eps


def beta(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """beta_{t|s} = 1 - abar_t / abar_s, the variance added from s to t."""
  return schedule.sigma[t] ** 2 * fresh_noise(schedule, t, s)


def fresh_noise(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """beta_{t|s} / sigma_t^2: the part of x_t's noise that is newer than s.

  Equals 1 - SNR_t / SNR_s. Written with expm1 because the two ratios are
  close to one another for neighbouring steps; at s = 0 it is exactly 1.
  """
  return -jnp.expm1(schedule.log_snr[t] - schedule.log_snr[s])


def _posterior_coefficients(schedule: Schedule, t: Time, s: Time, like: Batch):
  """c_0, c_t with E[x_s | x_t, x_0] = c_0 x_0 + c_t x_t (DDPM, eq. 7)."""
  c_0 = schedule.alpha[s] * fresh_noise(schedule, t, s)
  c_t = (schedule.alpha[t] / schedule.alpha[s]) * (
    schedule.sigma[s] / schedule.sigma[t]
  ) ** 2
  return per_example(c_0, like), per_example(c_t, like)


def posterior_var(schedule: Schedule, t: Time, s: Time) -> Float[Array, "..."]:
  """Var[x_s | x_t, x_0] = sigma_s^2 beta_{t|s} / sigma_t^2; 0 at s = 0."""
  return schedule.sigma[s] ** 2 * fresh_noise(schedule, t, s)


def posterior_log_var(
  schedule: Schedule, t: Time, s: Time, *, above: Time | None = None
) -> Float[Array, "..."]:
  """Log of ``posterior_var``, made finite at s = 0.

  The posterior of the last move is a point. Its log-variance is replaced by
  that of the move before it, (above, t), as in the published code; a walk of
  one move has none, and takes that of x_t, sigma_t^2.

  Args:
    schedule: The noise schedule.
    t: Where to start, 1..T.
    s: Where to go, 0..t-1.
    above: From where the walk came to t, used at s = 0 alone; t itself if it
      began there. By default 2 t, that of an even walk, or T.

  Returns:
    The shape of t.
  """
  t, s = jnp.asarray(t), jnp.asarray(s)
  before = jnp.minimum(2 * t, schedule.T) if above is None else above
  last = s == 0
  # Of the moves that are not chosen, none may be a logarithm of 0.
  var = posterior_var(
    schedule, jnp.where(last, before, t), jnp.where(last, t, s)
  )
  alone = last & (before <= t)
  return jnp.log(jnp.where(alone, schedule.sigma[t] ** 2, var))


def q_posterior(
  schedule: Schedule, x0: Batch, x_t: Batch, t: Time, s: Time
) -> Posterior:
  """The reverse step when x_0 is known: q(x_s | x_t, x_0).

  DDPM, eqs. 6 and 7, for any pair 0 <= s < t <= T.

  Args:
    schedule: The noise schedule.
    x0: Clean data.
    x_t: The noisy sample, the shape of x0.
    t: Where x_t stands, 1..T.
    s: Where to go, 0..t-1; at s = 0 the posterior is a point at x0.

  Returns:
    Mean (the shape of x0) and variance (broadcastable to it).
  """
  c_0, c_t = _posterior_coefficients(schedule, t, s, x0)
  var = per_example(posterior_var(schedule, t, s), x0)
  return Posterior(c_0 * x0 + c_t * x_t, var)


# ------------------------------------------------- eps <-> x0 <-> v <-> mean


def x0_from_eps(schedule: Schedule, x_t: Batch, t: Time, eps: Batch) -> Batch:
  """x_0 = (x_t - sigma_t eps) / alpha_t."""
  alpha, sigma = rates(schedule, t, x_t)
  return (x_t - sigma * eps) / alpha


def eps_from_x0(schedule: Schedule, x_t: Batch, t: Time, x0: Batch) -> Batch:
  """Eps = (x_t - alpha_t x_0) / sigma_t."""
  alpha, sigma = rates(schedule, t, x_t)
  return (x_t - alpha * x0) / sigma


def v_from_eps(schedule: Schedule, x0: Batch, t: Time, eps: Batch) -> Batch:
  """V = alpha_t eps - sigma_t x_0 (Salimans and Ho 2022, section 4)."""
  alpha, sigma = rates(schedule, t, x0)
  return alpha * eps - sigma * x0


def x0_from_v(schedule: Schedule, x_t: Batch, t: Time, v: Batch) -> Batch:
  """x_0 = alpha_t x_t - sigma_t v."""
  alpha, sigma = rates(schedule, t, x_t)
  return alpha * x_t - sigma * v


def eps_from_v(schedule: Schedule, x_t: Batch, t: Time, v: Batch) -> Batch:
  """Eps = sigma_t x_t + alpha_t v."""
  alpha, sigma = rates(schedule, t, x_t)
  return sigma * x_t + alpha * v


def mean_from_x0(schedule: Schedule, x_t: Batch, t: Time, x0: Batch) -> Batch:
  """The mean of q(x_{t-1} | x_t, x_0), the "mean" a network may predict."""
  return q_posterior(schedule, x0, x_t, t, t - 1).mean


def x0_from_mean(schedule: Schedule, x_t: Batch, t: Time, mean: Batch) -> Batch:
  """The x_0 whose posterior has this mean at t - 1."""
  c_0, c_t = _posterior_coefficients(schedule, t, t - 1, x_t)
  return (mean - c_t * x_t) / c_0


def x0_from_output(
  schedule: Schedule, output: Batch, x_t: Batch, t: Time, target: str
) -> Batch:
  """The clean data that a network's output of kind ``target`` stands for."""
  if target == "eps":
    return x0_from_eps(schedule, x_t, t, output)
  if target == "x0":
    return output
  if target == "v":
    return x0_from_v(schedule, x_t, t, output)
  if target == "mean":
    return x0_from_mean(schedule, x_t, t, output)
  raise ValueError(f"{target=} is not one of {', '.join(TARGETS)}")


# ---------------------------------------------------------------- reverse


def p_mean_variance(
  schedule: Schedule,
  output: Float[Array, "B ..."],
  x_t: Batch,
  t: Time,
  s: Time,
  *,
  target: str = "eps",
  variance: str = "fixed_small",
  clip: bool = True,
  above: Time | None = None,
) -> Reverse:
  """Reads a network's output as the Gaussian p(x_s | x_t).

  The mean is that of q(x_s | x_t, x0_hat) (DDPM, eq. 11).

  Args:
    schedule: The noise schedule.
    output: What the network returned for (x_t, t). With a learned variance
      the last axis has twice x_t's channels, the mean's first.
    x_t: The noisy sample.
    t: Where x_t stands, 1..T.
    s: Where to go, 0..t-1.
    target: What the network predicts: "eps", "x0", "mean" (of the step to
      t - 1) or "v".
    variance: "fixed_small" is the posterior's variance, "fixed_large" is
      beta_{t|s}; "learned" is exp of the second half of the output and
      "learned_range" interpolates between the two fixed ones in the log
      domain, from -1 (small) to 1 (large) (Improved DDPM, eq. 15).
    clip: Clip x0_hat to [-1, 1] before the mean is formed. A network that
      predicts the mean itself keeps its mean; only x0_hat is clipped.
    above: From where the walk came to t, where s = 0; see
      ``posterior_log_var``.

  Returns:
    Mean, log-variance, x0_hat and eps_hat.

  Raises:
    ValueError: If target or variance is not a known name, or the output's
      channels do not fit the variance.
  """
  prediction, log_var = _split_variance(
    schedule, output, x_t, t, s, variance, above
  )
  raw_x0 = x0_from_output(schedule, prediction, x_t, t, target)
  x0_hat = jnp.clip(raw_x0, -1, 1) if clip else raw_x0
  mean_x0 = raw_x0 if target == "mean" else x0_hat
  return Reverse(
    mean=q_posterior(schedule, mean_x0, x_t, t, s).mean,
    log_var=log_var,
    x0_hat=x0_hat,
    eps_hat=eps_from_x0(schedule, x_t, t, x0_hat),
  )


def _split_variance(schedule, output, x_t, t, s, variance: str, above):
  """Splits the output into its prediction and the log-variance of p."""
  if variance not in VARIANCES:
    raise ValueError(f"{variance=} is not one of {', '.join(VARIANCES)}")
  learned = variance in ("learned", "learned_range")
  channels = x_t.shape[-1]
  if output.shape[-1] != (2 * channels if learned else channels):
    raise ValueError(
      f"{variance=} with {channels} channels needs "
      f"{2 * channels if learned else channels} output channels, the network "
      f"returned {output.shape[-1]}"
    )
  small = per_example(posterior_log_var(schedule, t, s, above=above), x_t)
  large = per_example(jnp.log(beta(schedule, t, s)), x_t)
  if variance == "fixed_small":
    return output, small
  if variance == "fixed_large":
    # The last move borrows the small variance for a better likelihood, as
    # in the published code.
    return output, jnp.where(per_example(jnp.asarray(s), x_t) > 0, large, small)
  prediction, raw = jnp.split(output, 2, axis=-1)
  if variance == "learned":
    return prediction, raw
  fraction = (raw + 1) / 2
  return prediction, fraction * large + (1 - fraction) * small
