"""Adaptive projected guidance with momentum: a solver that carries it on.

Sadat et al. 2024, algorithm 1. Without momentum the guided network is a
prediction like any other, ``guidance.projected``. With it what guides depends
on the steps before: it is part of a solver's memory.
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
  """A step whose prediction is guided, the difference carried on.

  What the first prediction of a step carries on is what the next step gets: a
  method that asks twice, as Heun's, is guided by the same in both.

  Args:
    step: A step or solver that asks first about (x_t, t).
    weak: What ``predict`` is guided away from, such as the same network with
      the null condition.
    scale: 1 is off; a number, or a function of t.
    eta: See ``guidance.project``.
    radius: See ``guidance.project``.
    momentum: Factor of what is carried; below 0 in the paper, 0 is
      ``guidance.projected``.
    after: Of the guided prediction: clipping.

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
