"""Mixtures of Gaussians: data whose exact denoiser is a formula.

x_0 = m_k + std_k N(0, I) with probability w_k. The prediction of a perfect
network is then known, so samplers can be watched, and measured, without
training: on a swiss roll in the plane, or on a handful of images with a little
noise around each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax import prediction, process, targets
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule
from diffusion_jax.targets import Target


class Mixture(NamedTuple):
  """Gaussians, each with its own width, a pytree.

  Attributes:
    means: One centre per row, of any shape: points, images.
    stds: Standard deviation around each, the same in all directions.
    weights: Probability of each; they add up to 1.
  """

  means: Float[Array, "K *image"]
  stds: Float[Array, " K"]
  weights: Float[Array, " K"]


def around(means: Float[Array, "K *image"], std: float) -> Mixture:
  """Gaussians of equal width and weight around these points.

  Raises:
    ValueError: If the points are integers, such as bytes.
  """
  process.check_floats(means, "means")
  K = len(means)
  return Mixture(jnp.asarray(means), jnp.full(K, std), jnp.full(K, 1 / K))


def swiss_roll(num: int = 200, *, reach: float = 2.0) -> Mixture:
  """A rolled-up line in the plane.

  By default it is about as wide as the noise, and so exceeds the [-1, 1] of
  images: do not clip its predictions.

  Args:
    num: Gaussians along the line, from the inside out.
    reach: Distance of the outer end from the origin; the line's own width is
      3 % of it.

  Returns:
    The mixture, of two dimensions.
  """
  # The length of the roll grows with the square of the angle.
  angle = np.pi * np.sqrt(np.linspace(1.5**2, 4.5**2, num))
  points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  points *= reach * angle[:, None] / angle[-1]
  return around(jnp.asarray(points, jnp.result_type(float)), 0.03 * reach)


def draw(
  mixture: Mixture, key: Key[Array, ""], num: int
) -> Float[Array, "num *image"]:
  """Draws from the mixture."""
  key_component, key_noise = jax.random.split(key)
  k = jax.random.choice(
    key_component, len(mixture.weights), (num,), p=mixture.weights
  )
  means = mixture.means[k]
  noise = jax.random.normal(key_noise, means.shape, means.dtype)
  return means + process.per_example(mixture.stds[k], means) * noise


def x0_given(
  mixture: Mixture, x: Batch, sigma: Any, *, alpha: Any = 1.0, xp: Any = jnp
):
  """E[x_0 | alpha x_0 + sigma eps = x], the exact denoiser.

  Each centre attracts x by its share of the probability of x.

  Args:
    mixture: The distribution of x_0.
    x: The mean's shape per example.
    sigma: Standard deviation of the noise, a scalar or one per example.
    alpha: Factor of the signal, likewise; 0 where x is all noise.
    xp: jax.numpy, or numpy for a solver on the host.

  Returns:
    The shape of x.
  """
  means = mixture.means.reshape(1, len(mixture.means), -1)
  flat = x.reshape(len(x), 1, means.shape[-1])
  noise, scale = (xp.reshape(xp.asarray(a), (-1, 1)) for a in (sigma, alpha))
  var = (scale * mixture.stds[None]) ** 2 + noise**2
  away = flat - scale[..., None] * means
  logits = (
    xp.log(mixture.weights)[None]
    - (away**2).sum(-1) / (2 * var)
    - means.shape[-1] / 2 * xp.log(var)
  )
  share = xp.exp(logits - logits.max(axis=1, keepdims=True))
  share = share / share.sum(axis=1, keepdims=True)
  gain = scale * mixture.stds[None] ** 2 / var
  centres = means + gain[..., None] * away
  return (share[..., None] * centres).sum(axis=1).reshape(x.shape)


def predictor(
  schedule: Schedule, mixture: Mixture, *, target: Target = targets.x0
) -> Predict:
  """The ``predict`` of a perfectly trained network.

  The minimiser of the squared error is the conditional expectation of its
  target; given x_t, all targets are linear in x_0.

  Args:
    schedule: The noise schedule.
    mixture: The data.
    target: What the network predicts; x0_hat is the same for all targets.

  Returns:
    ``predict``; it ignores any condition.
  """

  def apply(x_t, t, *cond):
    del cond
    at = schedule.at(t)
    x0 = x0_given(mixture, x_t, at.sigma, alpha=at.alpha)
    eps = prediction.eps_from_x0(schedule, x_t, t, x0)
    return target.of(schedule, x0, t, eps)

  return prediction.predictor(apply, schedule, target=target)


def log_density(mixture: Mixture, x: Batch) -> Float[Array, " B"]:
  """Log of the mixture's density, in nats.

  Args:
    mixture: The mixture.
    x: Points, [B, ...].

  Returns:
    [B], summed over all dimensions.
  """
  means = mixture.means.reshape(1, len(mixture.means), -1)
  x = x.reshape(len(x), 1, means.shape[-1])
  scaled = (x - means) / mixture.stds[None, :, None]
  each = jax.scipy.stats.norm.logpdf(scaled).sum(axis=-1)
  each -= means.shape[-1] * jnp.log(mixture.stds)[None]
  return jax.nn.logsumexp(each + jnp.log(mixture.weights)[None], axis=1)
