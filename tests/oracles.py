"""Data whose exact denoiser is known in closed form.

With x_t = alpha x_0 + sigma eps, the network that minimises every loss of
this library returns conditional expectations given x_t. For Gaussian data and
for mixtures they can be written down, which makes samplers and losses
testable without training anything.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import continuous, prediction, process, samplers, targets
from diffusion_jax.schedules import Schedule
from diffusion_jax.targets import Target


@dataclasses.dataclass(frozen=True)
class Mixture:
  """x_0 = m_k + std N(0, I) with probability w_k, at every pixel alike.

  One component makes it a Gaussian.
  """

  means: tuple[float, ...]
  weights: tuple[float, ...]
  std: float

  @property
  def mean(self) -> float:
    return float(np.dot(self.weights, self.means))

  @property
  def var(self) -> float:
    second = np.dot(self.weights, np.square(self.means)) + self.std**2
    return float(second - self.mean**2)

  def sample(self, key, shape):
    key_component, key_noise = jax.random.split(key)
    k = jax.random.choice(
      key_component, len(self.means), shape, p=jnp.array(self.weights)
    )
    noise = jax.random.normal(key_noise, shape)
    return jnp.array(self.means)[k] + self.std * noise

  def x0_given(self, schedule: Schedule, x_t, t):
    """E[x_0 | x_t], pixel by pixel."""
    alpha, sigma = process.rates(schedule, t, x_t)
    var = alpha**2 * self.std**2 + sigma**2  # of x_t given its component
    gain = alpha * self.std**2 / var
    logits, posterior_means = [], []
    for w, m in zip(self.weights, self.means, strict=True):
      logits.append(np.log(w) - (x_t - alpha * m) ** 2 / (2 * var))
      posterior_means.append(m + gain * (x_t - alpha * m))
    responsibility = jax.nn.softmax(jnp.stack(logits), axis=0)
    return (responsibility * jnp.stack(posterior_means)).sum(axis=0)

  def predictor(self, schedule: Schedule, target: Target = targets.eps):
    """The exact network for a prediction target, behind its door."""

    def apply(x_t, t, *_):
      x0 = self.x0_given(schedule, x_t, t)
      eps = prediction.eps_from_x0(schedule, x_t, t, x0)
      return target.of(schedule, x0, t, eps)

    return prediction.predictor(apply, schedule, target=target)


@functools.cache
def _move(solver, data: Mixture, target: Target):
  """One compiled step of a solver, without noise."""
  solver = samplers.as_solver(solver)

  @jax.jit
  def move(schedule, x, t, s, memory):
    predict, eps = data.predictor(schedule, target), jnp.zeros_like(x)
    x, _, memory = solver.step(predict, schedule, x, t, s, eps, memory)
    return x, memory

  return solver.init, move


def walk(solver, data, schedule, x, pairs, *, target=targets.eps):
  """Where a solver without noise takes x; one program for any length.

  ``samplers.sample`` is a program for each number of steps.
  """
  init, move = _move(solver, data, target)
  memory = init(x, pairs[0, 0])
  for t, s in pairs:
    x, memory = move(schedule, x, t, s, memory)
  return x


GAUSSIAN = Mixture(means=(0.3,), weights=(1.0,), std=0.5)
TWO_PEAKS = Mixture(means=(-0.6, 0.5), weights=(0.3, 0.7), std=0.1)


def flow_map(schedule: Schedule, mean: float, std: float, x_t, t, s):
  """Where the probability flow of N(mean, std^2) takes x_t at s."""
  a, b = process.rates(schedule, t, x_t)
  a_s, b_s = process.rates(schedule, s, x_t)
  shrink = jnp.hypot(a_s * std, b_s) / jnp.hypot(a * std, b)
  return a_s * mean + shrink * (x_t - a * mean)


# What the methods of few calls are tested on: a path and a Gaussian each.
PATHS = {
  "flow": (continuous.flow(), 0.3, 0.7),
  "vp": (continuous.linear(), -0.4, 0.5),
  "ve": (continuous.edm(), 1.0, 0.2),
}
# Schedules in continuous time, of every kind.
CONTINUOUS = {
  "cosine": continuous.cosine(),
  "linear": continuous.linear(),
  "edm": continuous.edm(),
  "flow": continuous.flow(),
  "shifted": continuous.flow().shifted(3.0),
}
