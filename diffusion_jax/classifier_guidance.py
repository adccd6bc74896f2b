"""Guidance by a classifier of noisy images.

It adds scale times the gradient of log p(y | x_t): scale 0 is off and 1 is
Bayes' rule. Scales are data: changing one does not compile the program again.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax import concrete, targets
from diffusion_jax.prediction import Predict, p_mean_variance, read
from diffusion_jax.process import Batch, per_example, rates, times
from diffusion_jax.schedules import Schedule, Time

Scale = float | Float[Array, ""]
# (x_t, t) -> gradient of log p(y | x_t) with respect to x_t.
Gradient = Callable[[Batch, Int[Array, " B"]], Batch]


def log_prob_gradient(
  classify: Callable[..., Float[Array, "B K"]], y: Int[Array, " B"]
) -> Gradient:
  """The gradient of log p(y | x_t) of a classifier.

  Args:
    classify: ``(x_t, t) -> logits``.
    y: The class wanted for each example.

  Returns:
    ``(x_t, t) -> gradient``; no example's gradient depends on another's.
  """
  # A mean would divide each gradient by B.
  return jax.grad(lambda x_t, t: log_prob(classify(x_t, t), y).sum())


def log_prob(
  logits: Float[Array, "B K"], y: Int[Array, " B"]
) -> Float[Array, " B"]:
  """Log p(y) of each example, from the logits of all classes.

  Raises:
    ValueError: If a class is not in 0..K-1; traced ones are not checked.
  """
  concrete.check_range("class y", y, 0, logits.shape[-1] - 1)
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
  return chosen[:, 0]


def classifier(
  predict: Predict,
  schedule: Schedule,
  gradient: Gradient,
  scale: Scale | Float[Array, " B"],
) -> Predict:
  """Guides the score with a classifier, for DDIM and the ODE solvers.

  eps_hat - scale sigma_t grad log p(y | x_t)  (Dhariwal and Nichol 2021,
  algorithm 2). The published code clips the unguided x0_hat and not the guided
  one: to match it, pass ``prediction.clipped``.

  Args:
    predict: The network.
    schedule: The noise schedule.
    gradient: See ``log_prob_gradient``.
    scale: 0 is off; a number, or one for each example.

  Returns:
    The guided network, which predicts the noise.
  """

  def guided(x_t, t, cond=None):
    t = times(t, x_t)
    p = predict(x_t, t, cond)
    alpha, sigma = rates(schedule, t, x_t)
    eps_hat = p.eps_hat - per_example(scale, x_t) * sigma * gradient(x_t, t)
    made = read(
      schedule, x_t, t, eps_hat, p.raw, target=targets.eps, variance=p.variance
    )
    # Where x_t is all noise it says nothing of y, and nothing is to be guided.
    names = ("x0_hat", "eps_hat", "mean_x0")
    kept = {
      name: jnp.where(alpha > 0, getattr(made, name), getattr(p, name))
      for name in names
    }
    return dataclasses.replace(made, **kept)

  return guided


def classifier_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
  *,
  gradient: Gradient,
  scale: Scale | Float[Array, " B"] = 1.0,
  above: Time | None = None,
) -> tuple[Batch, Batch]:
  """Ancestral sampling with the mean shifted by a classifier.

  mean + scale var grad log p(y | x_t)  (Dhariwal and Nichol 2021, algorithm
  1). In the published code the mean comes from the clipped x0_hat; the shifted
  mean is not clipped.

  Args:
    predict: The network.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: The time of x_t, 1..T.
    s: The time to move to, 0..t-1. At s = 0 no noise is added.
    eps: Standard Gaussian noise, the shape of x_t.
    gradient: See ``log_prob_gradient``.
    scale: 0 is off, which is ``samplers.ancestral_step``.
    above: The time before t in sampling, used only at s = 0, where it gives the
      variance that shifts the mean; see ``process.posterior_log_var``.

  Returns:
    x_s and the unguided prediction of the clean data.
  """
  prediction = predict(x_t, t)
  p = p_mean_variance(schedule, prediction, x_t, t, s, above=above)
  reach = per_example(scale, x_t) * jnp.exp(p.log_var)
  mean = p.mean + reach * gradient(x_t, times(t, x_t))
  std = jnp.where(per_example(s, x_t) > 0, jnp.exp(0.5 * p.log_var), 0.0)
  return mean + std * eps, prediction.x0_hat
