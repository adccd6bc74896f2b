"""Guidance: a denoiser in, a stronger denoiser out.

Scales follow one rule: the guided prediction is weak + scale (strong - weak),
so scale 1 is the strong denoiser alone, 0 the weak one, and more than 1
exaggerates what tells them apart. Classifier guidance adds scale times the
classifier's gradient: there scale 0 is off and 1 is Bayes' rule.

Scales are data: a program is not compiled again for another one. With a
learned variance only the prediction is guided; the variance stays that of the
strong denoiser.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.process import (
  Batch,
  Denoise,
  Time,
  eps_from_x0,
  p_mean_variance,
  per_example,
)
from diffusion_jax.schedules import Schedule

Scale = float | Float[Array, ""]
# (x_t, t) -> gradient of log p(y | x_t) by x_t, of x_t's shape.
Gradient = Callable[[Batch, Int[Array, " B"]], Batch]


def log_prob_gradient(
  classify: Callable[..., Float[Array, "B K"]], y: Int[Array, " B"]
) -> Gradient:
  """The gradient of log p(y | x_t) of a classifier.

  Args:
    classify: ``(x_t, t) -> logits``.
    y: The class asked of each example.

  Returns:
    ``(x_t, t) -> gradient``; no example's gradient depends on another's.
  """
  # A mean would divide each gradient by B.
  return jax.grad(lambda x_t, t: log_prob(classify(x_t, t), y).sum())


def log_prob(
  logits: Float[Array, "B K"], y: Int[Array, " B"]
) -> Float[Array, " B"]:
  """Log p(y) of each example, from the logits of all classes."""
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
  return chosen[:, 0]


def classifier(
  denoise: Denoise,
  schedule: Schedule,
  gradient: Gradient,
  scale: Scale,
  *,
  target: str = "eps",
  variance: str = "fixed_small",
  clip: bool = True,
) -> Denoise:
  """Guides the score with a classifier, for DDIM and the ODE solvers.

  eps_hat - scale sigma_t grad log p(y | x_t)  (Dhariwal and Nichol 2021,
  algorithm 2). As in the published code the unguided x0_hat is clipped, the
  guided one is not: pass ``clip=False`` to the step that runs the result.

  Args:
    denoise: ``(x_t, t) -> output``.
    schedule: The noise schedule.
    gradient: See ``log_prob_gradient``.
    scale: 0 is off.
    target: What ``denoise`` predicts.
    variance: Of ``denoise``.
    clip: Clip the unguided prediction of the clean data to [-1, 1].

  Returns:
    A denoiser that predicts the noise; the channels of a learned variance
    are passed on.
  """

  def guided(x_t, t):
    output = denoise(x_t, t)
    # The mean of p is not used, so any s < t will do.
    p = p_mean_variance(
      schedule, output, x_t, t, t - 1, target=target, variance=variance,
      clip=clip,
    )  # fmt: skip
    eps_hat = eps_from_x0(schedule, x_t, t, p.x0_hat)
    push = per_example(schedule.sigma[t], x_t) * gradient(x_t, t)
    rest = output[..., x_t.shape[-1] :]
    return jnp.concatenate([eps_hat - scale * push, rest], axis=-1)

  return guided


def classifier_step(
  denoise: Denoise,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
  *,
  gradient: Gradient,
  scale: Scale = 1.0,
  target: str = "eps",
  variance: str = "fixed_small",
  clip: bool = True,
  above: Time | None = None,
) -> tuple[Batch, Batch]:
  """Ancestral sampling whose mean a classifier moves.

  mean + scale var grad log p(y | x_t)  (Dhariwal and Nichol 2021, algorithm
  1). The mean comes from the clipped x0_hat; the moved mean is not clipped.

  Args:
    denoise: ``(x_t, t) -> output``.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: Where it stands, 1..T.
    s: Where to go, 0..t-1. At s = 0 no noise is added.
    eps: Standard Gaussian noise, the shape of x_t.
    gradient: See ``log_prob_gradient``.
    scale: 0 is off, which is ``samplers.ancestral_step``.
    target: What the network predicts.
    variance: Of p(x_s | x_t).
    clip: Clip the predicted clean data to [-1, 1].
    above: From where the walk comes to its last step, whose variance it is
      that moves the mean there; see ``process.posterior_log_var``.

  Returns:
    x_s and the unguided prediction of the clean data.
  """
  times = jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1])
  p = p_mean_variance(
    schedule, denoise(x_t, times), x_t, t, s, target=target,
    variance=variance, clip=clip, above=above,
  )  # fmt: skip
  mean = p.mean + scale * jnp.exp(p.log_var) * gradient(x_t, times)
  std = jnp.where(per_example(s, x_t) > 0, jnp.exp(0.5 * p.log_var), 0.0)
  return mean + std * eps, p.x0_hat


def classifier_free(
  denoise: Callable[..., Any],
  y: Int[Array, " B"],
  no_class: int,
  scale: Scale,
  *,
  interval: tuple[int, int] | None = None,
  rescale: Scale = 0.0,
) -> Denoise:
  """Guides a conditional network with itself, told no class.

  none + scale (class - none)  (Ho and Salimans 2022, eq. 6, whose w is
  scale - 1). Both predictions come from one call on a doubled batch.

  Args:
    denoise: ``(x_t, t, y) -> output``.
    y: The class asked of each example.
    no_class: The label that training puts in place of dropped ones.
    scale: 1 is off.
    interval: Steps (low, high) between which to guide, both included
      (Kynkaanniemi et al. 2024); by default all.
    rescale: How much of the way to go back to the standard deviation, by
      image, of the unguided prediction, 0 to 1 (Lin et al. 2023, eqs. 15,
      16).

  Returns:
    ``(x_t, t) -> output``.
  """
  none = jnp.full_like(y, no_class)

  def guided(x_t, t):
    strong, weak = jnp.split(
      denoise(*(jnp.concatenate(pair) for pair in (
        (x_t, x_t), (t, t), (y, none),
      ))),
      2,
    )  # fmt: skip
    return _extrapolate(strong, weak, x_t, t, scale, interval, rescale)

  return guided


def drop_labels(
  key: Key[Array, ""], y: Int[Array, " B"], rate: Scale, no_class: int
) -> Int[Array, " B"]:
  """Replaces labels by ``no_class``, each with probability ``rate``.

  What training for ``classifier_free`` does (Ho and Salimans 2022, algorithm
  1): one network learns both predictions.

  Args:
    key: For the draw.
    y: Labels.
    rate: 0.1 to 0.2 is usual.
    no_class: The label that stands for none, usually the number of classes.

  Returns:
    Labels.
  """
  return jnp.where(jax.random.bernoulli(key, rate, y.shape), no_class, y)


def autoguidance(
  denoise: Denoise,
  weaker: Denoise,
  scale: Scale,
  *,
  interval: tuple[int, int] | None = None,
  rescale: Scale = 0.0,
) -> Denoise:
  """Guides a denoiser away from a weaker version of itself.

  weaker + scale (denoise - weaker)  (Karras et al. 2024, section 4: w D_1 +
  (1 - w) D_0): the weaker one is smaller or less trained, on the same classes
  and noise.

  Args:
    denoise: ``(x_t, t) -> output``.
    weaker: The same, worse.
    scale: 1 is off.
    interval: As in ``classifier_free``.
    rescale: As in ``classifier_free``.

  Returns:
    ``(x_t, t) -> output``.
  """

  def guided(x_t, t):
    return _extrapolate(
      denoise(x_t, t), weaker(x_t, t), x_t, t, scale, interval, rescale
    )

  return guided


def _extrapolate(strong, weak, x_t, t, scale, interval, rescale):
  """Weak + scale (strong - weak) in the channels of the prediction."""
  channels = x_t.shape[-1]
  rest = strong[..., channels:]
  strong, weak = strong[..., :channels], weak[..., :channels]
  if interval is not None:
    low, high = interval
    scale = per_example(jnp.where((low <= t) & (t <= high), scale, 1.0), x_t)
  guided = weak + scale * (strong - weak)
  axes = tuple(range(1, x_t.ndim))
  spread = jnp.std(guided, axis=axes, keepdims=True)
  shrunk = jnp.std(strong, axis=axes, keepdims=True) / jnp.maximum(
    spread, jnp.finfo(spread.dtype).tiny
  )
  guided = guided * (1 + rescale * (shrunk - 1))
  return jnp.concatenate([guided, rest], axis=-1)
