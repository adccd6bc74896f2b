"""The variational bound on -log p(x_0), term by term, in bits per dimension.

-log p(x_0) <= prior + sum over the sampler's pairs (t, s) of
  KL(q(x_s | x_t, x_0) || p(x_s | x_t))   where s > 0
  -log p(x_0 | x_t)                       where s = 0, the decoder
(DDPM, eq. 5). Images have L levels, x_0 = 2 k / (L - 1) - 1, by default the 256
of bytes, and the decoder is a Gaussian's mass in a bin of width 2 / (L - 1)
around x_0, the outer bins open.

Extreme log-variances give finite numbers and finite gradients: where float32
would overflow, exp continues as its tangent.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import process
from diffusion_jax.prediction import Reverse
from diffusion_jax.process import Batch, per_example
from diffusion_jax.schedules import Schedule, Time

CDFS = ("tanh", "erf")
LN2 = math.log(2)
# Past these, exp would leave float32 and a Gaussian's CDF is 0 or 1.
MAX_EXPONENT = 60.0
MAX_SIGMAS = 20.0
MIN_MASS = 1e-12  # of a bin, as in the published code: at most 39.9 bits


def bits_per_dim(nats: Float[Array, "B ..."]) -> Float[Array, " B"]:
  """Mean over all axes but the first, in bits."""
  return nats.mean(axis=tuple(range(1, nats.ndim))) / LN2


def gaussian_kl(
  mean_q: Float[Array, "..."],
  log_var_q: Float[Array, "..."],
  mean_p: Float[Array, "..."] | float,
  log_var_p: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
  """KL(q || p) of Gaussians with diagonal covariance, in nats, elementwise."""
  return 0.5 * (
    log_var_p
    - log_var_q
    + _exp(log_var_q - log_var_p)
    - 1
    + (mean_q - mean_p) ** 2 * _exp(-log_var_p)
  )


def discretised_log_prob(
  x0: Batch,
  mean: Float[Array, "..."] | float,
  log_std: Float[Array, "..."] | float,
  *,
  cdf: str = "tanh",
  levels: int = 256,
) -> Batch:
  """Log of a Gaussian's mass in x_0's bin, in nats (DDPM, eq. 13).

  Args:
    x0: Data, 2 k / (levels - 1) - 1.
    mean: Mean of the Gaussian.
    log_std: Log of its standard deviation, broadcastable.
    cdf: "tanh" is the published approximation, 0.5 (1 + tanh(sqrt(2 / pi)
      (z + 0.044715 z^3))); "erf" is exact.
    levels: The number of values that each pixel can have, at least 2. A bin's
      mass loses precision in float32 if the Gaussian is thousands of bins wide.

  Returns:
    The shape of x0; not below log(1e-12).

  Raises:
    ValueError: If cdf is neither, or levels is below 2.
  """
  if cdf not in CDFS:
    raise ValueError(f"{cdf=} is not one of {', '.join(CDFS)}")
  if levels < 2:
    raise ValueError(f"{levels=} must be at least 2; bytes have 256")
  half = 1 / (levels - 1)
  phi = _tanh_cdf if cdf == "tanh" else jax.scipy.stats.norm.cdf
  scale, away = _exp(-log_std), x0 - mean

  def mass_below(edge):
    return phi(jnp.clip(scale * edge, -MAX_SIGMAS, MAX_SIGMAS))

  # A bin above the mean has the mass of its mirror image below, which is not
  # a difference of two numbers close to 1.
  middle = -jnp.abs(away)
  mass = jnp.where(
    x0 < half - 1,
    mass_below(away + half),
    jnp.where(
      x0 > 1 - half,
      mass_below(half - away),
      mass_below(middle + half) - mass_below(middle - half),
    ),
  )
  return jnp.log(jnp.maximum(mass, MIN_MASS))


def prior(
  schedule: Schedule, x0: Batch, t: Time | None = None
) -> Float[Array, " B"]:
  """KL(q(x_t | x_0) || p(x_t)) where a walk begins, bits per dimension.

  p(x_t) is N(0, I), scaled as ``samplers.prior`` scales the noise of t.

  Args:
    schedule: The noise schedule.
    x0: Data.
    t: The walk's first step; by default T.

  Returns:
    [B], the mean over all axes but the first.
  """
  t = schedule.T if t is None else t
  alpha, sigma = process.rates(schedule, t, x0)
  log_var = 2 * jnp.log(schedule.noise_scale(t))
  return bits_per_dim(gaussian_kl(alpha * x0, 2 * jnp.log(sigma), 0.0, log_var))


def term(
  schedule: Schedule,
  p: Reverse,
  x0: Batch,
  x_t: Batch,
  t: Time,
  s: Time,
  *,
  cdf: str = "tanh",
  levels: int = 256,
) -> Float[Array, " B"]:
  """The bound's term for the step from t to s, bits per dimension.

  Args:
    schedule: The noise schedule.
    p: p(x_s | x_t), from ``prediction.p_mean_variance``.
    x0: Data, 2 k / (levels - 1) - 1.
    x_t: A draw of q(x_t | x_0).
    t: The time of x_t, 1..T.
    s: The time of the step's end; at 0 the term is the decoder's.
    cdf: CDF of the decoder, see ``discretised_log_prob``.
    levels: The number of values that each pixel can have.

  Returns:
    [B], the mean over all axes but the first.
  """
  decodes = jnp.broadcast_to(
    per_example(jnp.asarray(s) == 0, x_t), p.log_var.shape
  )
  # Both branches are evaluated, and a gradient of infinity in the one that
  # is not taken would still be NaN: each gets a harmless variance there.
  q = process.q_posterior(schedule, x0, x_t, t, s)
  log_var_q = per_example(process.posterior_log_var(schedule, t, s), x_t)
  kl = gaussian_kl(q.mean, log_var_q, p.mean, jnp.where(decodes, 0, p.log_var))
  log_std = 0.5 * jnp.where(decodes, p.log_var, 0)
  nll = -discretised_log_prob(x0, p.mean, log_std, cdf=cdf, levels=levels)
  return bits_per_dim(jnp.where(decodes, nll, kl))


def _exp(x):
  """The exponential, continued as its tangent from MAX_EXPONENT on."""
  below = jnp.minimum(x, MAX_EXPONENT)
  return jnp.exp(below) * (1 + (x - below))


def _tanh_cdf(z):
  # As a sigmoid, (1 + tanh(y)) / 2 keeps its digits where it is small.
  y = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
  return jax.nn.sigmoid(2 * y)
