"""Adaptive projected guidance with momentum, as a solver.

Sadat et al. 2024, algorithm 1. Without momentum the guided network is a
``predict`` like any other, ``guidance.projected``. With momentum the guidance
depends on the steps before, so it is part of a solver's memory.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffusion_jax.guidance import Scale, ScaleAt, projected_prediction
from diffusion_jax.prediction import Predict
from diffusion_jax.process import times
from diffusion_jax.samplers import Solver, Step, as_solver


def solver(
  step: Step | Solver,
  weak: Predict,
  scale: Scale | ScaleAt,
  *,
  eta: Scale = 0.0,
  radius: Scale = jnp.inf,
  momentum: Scale = -0.5,
  after: Callable[[Predict], Predict] = lambda predict: predict,
) -> Solver:
  """A step with guidance whose difference carries over to the next step.

  Only the first prediction of a step updates it: a method with two calls, such
  as Heun's, uses the same momentum in both.

  Args:
    step: A step or solver whose first call is at (x_t, t).
    weak: The network to guide away from, such as the same one with the null
      condition.
    scale: A number, or a function of t; 1 is off.
    eta: See ``guidance.project``.
    radius: See ``guidance.project``.
    momentum: Factor of the difference of the step before; below 0 in the paper,
      0 is ``guidance.projected``.
    after: Applied to the guided network, such as clipping.

  Returns:
    The solver, for ``sample`` with the strong ``predict``.
  """
  inner = as_solver(step)

  def init(x_T, t):
    return jnp.zeros_like(x_T), inner.init(x_T, t)

  def guided_step(predict, schedule, x_t, t, s, eps, history) -> Any:
    carried, memory = history
    seen = []

    def guided(x_t, t, cond=None):
      t = times(t, x_t)
      p, d = projected_prediction(
        schedule, predict(x_t, t, cond), weak(x_t, t, cond), x_t, t, scale,
        eta=eta, radius=radius, carried=carried, momentum=momentum,
      )  # fmt: skip
      seen.append(d)
      return p

    x_s, x0_hat, memory = inner.step(
      after(guided), schedule, x_t, t, s, eps, memory
    )
    return x_s, x0_hat, (seen[0], memory)

  return Solver(init, guided_step)
