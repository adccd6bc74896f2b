"""Training losses. Each returns [B], one number per example.

``simple`` draws its own t and noise; ``weighted_mse`` is the deterministic
core that takes them. The error is measured in the space of the network's
target and, where a weight is given, converted to the noise's error first, so
that a weight means the same thing whatever the network predicts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import process, timesteps
from diffusion_jax.process import Batch, Denoise
from diffusion_jax.schedules import Schedule

Weight = Callable[[Schedule, Int[Array, " B"]], Float[Array, " B"]]


def simple(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  target: str = "eps",
  weight: Weight | None = None,
) -> Float[Array, " B"]:
  """The simple loss: mean ||eps - eps_hat(x_t, t)||^2 (DDPM, eq. 14).

  Args:
    denoise: ``(x_t, t) -> output``.
    schedule: The noise schedule.
    x0: Clean data in [-1, 1].
    key: For the steps and for the noise.
    target: What the network predicts.
    weight: One of the weights below; None is the plain squared error of
      the target.

  Returns:
    [B], the mean over all axes but the first. A network that knows nothing
    (zero output) of the noise scores 1.
  """
  key_t, key_eps = jax.random.split(key)
  t = timesteps.uniform(key_t, x0.shape[0], schedule.T)
  eps = jax.random.normal(key_eps, x0.shape, x0.dtype)
  return weighted_mse(
    denoise, schedule, x0, t, eps, target=target, weight=weight
  )


def weighted_mse(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  t: Int[Array, " B"],
  eps: Batch,
  *,
  target: str = "eps",
  weight: Weight | None = None,
) -> Float[Array, " B"]:
  """Squared error of the network at given steps and noise.

  Args:
    denoise: ``(x_t, t) -> output``.
    schedule: The noise schedule.
    x0: Clean data.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    target: What the network predicts.
    weight: Weight of ||eps - eps_hat||^2; None weighs the error of the
      target itself with 1.

  Returns:
    [B], the mean over all axes but the first.
  """
  x_t = process.q_sample(schedule, x0, t, eps)
  truth = target_of(schedule, x0, x_t, t, eps, target)
  # Channels past the target's belong to a learned variance.
  prediction = denoise(x_t, t)[..., : x0.shape[-1]]
  mse = mean_per_example((truth - prediction) ** 2)
  if weight is None:
    return mse
  return weight(schedule, t) * eps_error(schedule, t, target) * mse


def target_of(
  schedule: Schedule,
  x0: Batch,
  x_t: Batch,
  t: Int[Array, " B"],
  eps: Batch,
  target: str,
) -> Batch:
  """What a network of this target should have returned."""
  if target == "eps":
    return eps
  if target == "x0":
    return x0
  if target == "v":
    return process.v_from_eps(schedule, x0, t, eps)
  if target == "mean":
    return process.mean_from_x0(schedule, x_t, t, x0)
  raise ValueError(f"{target=} is not one of {', '.join(process.TARGETS)}")


def eps_error(
  schedule: Schedule, t: Int[Array, " B"], target: str
) -> Float[Array, " B"]:
  """||eps - eps_hat||^2 over the squared error in the target's space.

  For x_0 this is the SNR, for v alpha^2, for the mean of the step to t - 1
  SNR / c_0^2 with c_0 = dmean/dx_0.
  """
  if target == "eps":
    return jnp.ones_like(schedule.alpha[t])
  if target == "v":
    return schedule.alpha[t] ** 2
  if target == "x0":
    return process.snr(schedule, t)
  if target == "mean":
    c_0 = schedule.alpha[t - 1] * process.fresh_noise(schedule, t, t - 1)
    return process.snr(schedule, t) / c_0**2
  raise ValueError(f"{target=} is not one of {', '.join(process.TARGETS)}")


def mean_per_example(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
  """Mean over all axes but the first."""
  return x.mean(axis=tuple(range(1, x.ndim)))


# -------------------------------------- weights of ||eps - eps_hat||^2 at t


def bound(variance: str = "fixed_large") -> Weight:
  """The weight that makes the loss a term of the variational bound.

  beta_t^2 / (2 var_t (1 - beta_t) sigma_t^2), in nats per dimension (DDPM,
  eq. 12). With T times the mean over uniform t this is the whole sum
  L_1 + ... + L_T up to a constant.

  Args:
    variance: "fixed_small" or "fixed_large", the variance of p.

  Returns:
    The weight.
  """
  if variance not in ("fixed_small", "fixed_large"):
    raise ValueError(f"{variance=} is not one of fixed_small, fixed_large")

  def weight(schedule, t):
    s = t - 1
    beta = process.beta(schedule, t, s)
    if variance == "fixed_large":
      var = beta
    else:
      var = jnp.exp(process.posterior_log_var(schedule, t, s))
    single_step = (schedule.alpha[t] / schedule.alpha[s]) ** 2  # 1 - beta_t
    return beta**2 / (2 * var * single_step * schedule.sigma[t] ** 2)

  return weight


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
  """1 / (k + SNR)^gamma (Choi et al. 2022, eq. 8)."""
  return lambda schedule, t: (k + process.snr(schedule, t)) ** -gamma


def min_snr(gamma: float = 5.0) -> Weight:
  """min(SNR, gamma) / SNR (Hang et al. 2023, section 3.4).

  For x_0-prediction this weighs the error with min(SNR, gamma), for v with
  min(SNR, gamma) / (SNR + 1).
  """
  return lambda schedule, t: jnp.minimum(gamma / process.snr(schedule, t), 1)


def truncated_snr() -> Weight:
  """max(SNR, 1) / SNR (Salimans and Ho 2022, section 4)."""
  return lambda schedule, t: jnp.maximum(1 / process.snr(schedule, t), 1)
