"""Weights of ||eps - eps_hat||^2 at step t, for ``losses``.

Where no signal is left, alpha = 0, the noise says nothing of the data, and a
weight may be infinite although the weighted error of x_0 or v is finite. Such
weights are ``PerSignal``, from which ``of_error`` takes the product.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import process, targets
from diffusion_jax.levels import Level, Schedule, Time, before

Weight = Callable[[Schedule, Time], Float[Array, " B"]]


@dataclasses.dataclass(frozen=True)
class PerSignal:
  """A weight written as a number over alpha^2, infinite where alpha is 0.

  Attributes:
    times_signal: ``(schedule, t) -> alpha^2 weight``, finite everywhere.
  """

  times_signal: Weight

  def __call__(self, schedule: Schedule, t: Time) -> Float[Array, " B"]:
    """The weight."""
    return self.times_signal(schedule, t) / schedule.at(t).alpha ** 2


def of_error(
  weight: Weight, target: targets.Target, schedule: Schedule, t: Time
) -> Any:
  """The weight of the target's error that a weight of the noise's means.

  Args:
    weight: The weight of the noise's error.
    target: The target.
    schedule: The noise schedule.
    t: Steps, 1..T.

  Returns:
    The shape of t. Infinite where the target is the noise and the weight is;
    NaN where a weight that is not ``PerSignal`` is infinite and alpha is 0.
  """
  if isinstance(weight, PerSignal):
    return weight.times_signal(schedule, t) / target.det(schedule, t) ** 2
  ratio = targets.error_ratio(targets.eps, target, schedule, t)
  return weight(schedule, t) * ratio


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
    s = before(schedule, t)
    beta = process.beta(schedule, t, s)
    if variance == "fixed_large":
      var = beta
    else:
      var = jnp.exp(process.posterior_log_var(schedule, t, s))
    # Times alpha_t^2, with (alpha_t / alpha_s)^2 for 1 - beta_t.
    at, to = schedule.at(t), schedule.at(s)
    return beta**2 * to.alpha**2 / (2 * var * at.sigma**2)

  return PerSignal(weight)


def _check_range(**numbers: tuple[float, bool]) -> None:
  """Raises for a number that makes a weight negative, 0 or NaN everywhere."""
  for name, (value, right) in numbers.items():
    if not right or not value < math.inf:
      raise ValueError(f"{name}={value} must be positive and finite")


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
  """1 / (k + SNR)^gamma (Choi et al. 2022, eq. 8).

  Raises:
    ValueError: If the weight would be negative, 0 or NaN.
  """
  _check_range(gamma=(gamma, gamma >= 0), k=(k, k >= 0))
  if k == 0:
    return PerSignal(
      lambda schedule, t: (
        schedule.at(t).sigma ** 2 * process.snr(schedule, t) ** (1 - gamma)
      )
    )
  return lambda schedule, t: (k + process.snr(schedule, t)) ** -gamma


def min_snr(gamma: float = 5.0) -> Weight:
  """min(SNR, gamma) / SNR (Hang et al. 2023, section 3.4).

  The weight of the error of x_0 is then min(SNR, gamma), and that of v is
  min(SNR, gamma) / (SNR + 1).

  Raises:
    ValueError: If gamma is not above 0.
  """
  _check_range(gamma=(gamma, gamma > 0))
  return lambda schedule, t: jnp.minimum(gamma / process.snr(schedule, t), 1)


def truncated_snr() -> Weight:
  """max(SNR, 1) / SNR (Salimans and Ho 2022, section 4)."""

  def weight(schedule, t):
    at = schedule.at(t)
    return jnp.maximum(at.sigma, at.alpha) ** 2

  return PerSignal(weight)


def edm(sigma_data: float = 0.5) -> Weight:
  """(SNR sigma_data^2 + 1) / (SNR sigma_data^2), the plain loss of EDM's F.

  Karras et al. 2022, table 1: lambda = 1 / c_out^2, here for the noise's error.

  Raises:
    ValueError: If sigma_data is not above 0.
  """
  _check_range(sigma_data=(sigma_data, sigma_data > 0))

  def weight(schedule, t):
    at = schedule.at(t)
    return at.alpha**2 + (at.sigma / sigma_data) ** 2

  return PerSignal(weight)


def sigmoid(bias: float = 2.0) -> Weight:
  """The sigmoid of bias - log SNR (Kingma and Gao 2023; Hoogeboom et al. 2024).

  A larger bias moves the weight to cleaner steps. As with any weight, what
  counts is its product with the density of the training times.
  """
  return lambda schedule, t: jax.nn.sigmoid(bias - schedule.at(t).log_snr)


def shifted(weight: Weight, k: float) -> Weight:
  """A weight of the log-SNR, evaluated at 1 / k of the noise.

  A weight that works at 64 x 64 pixels then works at d x d with k = d / 64,
  together with the schedule shifted by k (Hoogeboom et al. 2023, section 3.1).

  Args:
    weight: Any but ``bound``, which depends on more than the log-SNR.
    k: The factor by which the noise grows.

  Returns:
    The weight.

  Raises:
    ValueError: If k is not above 0.
  """
  if not 0 < k < math.inf:
    raise ValueError(f"{k=} must be above 0 and finite; 1 is no shift")

  signal = isinstance(weight, PerSignal)
  inner = weight.times_signal if signal else weight

  def moved(schedule, t):
    cleaner: Any = _Cleaner(schedule, k)
    return inner(cleaner, t)

  return PerSignal(moved) if signal else moved


@dataclasses.dataclass(frozen=True)
class _Cleaner:
  """A schedule with 1 / k of the noise beside the same signal."""

  schedule: Any
  k: float

  @property
  def T(self) -> int | float:
    """Refuses: a weight that asks for steps is not one of the log-SNR.

    Raises:
      ValueError: Always.
    """
    raise ValueError(
      "weights.bound is not of the log-SNR alone: do not shift it"
    )

  def at(self, t: Time) -> Level:
    """The level at t, with less noise."""
    at = self.schedule.at(t)
    log_snr = at.log_snr + 2 * math.log(self.k)
    return at._replace(sigma=at.sigma / self.k, log_snr=log_snr)
