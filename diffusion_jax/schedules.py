"""Noise schedules: how much signal is left at each step.

A schedule fixes q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) for t = 0..T. Here
t = 0 is clean data and t = T is (almost) pure noise, as in the DDPM paper, so
every table has length T + 1 with alpha[0] = 1 and sigma[0] = 0.

The betas are the variances of the single steps,
q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), and
abar_t = prod_{i<=t} (1 - beta_i) is the power of the signal that remains:
alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t).

Tables are computed in float64 on the host and rounded once: a float32
cumulative product is off by 1e-3 in 1 - abar at T = 4000.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax import concrete
from diffusion_jax.levels import (
  Level as Level,
  Schedule as Schedule,
  Time as Time,
  is_discrete as is_discrete,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
  """A discrete schedule of steps 0..T, a pytree of its tables.

  Attributes:
    alpha: sqrt(abar_t), the factor of the signal; alpha[0] = 1.
    sigma: sqrt(1 - abar_t), the standard deviation of the noise;
      sigma[0] = 0.
    log_snr: log(alpha_t^2 / sigma_t^2), strictly decreasing;
      log_snr[0] = inf.
  """

  alpha: Float[Array, " steps"]
  sigma: Float[Array, " steps"]
  log_snr: Float[Array, " steps"]

  @property
  def T(self) -> int:
    """The number of noising steps."""
    return self.alpha.shape[0] - 1

  @property
  def first(self) -> int:
    """Step 1."""
    return 1

  def at(self, t: Time) -> Level:
    """The tables' entries at steps t.

    Raises:
      ValueError: If t is not an integer, or not in 0..T; a traced t is not
        checked against 0..T.
    """
    if not jnp.issubdtype(kind := jnp.result_type(t), jnp.integer):
      raise ValueError(f"t is {kind}; steps are whole numbers, 0..T={self.T}")
    concrete.check_range("t", t, 0, self.T)
    return Level(self.alpha[t], self.sigma[t], self.log_snr[t])

  def part(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The t / T at which arcsinh(sigma / alpha) is a; t may be fractional."""
    table = jnp.arcsinh(self.sigma / self.alpha)
    steps = jnp.linspace(0, 1, self.T + 1, dtype=table.dtype)
    return jnp.interp(a, table, steps)

  def time(self, log_snr: Float[Array, "..."], /) -> Float[Array, "..."]:
    """Always raises: a table has no values between its steps."""
    raise ValueError(
      "a discrete schedule has no noise level between two steps; use "
      "one of diffusion_jax.continuous, or no churn"
    )

  def noise_scale(self, t: Time) -> float:
    """1, as in the papers, although sigma_T is a little less."""
    return 1.0


def from_betas(
  betas,
  *,
  shift: float = 1.0,
  zero_terminal: bool = False,
  dtype: DTypeLike | None = None,
) -> Table:
  """Builds a schedule from the variances of its single steps.

  Args:
    betas: [T] values in (0, 1), from the first step to the last.
    shift: Multiplies sigma_t / alpha_t at every step: above 1 adds noise,
      below 1 removes some (Hoogeboom et al. 2023, section 3.1).
    zero_terminal: Stretch sqrt(abar) so that it ends at exactly 0: sampling
      then starts at the noise level where training ended, and images may be
      darker or brighter than the mean (Lin et al. 2023, algorithm 1). At t = T
      the noise does not determine the data: predict v, x0 or flow.
    dtype: Dtype of the tables; by default JAX's own (float32, or float64 under
      ``jax_enable_x64``).

  Returns:
    The schedule.

  Raises:
    ValueError: If betas is not one-dimensional, is empty, or has a value
      outside (0, 1); the message names the first one. If shift is not
      positive and finite.
  """
  if not 0 < shift < np.inf:
    raise ValueError(f"{shift=} must be above 0 and finite; 1 is no shift")
  betas = np.asarray(betas, np.float64)
  if zero_terminal and betas.size == 1:
    raise ValueError("zero_terminal needs at least 2 betas; 1 was given")
  if betas.ndim != 1 or betas.size == 0:
    raise ValueError(
      f"betas have shape {betas.shape}; pass one value per step, shape (T,)"
    )
  bad = ~((betas > 0) & (betas < 1))  # also true for NaN
  if bad.any():
    i = int(np.argmax(bad))
    raise ValueError(
      f"betas[{i}] = {betas[i]} (step t = {i + 1}) is outside (0, 1); a beta "
      "is the variance that one step adds"
    )
  log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
  # -expm1 keeps the digits of 1 - abar that a subtraction would cancel.
  abar, one_minus_abar = np.exp(log_abar), -np.expm1(log_abar)
  with np.errstate(divide="ignore"):
    if zero_terminal:
      root = np.exp(log_abar[1:] / 2)
      root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
      abar = np.append(1.0, root**2)
      one_minus_abar = np.append(0.0, (1 - root) * (1 + root))
      log_abar = np.log(abar)
    log_snr = log_abar - np.log(one_minus_abar)
  if shift != 1:
    log_snr = log_snr - 2 * np.log(shift)
    # sigmoid(log_snr) and its complement, in a form that cannot overflow.
    total = abar + shift**2 * one_minus_abar
    abar, one_minus_abar = abar / total, shift**2 * one_minus_abar / total
  return _round(np.sqrt(abar), np.sqrt(one_minus_abar), log_snr, dtype)


def linear(
  T: int,
  *,
  scale: bool = True,
  beta_start: float = 1e-4,
  beta_end: float = 0.02,
  zero_terminal: bool = False,
  dtype: DTypeLike | None = None,
) -> Table:
  """Betas grow linearly (DDPM, section 4).

  Args:
    T: Number of steps.
    scale: Multiply the betas by 1000 / T, as Improved DDPM's code does, so
      that any T ends at the same noise level; False is the original.
      Short scaled schedules would need betas of 1 or more and are refused:
      T must exceed 20.
    beta_start: First beta of the 1000-step schedule.
    beta_end: Last beta of the 1000-step schedule.
    zero_terminal: See ``from_betas``.
    dtype: Dtype of the tables.

  Returns:
    The schedule.
  """
  betas = _rising(beta_start, beta_end, T)
  return from_betas(
    betas * (1000 / T if scale else 1.0),
    zero_terminal=zero_terminal,
    dtype=dtype,
  )


def quadratic(
  T: int,
  *,
  beta_start: float = 1e-4,
  beta_end: float = 0.02,
  zero_terminal: bool = False,
  dtype: DTypeLike | None = None,
) -> Table:
  """sqrt(beta) grows linearly (``quad`` in the DDPM code)."""
  roots = _rising(beta_start**0.5, beta_end**0.5, T)
  return from_betas(roots**2, zero_terminal=zero_terminal, dtype=dtype)


def constant(
  T: int, *, beta: float = 0.02, dtype: DTypeLike | None = None
) -> Table:
  """Every beta is the same (``const`` in the DDPM code)."""
  return from_betas(np.full(_checked(T), beta), dtype=dtype)


def warmup(
  T: int,
  *,
  fraction: float,
  beta_start: float = 1e-4,
  beta_end: float = 0.02,
  dtype: DTypeLike | None = None,
) -> Table:
  """Betas grow linearly for the first ``fraction`` of steps, then are constant.

  ``fraction`` 0.1 and 0.5 are ``warmup10`` and ``warmup50`` of the DDPM code.
  """
  if not 0 <= fraction <= 1:
    raise ValueError(f"{fraction=} must be in [0, 1], the part that warms up")
  betas = np.full(_checked(T), beta_end)
  rising = int(T * fraction)
  betas[:rising] = np.linspace(beta_start, beta_end, rising)
  return from_betas(betas, dtype=dtype)


def jsd(T: int, *, dtype: DTypeLike | None = None) -> Table:
  """beta_t = 1 / (T - t + 1): 1/T, 1/(T-1), ..., 1/2, 1.

  The betas of Sohl-Dickstein et al. 2015 (``jsd`` in the DDPM code), where
  abar falls linearly to zero. A last beta of exactly 1 leaves no signal and
  an infinite log-SNR, so it is clipped to 0.999, as the cosine schedule's is.
  """
  return from_betas(
    np.minimum(1.0 / np.arange(_checked(T), 0, -1), 0.999), dtype=dtype
  )


def cosine(
  T: int,
  *,
  offset: float = 0.008,
  max_beta: float = 0.999,
  shift: float = 1.0,
  zero_terminal: bool = False,
  dtype: DTypeLike | None = None,
) -> Table:
  """Abar follows a squared cosine (Improved DDPM, eq. 17).

  f(u) = cos^2((u + offset) / (1 + offset) pi / 2) and
  beta_t = min(1 - f(t/T) / f((t-1)/T), max_beta). As in the published code
  abar is the product of the clipped betas, not f itself.

  Args:
    T: Number of steps.
    offset: Keeps the first betas from vanishing; the paper's s.
    max_beta: Largest beta; only the last step reaches it.
    zero_terminal: See ``from_betas``.
    shift: See ``from_betas``. d / 64 is simple diffusion's shifted cosine for
      images of d x d pixels (Hoogeboom et al. 2023, eq. 6).
    dtype: Dtype of the tables.

  Returns:
    The schedule.
  """
  if not 0 <= offset < np.inf:
    raise ValueError(f"{offset=} must be at least 0 and finite; 0.008 is usual")
  u = np.linspace(0, 1, _checked(T) + 1)
  f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
  betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
  return from_betas(
    betas, shift=shift, zero_terminal=zero_terminal, dtype=dtype
  )


def sigmoid(
  T: int,
  *,
  start: float = -3.0,
  end: float = 3.0,
  tau: float = 1.0,
  max_beta: float = 0.999,
  dtype: DTypeLike | None = None,
) -> Table:
  """Abar follows a sigmoid (Jabri et al. 2022, figure 8; Chen 2023).

  With S(u) = sigmoid(((end - start) u + start) / tau), abar(u) =
  (S(1) - S(u)) / (S(1) - S(0)), turned into betas and clipped like cosine's.

  Args:
    T: Number of steps.
    start: Where on the sigmoid u = 0 lies.
    end: Where on the sigmoid u = 1 lies.
    tau: Temperature; larger is closer to linear in abar.
    max_beta: Largest beta.
    dtype: Dtype of the tables.

  Returns:
    The schedule.
  """
  if not (0 < tau < np.inf and abs(end - start) > 0):
    raise ValueError(f"{tau=} must be above 0, {start=} other than {end=}")
  u = np.linspace(0, 1, _checked(T) + 1)
  s = 1 / (1 + np.exp(-((end - start) * u + start) / tau))
  abar = (s[-1] - s) / (s[-1] - s[0])
  return from_betas(np.minimum(1 - abar[1:] / abar[:-1], max_beta), dtype=dtype)


def _rising(first: float, last: float, T: int) -> np.ndarray:
  """T even values from first to last; a single one is the last."""
  return np.linspace(first, last, _checked(T)) if T != 1 else np.array([last])


def _checked(T: int) -> int:
  if not isinstance(T, int | np.integer) or isinstance(T, bool) or T < 1:
    raise ValueError(f"{T=} must be a whole number of steps, at least 1")
  return int(T)


def _round(alpha, sigma, log_snr, dtype: DTypeLike | None) -> Table:
  """The one place where float64 becomes the working precision."""
  dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.float64):
    # In 16 bits the log-SNR of neighbouring steps is the same number.
    raise ValueError(f"dtype={dtype.name} must be float32 or float64")
  return Table(*(jnp.asarray(x, dtype) for x in (alpha, sigma, log_snr)))
