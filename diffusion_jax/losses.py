"""Training losses. Each returns [B], one number per example.

``simple``, ``vlb`` and ``hybrid`` draw their own t and noise;
``weighted_mse``, ``vlb_at`` and ``hybrid_at`` are the deterministic cores that
take them. Each calls the network once. The squared error is that of the
network's target or, with ``space``, converted to another target. A weight
always multiplies the error of the noise, so it means the same whatever the
network predicts.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax import bound, process, targets, timesteps, weights
from diffusion_jax.levels import before
from diffusion_jax.prediction import Predict, p_mean_variance
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule, Time
from diffusion_jax.targets import Target
from diffusion_jax.weights import Weight

# A core with its options bound: (predict, schedule, x0, t, eps) -> [B].
LossAt = Callable[..., Float[Array, " B"]]


def simple(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  weight: Weight | None = None,
  space: Target | None = None,
) -> Float[Array, " B"]:
  """The simple loss: mean ||eps - eps_hat(x_t, t)||^2 (DDPM, eq. 14).

  Args:
    predict: The network, see ``prediction``; not clipped.
    schedule: The noise schedule.
    x0: Clean data in [-1, 1].
    key: For the steps and for the noise.
    weight: See ``weighted_mse``.
    space: See ``weighted_mse``.

  Returns:
    [B], the mean over all axes but the first. A network whose output is
    zero scores 1.
  """
  t, eps = _draw(schedule, x0, key)
  return weighted_mse(predict, schedule, x0, t, eps, weight=weight, space=space)


def _draw(schedule, x0, key):
  """Uniform steps, and noise."""
  process.check_floats(x0)
  key_t, key_eps = jax.random.split(key)
  t = timesteps.uniform(key_t, x0.shape[0], schedule.T)
  return t, jax.random.normal(key_eps, x0.shape, x0.dtype)


def weighted_mse(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  t: Time,
  eps: Batch,
  *,
  weight: Weight | None = None,
  space: Target | None = None,
) -> Float[Array, " B"]:
  """Squared error of the network at given steps and noise.

  Args:
    predict: The network, see ``prediction``; not clipped.
    schedule: The noise schedule.
    x0: Clean data.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    weight: Weight of ||eps - eps_hat||^2, see ``weights``; excludes ``space``.
    space: The target whose squared error is the loss, by default the network's
      own (JiT predicts x_0 and minimises the error of v, Li and He 2025).

  Returns:
    [B], the mean over all axes but the first. Infinite where the weighted error
    is, as that of eps with a weight that grows without end as the signal fades.

  Raises:
    ValueError: If there are both a weight and a space.
  """
  if weight is not None and space is not None:
    raise ValueError(
      "weight and space exclude each other: a weight already says which error "
      "counts how much, that of the noise"
    )
  p = predict(process.q_sample(schedule, x0, t, eps), t)
  mse = mean_per_example((p.target.of(schedule, x0, t, eps) - p.output) ** 2)
  if weight is not None:
    ratio = weights.of_error(weight, p.target, schedule, t)
  elif space is not None:
    ratio = targets.error_ratio(space, p.target, schedule, t)
  else:
    return mse
  return process.per_example(ratio, mse) * mse


def vlb(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  scaled: bool = True,
) -> Float[Array, " B"]:
  """The variational bound at one random step each; see ``vlb_at``."""
  t, eps = _draw(schedule, x0, key)
  return vlb_at(predict, schedule, x0, t, eps, scaled=scaled)


def vlb_at(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  t: Time,
  eps: Batch,
  *,
  scaled: bool = True,
  levels: int = 256,
) -> Float[Array, " B"]:
  """L_vlb: the bound's term for the step from t to t - 1.

  Args:
    predict: The network, see ``prediction``; not clipped.
    schedule: The noise schedule.
    x0: Clean data, 2 k / (levels - 1) - 1.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    scaled: Return T times the term: over uniform t its mean is the whole sum
      ("rescaled KL" in the published code). False is the term itself.
    levels: The number of values that each pixel can have.

  Returns:
    [B], bits per dimension.
  """
  x_t = process.q_sample(schedule, x0, t, eps)
  loss = _bound_term(schedule, predict(x_t, t), x0, x_t, t, levels)
  return schedule.T * loss if scaled else loss


def hybrid(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  vlb_weight: float = 1e-3,
) -> Float[Array, " B"]:
  """L_simple + lambda L_vlb at one random step each; see ``hybrid_at``."""
  t, eps = _draw(schedule, x0, key)
  return hybrid_at(predict, schedule, x0, t, eps, vlb_weight=vlb_weight)


def hybrid_at(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  t: Time,
  eps: Batch,
  *,
  vlb_weight: float = 1e-3,
  levels: int = 256,
) -> Float[Array, " B"]:
  """L_hybrid = L_simple + lambda L_vlb (Improved DDPM, eq. 16).

  The bound trains only the variance: a stop-gradient holds the mean fixed.
  Nothing is clipped.

  Args:
    predict: The network, with a learned variance; not clipped.
    schedule: The noise schedule.
    x0: Clean data, 2 k / (levels - 1) - 1.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    vlb_weight: lambda, the weight of the whole sum (T times the term at t, in
      bits per dimension). The published code's rescaled form is 1e-3; where
      it does not rescale, 1 / T.
    levels: The number of values that each pixel can have.

  Returns:
    [B].

  Raises:
    ValueError: If the variance is not learned.
  """
  x_t = process.q_sample(schedule, x0, t, eps)
  p = predict(x_t, t)
  if p.raw is None:
    raise ValueError(
      f"the hybrid loss learns the variance; variance={p.variance!r} is fixed"
    )
  mse = mean_per_example((p.target.of(schedule, x0, t, eps) - p.output) ** 2)
  frozen = dataclasses.replace(jax.lax.stop_gradient(p), raw=p.raw)
  return mse + vlb_weight * schedule.T * _bound_term(
    schedule, frozen, x0, x_t, t, levels
  )


def _bound_term(schedule, prediction, x0, x_t, t, levels):
  s = before(schedule, t)
  p = p_mean_variance(schedule, prediction, x_t, t, s)
  return bound.term(schedule, p, x0, x_t, t, s, levels=levels)


def uncertain(
  loss: Float[Array, " B"], u: Float[Array, " B"]
) -> Float[Array, " B"]:
  """Loss / exp(u) + u (Karras et al. 2024, eq. 21).

  Minimal where u is the logarithm of the expected loss, so that every noise
  level counts the same.

  Args:
    loss: [B], not negative.
    u: [B], learned with the network, a function of the noise level.

  Returns:
    [B].
  """
  return loss * jnp.exp(-u) + u


def mean_per_example(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
  """Mean over all axes but the first."""
  return x.mean(axis=tuple(range(1, x.ndim)))
