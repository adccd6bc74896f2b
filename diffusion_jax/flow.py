"""Flow matching: steps along the straight path between noise and data.

It exists for every schedule: with z = x / (alpha + sigma) and tau = sigma /
(alpha + sigma), z = (1 - tau) x_0 + tau eps, and the probability flow is

  dz / dtau = eps_hat - x0_hat

(Lipman et al. 2022, Liu et al. 2022). On ``continuous.flow`` z is x and tau is
t. Euler's method for it is ``samplers.ddim_step``; ``solvers`` has multistep
methods. The network's target is ``targets.flow``, its training times are
``timesteps.logit_normal``, shifted by ``Continuous.shifted``.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.levels import first_if_clean
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch, check_descends
from diffusion_jax.samplers import trapezoid
from diffusion_jax.schedules import Schedule, Time

Real = Float[Array, "..."]


def heun_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """Heun's method: the mean of the velocities at both ends of a step.

  Two network calls; at s = 0 Euler's step with one call, which returns x0_hat.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at t.
    t: The time of x_t; a scalar.
    s: The time to move to, below t; a scalar.
    eps: Unused; the step is deterministic.

  Returns:
    x_s and the predicted clean data x0_hat at t.
  """
  del eps
  (size, tau), (size_s, tau_s) = _straight(schedule, t), _straight(schedule, s)
  p = predict(x_t, t)
  z, slope = x_t / size, p.eps_hat - p.x0_hat

  def slope_at(z_s):
    there = predict(size_s * z_s, first_if_clean(schedule, s))
    return there.eps_hat - there.x0_hat

  z_s = trapezoid(z, tau_s - tau, slope, slope_at, s)
  return size_s * z_s, p.x0_hat


def sde_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
  *,
  diffusion: Callable[[Real], Real] = lambda tau: tau,
) -> tuple[Batch, Batch]:
  """Euler and Maruyama's method for the SDE of the same marginals.

  Backwards in tau, dz = (-velocity + D score) dtau + sqrt(2 D) dW with score =
  -eps_hat / tau, for any D(tau) >= 0 (Ma et al. 2024, SiT, eq. 5, whose w is
  2 D). The last step, to s = 0, adds no noise: it ends at x0_hat.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at t.
    t: The time of x_t.
    s: The time to move to, below t.
    eps: Standard Gaussian noise, the shape of x_t.
    diffusion: D; 0 is Euler's method for the ODE.

  Returns:
    x_s and the predicted clean data x0_hat.

  Raises:
    ValueError: If s is above t.
  """
  check_descends(t, s)
  (size, tau), (size_s, tau_s) = _straight(schedule, t), _straight(schedule, s)
  p = predict(x_t, t)
  h = tau - tau_s
  D = jnp.where(jnp.asarray(s) > 0, diffusion(tau), 0.0)
  drift = p.x0_hat - p.eps_hat - (D / tau) * p.eps_hat
  z_s = x_t / size + h * drift + jnp.sqrt(2 * D * h) * eps
  return size_s * z_s, p.x0_hat


def _straight(schedule: Schedule, t: Time) -> tuple[Real, Real]:
  """The sum alpha + sigma, and tau."""
  at = schedule.at(t)
  return at.alpha + at.sigma, at.sigma / (at.alpha + at.sigma)
