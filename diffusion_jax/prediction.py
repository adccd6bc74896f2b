"""From a network to predictions: its output is interpreted in one place.

  predict = dj.predictor(apply, schedule, target=dj.targets.v)
  predict(x_t, t, cond) -> Prediction

How a network's input is scaled, what it gets as its time, what it predicts and
how its variance is parameterised are set here and nowhere else. Steps, solvers,
losses and likelihoods take a ``predict``; clipping and guidance turn one into
another. A closed form works as well as a U-Net.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import process, targets
from diffusion_jax.process import Batch, per_example
from diffusion_jax.schedules import Schedule, Time
from diffusion_jax.targets import Target

# What a network is conditioned on: any pytree, or None.
Cond = Any
# (schedule, x_t, t, s, above, raw) -> log-variance of p.
Variance = Callable[..., Float[Array, "..."]]
# The key of a condition that holds the time a step moves to.
END = "s"
# A number for each time, [B] or [].
Scale = Callable[[Schedule, Time], Any]
# A network with its parameters, or a closed form: (x_t, t), or (x_t, t, cond)
# where there is a condition, to its output. Flax's apply has no static type.
Apply = Callable[[Any, Any], Any] | Callable[[Any, Any, Cond], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
  """A prediction from x_t, a pytree.

  Attributes:
    output: The predicted target F, of the network or after guidance.
    x0_hat: The clean data.
    eps_hat: The noise that leads from x0_hat to x_t.
    mean_x0: The clean data for the mean of p: x0_hat, unless the network
      predicts that mean itself.
    raw: The network's output for a learned variance.
    target: What F is.
    variance: How the variance of p is parameterised, a name in ``VARIANCES``.
  """

  # Any: libraries make trees of shapes or of truths of the same structure.
  output: Any
  x0_hat: Any
  eps_hat: Any
  mean_x0: Any
  raw: Any
  target: Target = dataclasses.field(metadata={"static": True})
  variance: str = dataclasses.field(metadata={"static": True})


@runtime_checkable
class Predict(Protocol):
  """A network as steps, solvers, losses and likelihoods call it."""

  def __call__(self, x_t: Any, t: Any, /, cond: Cond = None) -> Prediction:
    """The prediction for a batch at one time, or one for each example."""
    ...


class Reverse(NamedTuple):
  """The Gaussian p(x_s | x_t).

  Attributes:
    mean: Its mean.
    log_var: Log of its variance, broadcastable to the mean. Finite also at
      s = 0, see ``process.posterior_log_var``.
  """

  mean: Batch
  log_var: Float[Array, "..."]


def predictor(
  apply: Apply,
  schedule: Schedule,
  *,
  target: Target = targets.eps,
  variance: str = "fixed_small",
  scale: Scale | None = None,
  clock: Scale | None = None,
) -> Predict:
  """Wraps a network, so that it returns a ``Prediction``.

  Args:
    apply: The network.
    schedule: The noise schedule.
    target: What the network predicts, see ``targets``.
    variance: That of p(x_s | x_t): "fixed_small" is the posterior's,
      "fixed_large" is beta_{t|s}; "learned" is exp of the second half of the
      output's channels and "learned_range" interpolates between the two fixed
      ones in the log domain, from -1 (small) to 1 (large) (Improved DDPM, eq.
      15).
    scale: Multiplies the network's input (EDM's c_in).
    clock: The time that the network gets (EDM's c_noise), by default t itself;
      also applied to the second time of ``towards``.

  Returns:
    ``predict``. Nothing is clipped, see ``clipped``.

  Raises:
    ValueError: If the variance is not a known name, or the target is one.
  """
  if not isinstance(target, Target):
    raise ValueError(f"{target=} must be one of dj.targets, such as targets.v")
  if variance not in VARIANCES:
    raise ValueError(f"{variance=} is not one of {', '.join(VARIANCES)}")
  network: Any = apply

  def predict(x_t, t, cond=None):
    t = process.times(t, x_t)
    time = t if clock is None else clock(schedule, t)
    if clock is not None and isinstance(cond, Mapping) and END in cond:
      cond = {**cond, END: clock(schedule, cond[END])}
    x = x_t if scale is None else per_example(scale(schedule, t), x_t) * x_t
    output = network(x, time) if cond is None else network(x, time, cond)
    F, raw = _split(output, x_t.shape, variance)
    return read(schedule, x_t, t, F, raw, target=target, variance=variance)

  return predict


def _split(output, shape: tuple[int, ...], variance: str):
  """The channels of the target, and those of a learned variance."""
  learned = variance.startswith("learned")
  expected = *shape[:-1], shape[-1] * (2 if learned else 1)
  # An output that broadcasts would pass, too, as one number for all pixels.
  if output.shape != expected:
    raise ValueError(
      f"{variance=} with an input of shape {shape} needs an output of "
      f"{expected}; the network returned {output.shape}"
    )
  return jnp.split(output, 2, axis=-1) if learned else (output, None)


def read(
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  F: Batch,
  raw: Batch | None = None,
  *,
  target: Target = targets.x0,
  variance: str = "fixed_small",
) -> Prediction:
  """The prediction that follows from a network's output F.

  Args:
    schedule: The noise schedule.
    x_t: The noisy sample.
    t: The time of x_t.
    F: The target as predicted; by default x0_hat itself.
    raw: The output for a learned variance.
    target: What F is.
    variance: How the variance of p is parameterised.

  Returns:
    The prediction.
  """
  x0_hat = target.to_x0(schedule, x_t, t, F)
  eps_hat = eps_from_x0(schedule, x_t, t, x0_hat)
  return Prediction(F, x0_hat, eps_hat, x0_hat, raw, target, variance)


def eps_from_x0(schedule: Schedule, x_t: Batch, t: Time, x0: Batch) -> Batch:
  """The noise of x_t: eps = (x_t - alpha_t x_0) / sigma_t."""
  alpha, sigma = process.rates(schedule, t, x_t)
  return (x_t - alpha * x0) / sigma


# ------------------------------------------------------ predict -> predict


def given(predict: Predict, condition: Cond) -> Predict:
  """Binds a condition, since steps and losses pass none.

  A step may add only the time that it moves to, see ``towards``.
  """

  def bound(x_t, t, cond=None):
    if cond is not None:
      return predict(x_t, t, {**(condition or {}), **cond})
    return predict(x_t, t, condition)

  return bound


def towards(predict: Predict, s: Time) -> Predict:
  """Passes the time that a step moves to, for networks that take two times.

  Such a network's prediction at t is for the step to s alone: the velocity of
  ``flow`` is then an average over the step (``meanflow``).

  Args:
    predict: The network; its condition is a dict, or None.
    s: The second time, which becomes "s" in the condition.

  Returns:
    ``predict`` for that step.
  """

  def bound(x_t, t, cond=None):
    return predict(x_t, t, {**(cond or {}), END: process.times(s, x_t)})

  return bound


def clipped(predict: Predict, schedule: Schedule) -> Predict:
  """Clips x0_hat to [-1, 1], the range of images (DDPM's published code).

  The mean of a step that a network predicts directly is not changed.

  Args:
    predict: The network, as ``predictor`` returns it.
    schedule: The noise schedule.

  Returns:
    ``predict`` with x0_hat clipped and the eps_hat that belongs to it.
  """
  return _changed(predict, schedule, lambda x0_hat: jnp.clip(x0_hat, -1, 1))


def thresholded(
  predict: Predict, schedule: Schedule, *, quantile: float = 0.995
) -> Predict:
  """Dynamic thresholding (Imagen, Saharia et al. 2022, section 2.3).

  With c the quantile of an image's |x0_hat|, but at least 1, x0_hat is clipped
  to [-c, c] and divided by c: strong guidance then saturates no pixels.

  Args:
    predict: The network, as ``predictor`` returns it.
    schedule: The noise schedule.
    quantile: The fraction of an image's values that is not clipped; the paper's
      "high percentile".

  Returns:
    ``predict`` with x0_hat in [-1, 1] and the eps_hat that belongs to it.

  Raises:
    ValueError: If the quantile is not in (0, 1].
  """
  if not 0 < quantile <= 1:
    raise ValueError(f"{quantile=} must be in (0, 1], a part of the pixels")

  def threshold(x0_hat):
    axes = tuple(range(1, x0_hat.ndim))
    c = jnp.quantile(jnp.abs(x0_hat), quantile, axis=axes, keepdims=True)
    c = jnp.maximum(c, 1)
    return jnp.clip(x0_hat, -c, c) / c

  return _changed(predict, schedule, threshold)


def _changed(predict, schedule, change) -> Predict:
  """``predict`` with another x0_hat."""

  def changed(x_t, t, cond=None):
    p = predict(x_t, t, cond)
    x0_hat = change(p.x0_hat)
    return dataclasses.replace(
      p,
      x0_hat=x0_hat,
      eps_hat=eps_from_x0(schedule, x_t, t, x0_hat),
      mean_x0=p.mean_x0 if p.target.is_mean else x0_hat,
    )

  return changed


# ----------------------------------------------------------------- reverse


def p_mean_variance(
  schedule: Schedule,
  prediction: Prediction,
  x_t: Batch,
  t: Time,
  s: Time,
  *,
  above: Time | None = None,
) -> Reverse:
  """The Gaussian p(x_s | x_t) of a prediction.

  Its mean is that of q(x_s | x_t, x0_hat) (DDPM, eq. 11).

  Args:
    schedule: The noise schedule.
    prediction: The prediction from x_t at t.
    x_t: The noisy sample.
    t: The time of x_t.
    s: The time to move to, below t.
    above: The time before t in sampling, used only at s = 0; see
      ``process.posterior_log_var``.

  Returns:
    Mean and log-variance.
  """
  return Reverse(
    process.q_posterior(schedule, prediction.mean_x0, x_t, t, s).mean,
    VARIANCES[prediction.variance](schedule, x_t, t, s, above, prediction.raw),
  )


def _small(schedule, x_t, t, s, above, raw=None):
  del raw
  log_var = process.posterior_log_var(schedule, t, s, above=above)
  return per_example(log_var, x_t)


def _large(schedule, x_t, t, s, above, raw=None):
  # The last step takes the small variance for a better likelihood, as in the
  # published code.
  last = per_example(jnp.asarray(s), x_t) == 0
  small = _small(schedule, x_t, t, s, above)
  return jnp.where(last, small, _added(schedule, x_t, t, s))


def _added(schedule, x_t, t, s):
  return per_example(jnp.log(process.beta(schedule, t, s)), x_t)


def _learned(schedule, x_t, t, s, above, raw):
  return raw


def _learned_range(schedule, x_t, t, s, above, raw):
  fraction = (raw + 1) / 2
  small = _small(schedule, x_t, t, s, above)
  return fraction * _added(schedule, x_t, t, s) + (1 - fraction) * small


VARIANCES: dict[str, Variance] = {
  "fixed_small": _small,
  "fixed_large": _large,
  "learned": _learned,
  "learned_range": _learned_range,
}
