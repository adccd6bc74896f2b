"""Continuous schedules: a path, and how the log-SNR falls along it.

A path gives alpha and sigma as functions of the log-SNR; x_t / alpha and
u = sigma / alpha are the same on all paths, so one model serves all:

  path      alpha, sigma
  ========  =========================================
  vp        alpha^2 + sigma^2 = 1
  ve        alpha = 1 (Karras et al. 2022)
  straight  alpha + sigma = 1 (Liu et al. 2022, Lipman et al. 2022)

Any falling log-SNR makes a schedule on any path; the named ones are here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import concrete
from diffusion_jax.schedules import Level, Time

Real = Float[Array, "..."]


def vp(log_snr: Real) -> tuple[Any, Any]:
  """Variance preserving: alpha^2 = sigmoid(log SNR)."""
  return (
    jnp.sqrt(jax.nn.sigmoid(log_snr)),
    jnp.sqrt(jax.nn.sigmoid(-log_snr)),
  )


def ve(log_snr: Real) -> tuple[Any, Any]:
  """Variance exploding: the data are never scaled."""
  return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)


def straight(log_snr: Real) -> tuple[Any, Any]:
  """The straight line from data to noise."""
  return jax.nn.sigmoid(log_snr / 2), jax.nn.sigmoid(-log_snr / 2)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Continuous:
  """A continuous schedule of times 0..T, without arrays.

  Attributes:
    log_snr: ``t -> log_snr``, falling; infinite at 0.
    time: ``log_snr -> t``, its inverse.
    path: ``log_snr -> (alpha, sigma)``.
    T: The noisiest time.
    first: The cleanest time at which a network is called.
  """

  log_snr: Callable[[Real], Real]
  time: Callable[[Real], Real]
  path: Callable[[Real], tuple[Any, Any]] = vp
  T: float = 1.0
  first: float = 1e-3

  def __post_init__(self):
    # Whole ends are written as 80, too, and a whole T is that of a table.
    for name in ("T", "first"):
      object.__setattr__(self, name, float(getattr(self, name)))

  def at(self, t: Time) -> Level:
    """Signal and noise at times t.

    Raises:
      ValueError: If t is not in 0..T; a traced t is not checked. Where alpha is
        1 all times above T are times, too: EDM's training draws some.
    """
    most = math.inf if self.path is ve else self.T * (1 + 1e-6)
    known = concrete.known(t)
    wrong = [] if known is None else known[~((known >= 0) & (known <= most))]
    if len(wrong):
      raise ValueError(f"t={wrong[0]} is not in 0..T={self.T}")
    log_snr = self.log_snr(jnp.asarray(t, jnp.result_type(float)))
    return Level(*self.path(log_snr), log_snr)

  def part(self, a: Real) -> Real:
    """The t / T at which arcsinh(sigma / alpha) is a."""
    return self.time(-2 * jnp.log(jnp.sinh(a))) / self.T

  def noise_scale(self, t: Time) -> Real:
    """sigma_t, which may be far from 1."""
    return self.at(t).sigma

  def shifted(self, k: float) -> "Continuous":
    """The schedule with k times the noise, sigma / alpha, at every time.

    k = d / 64 for images of d x d pixels (simple diffusion, Hoogeboom et al.
    2023), sqrt(pixels / base pixels) (Esser et al. 2024, section 5.3.2).

    Raises:
      ValueError: If k is not above 0.
    """
    if not 0 < k < math.inf:
      raise ValueError(f"{k=} must be above 0 and finite; 1 is no shift")
    fall = 2 * math.log(k)
    return dataclasses.replace(
      self,
      log_snr=lambda t: self.log_snr(t) - fall,
      time=lambda log_snr: self.time(log_snr + fall),
    )


def cosine() -> Continuous:
  """A quarter of a circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

  def log_snr(t):
    # cos(pi t / 2) as a sine is exactly 0 at t = 1.
    return 2 * (
      jnp.log(jnp.sin(math.pi / 2 * (1 - t)))
      - jnp.log(jnp.sin(math.pi / 2 * t))
    )

  return Continuous(
    log_snr, lambda log_snr: 2 / math.pi * jnp.arctan(jnp.exp(-log_snr / 2))
  )


def linear(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Continuous:
  """The VP SDE, beta(t) linear (Song et al. 2021, appendix C).

  alpha^2 = exp(-beta_min t - (beta_max - beta_min) t^2 / 2).

  Raises:
    ValueError: If beta does not grow from above 0.
  """
  if not 0 < beta_min < beta_max < math.inf:
    raise ValueError(f"{beta_min=} must be above 0 and below {beta_max=}")
  slope = beta_max - beta_min

  def log_snr(t):
    return -jnp.log(jnp.expm1(beta_min * t + slope * t**2 / 2))

  def time(log_snr):
    total = jax.nn.softplus(-log_snr)
    return (jnp.sqrt(beta_min**2 + 2 * slope * total) - beta_min) / slope

  return Continuous(log_snr, time)


def edm(*, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Continuous:
  """Time is sigma itself, alpha is 1 (Karras et al. 2022, table 1).

  Raises:
    ValueError: If sigma does not grow from above 0.
  """
  if not 0 < sigma_min < sigma_max < math.inf:
    raise ValueError(f"{sigma_min=} must be above 0 and below {sigma_max=}")
  return Continuous(
    lambda t: -2 * jnp.log(t),
    lambda log_snr: jnp.exp(-log_snr / 2),
    ve,
    T=sigma_max,
    first=sigma_min,
  )


def flow(*, noise: float = 1.0) -> Continuous:
  """Rectified flow, flow matching: alpha = 1 - t, sigma = noise t.

  Args:
    noise: Standard deviation of x at t = 1: 1, or more for large images
      (2 and 4 at 512 and 1024 pixels, JiT, Li and He 2025).

  Raises:
    ValueError: If the noise is not above 0.
  """
  plain = Continuous(
    lambda t: 2 * (jnp.log1p(-t) - jnp.log(t)),
    lambda log_snr: jax.nn.sigmoid(-log_snr / 2),
    straight,
  )
  if noise == 1:
    return plain
  if not 0 < noise < math.inf:
    raise ValueError(f"{noise=} must be above 0 and finite; 1 is usual")

  def path(log_snr):
    alpha, tau = straight(log_snr + 2 * math.log(noise))
    return alpha, noise * tau

  return dataclasses.replace(plain.shifted(noise), path=path)
