"""The likelihood of data under a model, in bits per dimension.

There are two, which cannot be compared with each other: the variational bound
for quantised data, and the density of the probability flow.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import bound, concrete, process, samplers, targets, timesteps
from diffusion_jax.losses import mean_per_example
from diffusion_jax.prediction import Predict, p_mean_variance
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule, is_discrete


def bits_of_a_bin(levels: int) -> float:
  """Bits per dimension that turn a -log2 density into a -log2 probability.

  For data 2 k / (levels - 1) - 1 + u, with u uniform in +-1 / (levels - 1).
  """
  return math.log2((levels - 1) / 2)


BITS_OF_A_BIN = bits_of_a_bin(256)
# In continuous time the flow may begin with this part more noise than at
# ``first``, which is rounding, and end where the SNR is this much above T's.
SLACK, LEFT = 1e-2, 1e-4


class Bound(NamedTuple):
  """The variational bound of each image, by term.

  Attributes:
    total: prior plus the sum of vb, bits per dimension.
    prior: The KL where the steps begin, see ``bound.prior``.
    vb: One term per step, the last is the decoder, bits per dimension.
    mse: Mean squared error of the noise at each step.
    x0_mse: Mean squared error of the clean data at each step.
  """

  total: Float[Array, " B"]
  prior: Float[Array, " B"]
  vb: Float[Array, "B S"]
  mse: Float[Array, "B S"]
  x0_mse: Float[Array, "B S"]


def variational_bound(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  cdf: str = "tanh",
  levels: int = 256,
  pairs: timesteps.AnyPairs | None = None,
  first: int | Int[Array, ""] = 0,
) -> Bound:
  """The bound on -log2 p(x_0) per dimension: one network call per step.

  Each term is estimated with one fresh draw of x_t. The mean over images is
  unbiased; its standard error is that of the totals.

  Args:
    predict: The network, clipped as in the published evaluations.
    schedule: The noise schedule.
    x0: Data, 2 k / (levels - 1) - 1.
    key: The root of all noise; image k's draws depend on key and k alone.
    cdf: CDF of the decoder, see ``bound.discretised_log_prob``.
    levels: The number of values that each pixel can have.
    pairs: The steps (t, s) of the model, from its start; by default all T.
    first: The number of the first image.

  Returns:
    The bound of each image, by term.

  Raises:
    ValueError: If pairs are no walk to 0.
  """
  images = first + jnp.arange(x0.shape[0])
  return variational_bound_with(
    predict, schedule, x0,
    lambda t: samplers.noise(key, t, images, x0.shape[1:]).astype(x0.dtype),
    cdf=cdf, levels=levels, pairs=pairs,
  )  # fmt: skip


def variational_bound_with(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  noise_at: Callable[[Any], Batch],
  *,
  cdf: str = "tanh",
  levels: int = 256,
  pairs: timesteps.AnyPairs | None = None,
) -> Bound:
  """``variational_bound`` with the noise of each step t from ``noise_at``."""
  pairs = timesteps.every(schedule.T) if pairs is None else pairs
  samplers.check_walk(pairs, schedule.T)
  known = concrete.known(pairs)
  if known is not None and known[-1, 1] != 0:
    raise ValueError(
      f"pairs end at s={known[-1, 1]}; a bound needs all, to s=0"
    )
  above = timesteps.above_last(pairs)

  def move(_, pair):
    t, s = jnp.broadcast_to(pair[:, None], (2, x0.shape[0]))
    eps = noise_at(pair[0])
    x_t = process.q_sample(schedule, x0, t, eps)
    prediction = predict(x_t, t)
    p = p_mean_variance(schedule, prediction, x_t, t, s, above=above)
    return None, (
      bound.term(schedule, p, x0, x_t, t, s, cdf=cdf, levels=levels),
      mean_per_example((prediction.eps_hat - eps) ** 2),
      mean_per_example((prediction.x0_hat - x0) ** 2),
    )

  _, terms = jax.lax.scan(move, None, jnp.asarray(pairs))
  vb, mse, x0_mse = (x.T for x in terms)
  prior = bound.prior(schedule, x0, jnp.asarray(pairs)[0, 0])
  return Bound(prior + vb.sum(axis=1), prior, vb, mse, x0_mse)


def _check_visited(schedule: Schedule, visited: np.ndarray) -> None:
  """Checks that times ascend and leave out nothing at either end.

  Raises:
    ValueError: If they do not; names the fault.
  """
  ends = [*visited[:1].tolist(), *visited[-1:].tolist()]
  if is_discrete(schedule):
    whole = ends == [1, schedule.T]
  else:
    # As numbers of Python, float32 times could be beyond a T that they are.
    inside = ends and 0 < visited[0] < visited[-1] <= schedule.T
    whole = inside and _reach_both_ends(schedule, ends)
  if not whole or not (np.diff(visited) > 0).all():
    raise ValueError(
      f"visited steps from {ends} must ascend from {schedule.first} to "
      f"T={schedule.T}"
    )


def _reach_both_ends(schedule: Schedule, ends: Sequence[float]) -> bool:
  """Whether continuous times leave out only what does not count.

  See ``probability_flow``; a schedule that is traced is not checked.
  """
  with jax.ensure_compile_time_eval():
    times = jnp.asarray([schedule.first, schedule.T, *ends])
    log_snr = concrete.known(schedule.at(times).log_snr)
  if log_snr is None:
    return True
  first, last, start, end = log_snr.tolist()
  return start > first - SLACK and math.exp(end) <= math.exp(last) + LEFT


def probability_flow(
  predict: Predict,
  schedule: Schedule,
  x: Batch,
  key: Key[Array, ""],
  *,
  visited: Sequence[float] | np.ndarray | None = None,
) -> Float[Array, " B"]:
  """-log2 of the density that the probability flow gives to x.

  With r = sqrt(alpha_t^2 + sigma_t^2), which is 1 on a VP path, z = x / r and
  the angle phi, tan phi = sigma_t / alpha_t, the flow is dz/dphi = v_hat / r,
  and d log p(z) / dphi is minus its divergence (Song et al. 2021, section 4.3,
  in the variable of Salimans and Ho 2022, appendix D), by Hutchinson's
  estimator with random signs. Heun's method integrates upwards over the steps;
  at T the density is that of the noise where sampling starts.

  x is taken as a sample at step 1, the cleanest of the network: the density is
  that of x_1 = alpha_1 x_0 + sigma_1 eps. For 8-bit images that
  were dequantised with uniform noise, add ``BITS_OF_A_BIN`` per dimension
  for a bound on their discrete likelihood. It is not the number that
  ``variational_bound`` estimates.

  Args:
    predict: The network. Not clipped: a clipped flow has no density.
    schedule: The noise schedule.
    x: Data with a density, so dequantise images.
    key: For the estimator: one draw of signs for each image.
    visited: Steps of the integration, ascending from 1 to T; by default all.
      In continuous time from ``first``, or below, to T, or to where hardly
      any signal is left: for data in [-1, 1], noise of SNR r counts as pure
      at a cost of at most r / 2 nats per dimension, and r may exceed that of T
      by 1e-4. So T itself, where a network may divide by alpha = 0, can be
      left out.

  Returns:
    [B], bits per dimension.

  Raises:
    ValueError: If the visited steps do not ascend from 1, or ``first``, to T,
      or x are integers.
  """
  process.check_floats(x, "x")
  if visited is None:
    visited = timesteps.every(schedule.T)[::-1, 0]
  visited = np.asarray(visited)
  _check_visited(schedule, visited)
  steps = jnp.asarray(visited)
  signs = jax.random.rademacher(key, x.shape, x.dtype)

  def size(t):
    at = schedule.at(t)
    return process.beside(jnp.hypot(at.alpha, at.sigma), x)

  def flow(z, t):
    """v_hat / r and its divergence by z."""
    times, r = jnp.full(z.shape[:1], t), size(t)

    def v_hat(z):
      p = predict(r * z, times)
      return targets.v.of(schedule, p.x0_hat, times, p.eps_hat) / r

    v, slope = jax.jvp(v_hat, (z,), (signs,))
    return v, (signs * slope).sum(axis=tuple(range(1, z.ndim)))

  def move(carry, pair):
    z, stretch, v, div = carry
    t, s = pair
    at, to = schedule.at(t), schedule.at(s)
    h = jnp.arctan2(to.sigma, to.alpha) - jnp.arctan2(at.sigma, at.alpha)
    h = process.beside(h, x)
    v_ahead, div_ahead = flow(z + h * v, s)
    z += 0.5 * h * (v + v_ahead)
    stretch += 0.5 * h * (div + div_ahead)
    return (z, stretch, *flow(z, s)), None

  z = x / size(steps[0])
  carry = (z, jnp.zeros_like(z, shape=z.shape[:1]), *flow(z, steps[0]))
  pairs = jnp.stack([steps[:-1], steps[1:]], axis=1)
  (z_T, stretch, *_), _ = jax.lax.scan(move, carry, pairs)
  T = steps[-1]
  log_prior = jax.scipy.stats.norm.logpdf(
    size(T) * z_T, scale=process.beside(schedule.noise_scale(T), x)
  ) + jnp.log(size(T) / size(steps[0]))
  nats = -log_prior.sum(axis=tuple(range(1, x.ndim))) - stretch
  return nats / (math.prod(x.shape[1:]) * bound.LN2)
