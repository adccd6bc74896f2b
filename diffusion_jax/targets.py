"""What a network predicts: a linear combination of clean data and noise.

  F = p x_0 + q eps,    p, q functions of the schedule and of t

With x_t = alpha x_0 + sigma eps these are two linear equations. Let
d = q alpha - sigma p be their determinant. Then every conversion, and every
weight of an error, is one formula:

  x0_hat = (q x_t - sigma F_hat) / d
  |F_a - F_a_hat|^2 = (d_a / d_b)^2 |F_b - F_b_hat|^2

  =====  ======================================  ===  =====
  name   F                                       p    q
  =====  ======================================  ===  =====
  eps    the noise (DDPM)                        0    1
  x0     the clean data                          1    0
  v      alpha eps - sigma x_0 (Salimans and Ho  -s   a
         2022, section 4)
  flow   eps - x_0, the velocity of a straight   -1   1
         path (Liu et al. 2022)
  jit    (x_t - x_0) / max(sigma, 0.05), the    see ``jit``
         velocity in JiT's loss (Li and He
         2025)
  edm    (D - c_skip x) / c_out (Karras et al.   see ``edm``
         2022, table 1)
  mean   E[x_{t-1} given x_t, x_0] (DDPM, eq. 7)  c_0 + c_t a, c_t s
  =====  ======================================  ===  =====
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import process
from diffusion_jax.levels import Schedule, Time, before
from diffusion_jax.process import Batch, per_example

Number = Float[Array, "..."] | float
Coefficient = Callable[[Schedule, Time], Number]


@dataclasses.dataclass(frozen=True)
class Target:
  """F = p x_0 + q eps.

  Attributes:
    p: Coefficient of x_0.
    q: Coefficient of eps.
    c: c_t and c_0, where F is better written c_t x_t + c_0 x_0: then p is
      c_0 + c_t alpha and q is c_t sigma, and d = -c_0 sigma has no
      cancellation.
    is_mean: Whether F is the mean of a step: the mean of p(x_s | x_t) is then
      the network's output, even if x0_hat is clipped.
  """

  p: Coefficient
  q: Coefficient
  c: Callable[[Schedule, Time], tuple[Number, Number]] | None = None
  is_mean: bool = False

  def of(self, schedule: Schedule, x0: Batch, t: Time, eps: Batch) -> Batch:
    """F itself, the ideal output of a network: p x_0 + q eps."""
    if self.c is not None:  # As exact as ``to_x0`` assumes.
      c_t, c_0 = (per_example(c, x0) for c in self.c(schedule, t))
      return c_0 * x0 + c_t * process.q_sample(schedule, x0, t, eps)
    p, q = (per_example(c(schedule, t), x0) for c in (self.p, self.q))
    return p * x0 + q * eps

  def to_x0(self, schedule: Schedule, x_t: Batch, t: Time, F: Batch) -> Batch:
    """The clean data for which F is the target: (q x_t - sigma F) / d."""
    if self.c is not None:  # The same, with sigma cancelled.
      c_t, c_0 = (per_example(c, x_t) for c in self.c(schedule, t))
      return (F - c_t * x_t) / c_0
    q, sigma, d = (
      per_example(c, x_t)
      for c in (
        self.q(schedule, t),
        schedule.at(t).sigma,
        self.det(schedule, t),
      )
    )
    return (q * x_t - sigma * F) / d

  def det(self, schedule: Schedule, t: Time) -> Number:
    """The determinant d = q alpha - sigma p."""
    at = schedule.at(t)
    if self.c is not None:
      return -self.c(schedule, t)[1] * at.sigma
    return self.q(schedule, t) * at.alpha - at.sigma * self.p(schedule, t)


def error_ratio(a: Target, b: Target, schedule: Schedule, t: Time) -> Number:
  """|F_a - F_a_hat|^2 over |F_b - F_b_hat|^2, for the same prediction.

  Infinite or NaN where b does not determine x_0, or a is the constant x_t (at
  t = 0).
  """
  return (a.det(schedule, t) / b.det(schedule, t)) ** 2


def _number(value: float) -> Coefficient:
  return lambda schedule, t: value


def _of_sample(c, *, is_mean: bool = False) -> Target:
  """The target c_t x_t + c_0 x_0."""

  def p(schedule, t):
    c_t, c_0 = c(schedule, t)
    return c_0 + c_t * schedule.at(t).alpha

  def q(schedule, t):
    return c(schedule, t)[0] * schedule.at(t).sigma

  return Target(p, q, c, is_mean)


def _step(schedule, t):
  return process.posterior_coefficients(schedule, t, before(schedule, t))[::-1]


eps = Target(p=_number(0.0), q=_number(1.0))
x0 = _of_sample(lambda schedule, t: (0.0, 1.0))
v = Target(
  p=lambda schedule, t: -schedule.at(t).sigma,
  q=lambda schedule, t: schedule.at(t).alpha,
)
flow = Target(p=_number(-1.0), q=_number(1.0))
# That of the step to t - 1, so only for discrete schedules.
mean = _of_sample(_step, is_mean=True)


@functools.cache  # Targets are the same where their functions are.
def jit(least: float = 0.05) -> Target:
  """(x_t - x_0) / max(sigma, least): the velocity of a straight path.

  JiT predicts x_0 and minimises the error of this velocity (Li and He 2025,
  table 1): pass it as the ``space`` of ``losses.weighted_mse``. Where sigma is
  below ``least``, the error of the exact velocity would outweigh all others.

  Args:
    least: The smallest divisor. On ``continuous.flow`` with c times the noise
      take c times as much; the published loss is c^2 times the one here.

  Returns:
    The target.
  """

  def c(schedule, t):
    each = 1 / jnp.maximum(schedule.at(t).sigma, least)
    return each, -each

  return _of_sample(c)


@functools.cache  # Targets are the same where their functions are.
def edm(sigma_data: float = 0.5) -> Target:
  """EDM's F, of unit variance at every noise level (Karras et al. 2022).

  With h^2 = alpha^2 sigma_data^2 + sigma^2, F = (sigma / (sigma_data h)) x_0 -
  (alpha sigma_data / h) eps and d = -h / sigma_data: on a variance-preserving
  path, with data of unit variance, F is -v.

  Args:
    sigma_data: Standard deviation of the data.

  Returns:
    The target.

  Raises:
    ValueError: If sigma_data is not above 0.
  """
  if not sigma_data > 0:
    raise ValueError(f"{sigma_data=} must be above 0, a standard deviation")

  def h(schedule, t):
    at = schedule.at(t)
    return at, jnp.hypot(at.alpha * sigma_data, at.sigma)

  def p(schedule, t):
    at, scale = h(schedule, t)
    return at.sigma / (sigma_data * scale)

  def q(schedule, t):
    at, scale = h(schedule, t)
    return -at.alpha * sigma_data / scale

  return Target(p, q)


TARGETS = {
  "eps": eps, "x0": x0, "mean": mean, "v": v, "flow": flow, "jit": jit(),
  "edm": edm(),
}  # fmt: skip
