"""EDM: a network at unit scale, and Heun's method with churn.

Karras et al. 2022, for any path: with u = sigma / alpha, the paper's sigma, and
data of standard deviation sigma_data,

  D(x; u) = c_skip x + c_out F(c_in x, c_noise)

gives the network inputs and targets of unit variance at every noise level. F
is ``targets.edm``, c_in and c_noise are the ``scale`` and ``clock`` of
``prediction.predictor``. The paper weights the error of D by 1 / c_out^2, which
is the plain error of F: no weight is needed.

The time steps of algorithm 2 are ``spacing.karras``, its schedule is
``continuous.edm``, and the noise levels in training ``timesteps.log_normal``.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.levels import first_if_clean
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch
from diffusion_jax.samplers import Step, trapezoid
from diffusion_jax.schedules import Schedule, Time


def c_in(sigma_data: float = 0.5) -> Callable[[Schedule, Time], jax.Array]:
  """1 / sqrt(alpha^2 sigma_data^2 + sigma^2) (table 1)."""

  def scale(schedule, t):
    at = schedule.at(t)
    return 1 / jnp.hypot(at.alpha * sigma_data, at.sigma)

  return scale


def c_noise(schedule: Schedule, t: Time) -> jax.Array:
  """ln(u) / 4, the time that the network gets (table 1)."""
  return -schedule.at(t).log_snr / 8


def heun(
  num_steps: int,
  *,
  S_churn: float = 0.0,
  S_min: float = 0.0,
  S_max: float = math.inf,
  S_noise: float = 1.0,
) -> Step:
  """Heun's method for dy/du = eps_hat, y = x / alpha (algorithm 2).

  Before each step noise is added, from u up to (1 + gamma) u with gamma =
  min(S_churn / num_steps, sqrt(2) - 1). The last step, to s = 0, is Euler's:
  num_steps steps call the network 2 num_steps - 1 times. u must be finite: do
  not start where no signal is left, as at the end of ``continuous.flow``.

  Args:
    num_steps: The number of sampling steps.
    S_churn: How much noise all steps add together; 0 is deterministic, and
      works with any schedule.
    S_min: Lowest u at which noise is added.
    S_max: Highest u at which noise is added.
    S_noise: Multiplies the noise, since networks tend to remove too much.

  Returns:
    The step; it needs a continuous schedule if S_churn is above 0.

  Raises:
    ValueError: If an option is out of its range.
  """
  if num_steps < 1:
    raise ValueError(f"{num_steps=} must be at least 1")
  if not (S_churn >= 0 and S_noise >= 0 and 0 <= S_min <= S_max):
    raise ValueError(
      f"{S_churn=}, {S_noise=} must not be negative and {S_min=}, {S_max=} "
      "must be 0 <= S_min <= S_max"
    )
  gamma = min(S_churn / num_steps, math.sqrt(2) - 1)
  return functools.partial(
    _heun_step, gamma=gamma, S_min=S_min, S_max=S_max, S_noise=S_noise
  )


def _heun_step(
  predict: Predict, schedule: Schedule, x_t: Batch, t: Time, s: Time,
  eps: Batch, *, gamma: float, S_min: float, S_max: float, S_noise: float,
) -> tuple[Batch, Batch]:  # fmt: skip
  """See ``heun``."""
  u, y = _ratio(schedule, t), x_t / schedule.at(t).alpha
  u_s, alpha_s = _ratio(schedule, s), schedule.at(s).alpha
  u_hat, t_hat = u, jnp.asarray(t)
  if gamma > 0:
    grow = jnp.where((S_min <= u) & (u <= S_max), gamma, 0.0)
    u_hat = (1 + grow) * u
    y = y + S_noise * jnp.sqrt(grow * (2 + grow)) * u * eps
    raised = schedule.time(-2 * jnp.log(u_hat))
    t_hat = jnp.where(grow > 0, raised, t_hat)
  p = predict(schedule.at(t_hat).alpha * y, t_hat)
  slope = (y - p.x0_hat) / u_hat

  def slope_at(y_s):
    there = predict(alpha_s * y_s, first_if_clean(schedule, s))
    return (y_s - there.x0_hat) / u_s

  y_s = trapezoid(y, u_s - u_hat, slope, slope_at, s)
  return alpha_s * y_s, p.x0_hat


def _ratio(schedule: Schedule, t: Time) -> jax.Array:
  """The ratio u = sigma / alpha; 0 at t = 0."""
  at = schedule.at(t)
  return at.sigma / at.alpha
