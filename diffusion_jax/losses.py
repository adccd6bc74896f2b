"""Training losses. Each returns [B], one number per example.

``simple``, ``vlb`` and ``hybrid`` draw their own t and noise;
``weighted_mse``, ``vlb_at`` and ``hybrid_at`` are the deterministic cores that
take them. Each calls the network once. The squared error is measured in the
space of the network's target and, where a weight is given, converted to the
noise's error first, so that a weight means the same thing whatever the
network predicts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import bound, process, timesteps
from diffusion_jax.process import Batch, Denoise
from diffusion_jax.schedules import Schedule
from diffusion_jax.weights import Weight


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
    weight: One of ``weights``; None is the plain squared error of
      the target.

  Returns:
    [B], the mean over all axes but the first. A network that knows nothing
    (zero output) of the noise scores 1.
  """
  t, eps = _draw(schedule, x0, key)
  return weighted_mse(
    denoise, schedule, x0, t, eps, target=target, weight=weight
  )


def _draw(schedule, x0, key):
  """Uniform steps, and noise."""
  process.check_floats(x0)
  key_t, key_eps = jax.random.split(key)
  t = timesteps.uniform(key_t, x0.shape[0], schedule.T)
  return t, jax.random.normal(key_eps, x0.shape, x0.dtype)


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


def vlb(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  target: str = "eps",
  variance: str = "learned_range",
  scaled: bool = True,
) -> Float[Array, " B"]:
  """The variational bound at one random step each; see ``vlb_at``."""
  t, eps = _draw(schedule, x0, key)
  return vlb_at(
    denoise, schedule, x0, t, eps, target=target, variance=variance,
    scaled=scaled,
  )  # fmt: skip


def vlb_at(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  t: Int[Array, " B"],
  eps: Batch,
  *,
  target: str = "eps",
  variance: str = "learned_range",
  scaled: bool = True,
) -> Float[Array, " B"]:
  """L_vlb: the bound's term of the move from t to t - 1.

  Args:
    denoise: ``(x_t, t) -> output``.
    schedule: The noise schedule.
    x0: Clean data, multiples k / 127.5 - 1.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    target: What the network predicts.
    variance: Of p(x_s | x_t).
    scaled: T times the term: over uniform t its mean is the whole sum
      ("rescaled KL" in the published code). False is the term itself.

  Returns:
    [B], bits per dimension.
  """
  x_t = process.q_sample(schedule, x0, t, eps)
  loss = _bound_term(
    schedule, denoise(x_t, t), x0, x_t, t, target=target, variance=variance
  )
  return schedule.T * loss if scaled else loss


def hybrid(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  target: str = "eps",
  variance: str = "learned_range",
  vlb_weight: float = 1e-3,
) -> Float[Array, " B"]:
  """L_simple + lambda L_vlb at one random step each; see ``hybrid_at``."""
  t, eps = _draw(schedule, x0, key)
  return hybrid_at(
    denoise, schedule, x0, t, eps, target=target, variance=variance,
    vlb_weight=vlb_weight,
  )  # fmt: skip


def hybrid_at(
  denoise: Denoise,
  schedule: Schedule,
  x0: Batch,
  t: Int[Array, " B"],
  eps: Batch,
  *,
  target: str = "eps",
  variance: str = "learned_range",
  vlb_weight: float = 1e-3,
) -> Float[Array, " B"]:
  """L_hybrid = L_simple + lambda L_vlb (Improved DDPM, eq. 16).

  The bound teaches the variance alone: it sees the mean through a
  stop-gradient, and no clipping.

  Args:
    denoise: ``(x_t, t) -> output``, with twice x_t's channels.
    schedule: The noise schedule.
    x0: Clean data, multiples k / 127.5 - 1.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.
    target: What the network predicts.
    variance: "learned" or "learned_range".
    vlb_weight: lambda, of the whole sum (T times the term at t, in bits per
      dimension). The published code's rescaled form is 1e-3; where it does
      not rescale, 1 / T.

  Returns:
    [B].

  Raises:
    ValueError: If the variance is not a learned one.
  """
  if not variance.startswith("learned"):
    raise ValueError(
      f"the hybrid loss learns the variance; {variance=} is fixed"
    )
  x_t = process.q_sample(schedule, x0, t, eps)
  output = denoise(x_t, t)
  prediction, raw = jnp.split(output, 2, axis=-1)
  frozen = jnp.concatenate([jax.lax.stop_gradient(prediction), raw], axis=-1)
  truth = target_of(schedule, x0, x_t, t, eps, target)
  term = _bound_term(
    schedule, frozen, x0, x_t, t, target=target, variance=variance
  )
  mse = mean_per_example((truth - prediction) ** 2)
  return mse + vlb_weight * schedule.T * term


def cross_entropy_at(
  log_prob: Callable[..., Float[Array, " B"]],
  schedule: Schedule,
  x0: Batch,
  t: Int[Array, " B"],
  eps: Batch,
) -> Float[Array, " B"]:
  """-log p(y | x_t) of a classifier of noisy images.

  Args:
    log_prob: ``(x_t, t) -> [B]``, the log-probability of each example's
      class, see ``guidance.log_prob``. A classifier that knows nothing scores
      log of the number of classes.
    schedule: The noise schedule.
    x0: Clean data.
    t: Steps, 1..T.
    eps: The noise to add, the shape of x0.

  Returns:
    [B], nats.
  """
  return -log_prob(process.q_sample(schedule, x0, t, eps), t)


def _bound_term(schedule, output, x0, x_t, t, *, target, variance):
  p = process.p_mean_variance(
    schedule, output, x_t, t, t - 1, target=target, variance=variance,
    clip=False,
  )  # fmt: skip
  return bound.term(schedule, p, x0, x_t, t, t - 1)


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
