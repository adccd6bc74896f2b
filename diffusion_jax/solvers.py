"""Solvers of higher order: the same image in far fewer network calls.

With u = sigma / alpha and y = x / alpha, the probability-flow ODE is
dy/du = eps_hat, and Euler's method for it is DDIM. A solver of order p makes
an error of order 1 / S^p in S steps, by calling the network twice per step
(Heun) or by reusing its earlier outputs (multistep, one call per step).

All multistep solvers here share one idea: the ODE is linear except for the
network's output, so put a polynomial through the last outputs and integrate it
exactly, see ``polynomials``. They differ in the output (x0_hat or eps_hat) and
in the variable of the polynomial. The first steps have fewer outputs to use and
so a lower order. The last step, to s = 0, has an infinite log-SNR: it returns
x0_hat.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax import polynomials, timesteps
from diffusion_jax.levels import first_if_clean
from diffusion_jax.polynomials import AXES as AXES
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch, check_floats, per_example, rates
from diffusion_jax.samplers import Solver, check_eta, check_walk, ddim_step
from diffusion_jax.schedules import Schedule, Time


class History(NamedTuple):
  """The memory of a multistep solver, the newest first.

  Attributes:
    outputs: The network's outputs (as x0_hat or eps_hat).
    nodes: Their positions on the polynomial's axis.
    filled: How many there are.
    x: The sample from which the last step started.
    t: The time of that sample.
  """

  outputs: Float[Array, "P B *image"]
  nodes: Float[Array, " P"]
  filled: Int[Array, ""]
  x: Batch
  t: Int[Array, ""]


def _empty(size: int, x: Batch, t: Time) -> History:
  """An empty history. The nodes are distinct so that no weight is NaN."""
  return History(
    outputs=jnp.zeros((size, *x.shape), x.dtype),
    nodes=-1e3 * jnp.arange(1, size + 1, dtype=x.dtype),
    filled=jnp.zeros((), jnp.int32),
    x=x,
    t=jnp.asarray(t),
  )


def _pushed(history: History, output, node, x, t) -> History:
  """The history with one more output and without the oldest."""
  size = len(history.nodes)

  def newest(new, old):
    return jnp.concatenate([new[None].astype(x.dtype), old])[:size]

  return History(
    outputs=newest(output, history.outputs),
    nodes=newest(node, history.nodes),
    filled=jnp.minimum(history.filled + 1, size),
    x=x,
    t=jnp.asarray(t, history.t.dtype),
  )


def dpm(
  order: int = 2,
  *,
  eta: float | Float[Array, ""] = 0.0,
) -> Solver:
  """DPM-Solver++ 2M and 3M, and with eta = 1 the SDE form.

  Lu et al. 2022 (DPM-Solver++), algorithm 2 and eq. 18 (SDE-DPM-Solver++).
  x0_hat is a polynomial in lambda. Order 2 evaluates the linear term at the
  middle of the step, as in the paper; order 3 integrates the parabola exactly.
  (Published code for 3M halves the quadratic term, which makes it second
  order.)

  The step adds noise of variance sigma_s^2 (1 - e^{-2 eta h}). At eta = 1 the
  first step is ``ancestral_step`` with fixed_small.

  Args:
    order: 1, 2 or 3.
    eta: 0 solves the ODE, 1 the reverse SDE.

  Returns:
    The solver.

  Raises:
    ValueError: If the order is not 1, 2 or 3, or eta is negative.
  """
  _check_order(order, (1, 2, 3))
  check_eta(eta, math.inf)
  make_rule = polynomials.midpoint_rule if order == 2 else polynomials.data_rule

  def step(predict, schedule, x_t, t, s, eps, history):
    p = predict(x_t, t)
    node = polynomials.half_log_snr(schedule, t)
    history = _pushed(history, p.x0_hat, node, x_t, t)
    h = polynomials.half_log_snr(schedule, s) - node
    weights = polynomials.weights(
      make_rule(schedule, t, s, eta=eta), history.nodes, history.filled, h
    )
    x_s = polynomials.drift(schedule, x_t, p.x0_hat, t, s, eta)
    x_s = polynomials.corrected(x_s, history.outputs, weights)
    std = schedule.at(s).sigma * jnp.sqrt(-jnp.expm1(-2 * eta * h))
    return x_s + std * eps, p.x0_hat, history

  return Solver(functools.partial(_empty, order), step)


def unipc(
  order: int = 3,
  *,
  axis: str = "scales",
) -> Solver:
  """UniPC: a multistep predictor, corrected without another network call.

  Zhao et al. 2023, algorithms 5 and 6, in data prediction. The network's output
  at t is one more point for the polynomial of the step that led to t; that step
  is repeated with it (one order higher), and the next one starts from the
  result. The weights are the exact integrals, in which the paper's B(h)
  cancels.

  The paper's polynomial is in lambda, in which the noisiest steps are far
  apart although x0_hat does not change there. With the axis "scales" it is in
  ``spacing.clock``: less error at 5 and 10 calls, see docs/solvers.md.

  Args:
    order: Order of the predictor, 1, 2 or 3.
    axis: "scales", or "log_snr" as in the paper.

  Returns:
    The solver.

  Raises:
    ValueError: If the order is not 1, 2 or 3, or the axis is unknown.
  """
  _check_order(order, (1, 2, 3))
  if axis not in AXES:
    raise ValueError(f"{axis=} is not one of {', '.join(AXES)}")
  rule = functools.partial(polynomials.data_rule, axis=AXES[axis])

  def at(schedule, t):
    return AXES[axis](polynomials.half_log_snr(schedule, t))

  def correct(schedule, x_t, x0_hat, t, history):
    """Repeats the step that led to t, now that x0_hat at t is known."""

    def second(new, old):
      new = new[None].astype(x_t.dtype)
      return jnp.concatenate([old[:1], new, old[1:]])

    outputs = second(x0_hat, history.outputs)
    nodes = second(at(schedule, t), history.nodes)
    weights = polynomials.weights(
      rule(schedule, history.t, t),
      nodes,
      history.filled + 1,
      reach=nodes[1] - nodes[0],
    )
    x = polynomials.drift(schedule, history.x, outputs[0], history.t, t)
    x = polynomials.corrected(x, outputs, weights)
    return jnp.where(history.filled > 0, x, x_t)

  def step(predict, schedule, x_t, t, s, eps, history):
    del eps  # deterministic
    p = predict(x_t, t)
    x_t = correct(schedule, x_t, p.x0_hat, t, history)
    history = _pushed(history, p.x0_hat, at(schedule, t), x_t, t)
    weights = polynomials.weights(
      rule(schedule, t, s),
      history.nodes,
      history.filled,
      reach=at(schedule, s) - at(schedule, t),
    )
    x_s = polynomials.drift(schedule, x_t, p.x0_hat, t, s)
    return (
      polynomials.corrected(x_s, history.outputs, weights),
      p.x0_hat,
      history,
    )

  return Solver(functools.partial(_empty, order), step)


def deis(order: int = 3) -> Solver:
  """DEIS, tAB: eps_hat is a polynomial in the time step.

  Zhang and Chen 2022, eqs. 14 and 15. Order 1 is DDIM.

  Args:
    order: 1, 2 or 3; the paper's tAB0, tAB1 and tAB2.

  Returns:
    The solver.

  Raises:
    ValueError: If the order is not 1, 2 or 3.
  """
  _check_order(order, (1, 2, 3))

  def step(predict, schedule, x_t, t, s, eps, history):
    del eps  # deterministic
    p = predict(x_t, t)
    history = _pushed(history, p.eps_hat, t / schedule.T, x_t, t)
    weights = polynomials.weights(
      polynomials.time_rule(schedule, t, s),
      history.nodes,
      history.filled,
      reach=(t - s) / schedule.T,
    )
    x_s = polynomials.drift(schedule, x_t, p.x0_hat, t, s)
    return (
      polynomials.corrected(x_s, history.outputs, weights),
      p.x0_hat,
      history,
    )

  return Solver(functools.partial(_empty, order), step)


def _check_order(order: int, orders: Sequence[int]) -> None:
  if order not in orders:
    raise ValueError(f"{order=} is not one of {', '.join(map(str, orders))}")


# Euler's method for dy/du = eps_hat, better known as DDIM.
euler_step = functools.partial(ddim_step, eta=0.0)


def heun_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """Heun's method: a DDIM step, repeated with the prediction at its end.

  Two network calls, the second at s; at s = 0, where a network predicts
  nothing, it is DDIM's step with one call. Instead of averaging two slopes
  (Karras et al. 2022, algorithm 1, for dy/du = eps_hat), x0_hat is interpolated
  linearly between the two predictions on the axis "scales", and integrated
  exactly. In u itself the method explodes if a schedule starts at u = 20,000,
  as the cosine one does.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: The time of x_t, 1..T; a scalar.
    s: The time to move to, 0..t-1; a scalar.
    eps: Unused; the step is deterministic.

  Returns:
    x_s and the predicted clean data x0_hat at t.
  """
  del eps
  t, s = jnp.asarray(t), jnp.asarray(s)
  p = predict(x_t, t)
  euler = polynomials.drift(schedule, x_t, p.x0_hat, t, s)

  def corrected(x_s):
    at = first_if_clean(schedule, s)
    there = predict(x_s, at)
    outputs = jnp.stack([p.x0_hat, there.x0_hat])
    nodes = polynomials.scales(
      polynomials.half_log_snr(schedule, jnp.stack([t, s]))
    )
    weights = polynomials.data_rule(schedule, t, s, axis=polynomials.scales)(
      nodes
    )
    return polynomials.corrected(euler, outputs, weights)

  return jax.lax.cond(s > 0, corrected, lambda x_s: x_s, euler), p.x0_hat


def ddim_encode_step(
  predict: Predict,
  schedule: Schedule,
  x_s: Batch,
  s: Time,
  t: Time,
) -> Batch:
  """DDIM's step the other way, from s up to t (DDIM, section 4.3).

  x_t = alpha_t x0_hat + sigma_t eps_hat, both predicted at s. A network
  predicts nothing at s = 0: there eps_hat is that of step 1, and x0_hat is the
  image itself.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_s: The sample at step s.
    s: The time of x_s, 0..T-1.
    t: The time to move to, s+1..T.

  Returns:
    x_t, the shape of x_s.
  """
  s = jnp.asarray(s)
  at = first_if_clean(schedule, s)
  p = predict(x_s, at)
  x0_hat = jnp.where(per_example(s, x_s) > 0, p.x0_hat, x_s)
  alpha, sigma = rates(schedule, t, x_s)
  return alpha * x0_hat + sigma * p.eps_hat


def encode(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  pairs: timesteps.AnyPairs,
) -> Batch:
  """From images to the noise that DDIM turns into them.

  ``sample`` with ``ddim_step``, eta 0, the same pairs and the result of this as
  ``x_T`` returns x0, up to an error that falls as 1 / S.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x0: Clean data, images in [-1, 1].
    pairs: The steps (t, s) of sampling, visited from the last to the first.

  Returns:
    x_T, the shape of x0.
  """
  check_floats(x0)
  check_walk(pairs, schedule.T)

  def body(x_s, move):
    return ddim_encode_step(predict, schedule, x_s, *move), None

  return jax.lax.scan(body, x0, jnp.asarray(pairs)[::-1, ::-1])[0]  # s to t
