"""Solvers of higher order: the same picture in far fewer network calls.

With u = sigma / alpha and y = x / alpha, the probability-flow ODE is
dy/du = eps_hat, and Euler's method for it is DDIM. A solver of order p makes
an error of order 1 / S^p in S steps, by calling the network twice per step
(Heun) or by remembering what it said before (multistep, one call per step).

All multistep solvers here are one idea: the ODE is linear but for the
network's output, so put a polynomial through the last outputs and integrate
that exactly. They differ in the output (x0_hat or eps_hat) and in the variable
that the polynomial is in. Each step is then DDIM's plus a correction,

  x_s = DDIM + alpha_s sum_j w_j (output_j - output_0),

with output_0 the newest. The first steps have a shorter memory and so a lower
order. The last step, to s = 0, has an infinite log-SNR: it returns x0_hat.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax import spacing, timesteps
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch, per_example, rates
from diffusion_jax.samplers import Solver, check_eta, ddim_step
from diffusion_jax.schedules import Schedule, Time

# 16 points integrate exp(h) times a polynomial to 1e-12 up to h = 20, without
# the cancellation that the closed forms suffer in float32 at small h. JAX
# remembers an array's precision: as numbers they have that of each program.
_POINTS, _POINT_WEIGHTS = map(tuple, np.polynomial.legendre.leggauss(16))

# How many times as far as two nodes are apart a polynomial may reach beyond
# them. Past that its slope is the outputs' error and not their trend.
MOST_STRETCH = 100.0

# Weights for outputs at these nodes, the newest first.
Rule = Callable[[Float[Array, " K"]], Float[Array, " K"]]


# From lambda, half the log-SNR, to where outputs are put on a polynomial.
Axis = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _log_snr(half: Float[Array, "..."]) -> Float[Array, "..."]:
  return half


def _scales(half: Float[Array, "..."]) -> Float[Array, "..."]:
  return spacing.clock_left(jnp.exp(-half), xp=jnp)


AXES = {"log_snr": _log_snr, "scales": _scales}


class History(NamedTuple):
  """What a multistep solver remembers, the newest first.

  Attributes:
    outputs: The network's outputs (as x0_hat or eps_hat).
    nodes: Where on the polynomial's axis they are.
    filled: How many there are.
    x: The sample from which the last step was taken.
    t: The step at which that sample stood.
  """

  outputs: Float[Array, "P B *image"]
  nodes: Float[Array, " P"]
  filled: Int[Array, ""]
  x: Batch
  t: Int[Array, ""]


def _empty(size: int, x: Batch, t: Time) -> History:
  """Nothing yet. The nodes are distinct so that no weight is NaN."""
  return History(
    outputs=jnp.zeros((size, *x.shape), x.dtype),
    nodes=-1e3 * jnp.arange(1, size + 1, dtype=x.dtype),
    filled=jnp.zeros((), jnp.int32),
    x=x,
    t=jnp.asarray(t),
  )


def _pushed(history: History, output, node, x, t) -> History:
  """With one more output; the oldest is forgotten."""
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


def _lagrange(nodes, z) -> Float[Array, "N K"]:
  """The polynomials that are 1 at one node and 0 at the others, at z."""
  columns = []
  for j, node in enumerate(nodes):
    others = [other for k, other in enumerate(nodes) if k != j]
    factors = [(z - other) / (node - other) for other in others]
    columns.append(jnp.prod(jnp.stack([jnp.ones_like(z), *factors]), axis=0))
  return jnp.stack(columns, axis=1)


def _weights(rule: Rule, nodes, filled, reach) -> Float[Array, " K"]:
  """The rule for the first nodes that can be used, 0 for the others.

  Of the ``filled`` ones those can that are not too close to a newer one for a
  step as long as ``reach`` on the nodes' axis, see ``MOST_STRETCH``. How many
  they are is known only while running, so every case is worked out, a few
  numbers each.
  """
  size = len(nodes)
  apart = jnp.stack([
    jnp.abs(nodes[k] - nodes[:k]).min() for k in range(1, size)
  ]) if size > 1 else jnp.empty(0)  # fmt: skip
  far_enough = MOST_STRETCH * apart >= jnp.abs(reach)
  usable = 1 + jnp.cumprod(far_enough).sum()
  cases = [jnp.pad(rule(nodes[:k]), (0, size - k)) for k in range(1, size + 1)]
  return jnp.stack(cases)[jnp.clip(jnp.minimum(filled, usable), 1, size) - 1]


def _corrected(x: Batch, outputs, weights) -> Batch:
  """X + sum_j w_j (output_j - output_0)."""
  change = (outputs[1:] - outputs[:1]).astype(x.dtype)
  return x + jnp.tensordot(weights[1:], change, axes=1)


def _half_log_snr(schedule: Schedule, t) -> Float[Array, "..."]:
  """lambda_t = log(alpha_t / sigma_t), where both are something.

  That of the first time where t is 0, and of u = sigma / alpha = 1e6 where
  alpha is 0: a polynomial needs a finite place for each answer.
  """
  half = schedule.at(jnp.maximum(t, schedule.first)).log_snr / 2
  return jnp.where(jnp.isneginf(half), -np.log(1e6), half)


def _drift(
  schedule: Schedule, x_t, x0_hat, t, s, eta: float | Array = 0.0
) -> Batch:
  """The mean of a first-order step, DDIM's where eta = 0.

  sigma_s/sigma_t e^{-eta h} x_t + alpha_s (1 - e^{-(1 + eta) h}) x0_hat with
  h = lambda_s - lambda_t; exactly x0_hat at s = 0, where h is infinite.
  """
  at, to = schedule.at(t), schedule.at(s)
  h = (to.log_snr - at.log_snr) / 2
  keep = to.sigma / at.sigma
  # 0 * inf is no number: at s = 0 keep is 0 in any case, and where x_t is all
  # noise exp(-100 eta) is as good as 0.
  keep = keep * jnp.exp(-eta * jnp.where(s > 0, jnp.minimum(h, 100.0), 0.0))
  gain = -to.alpha * jnp.expm1(-(1 + eta) * h)
  return keep * x_t + gain * x0_hat


def _data_rule(
  schedule: Schedule, t, s, *, axis: Axis = _log_snr, eta: float | Array = 0.0
) -> Rule:
  """Exact weights for x0_hat as a polynomial on an axis.

  w_j = alpha_s int (1 + eta) e^{-(1 + eta) (lambda_s - l)} L_j(axis(l)) dl,
  from lambda_t to lambda_s; 0 at s = 0.
  """
  start, end = _half_log_snr(schedule, t), _half_log_snr(schedule, s)
  h = end - start
  back = h * (1 - np.array(_POINTS)) / 2
  weights = h * np.array(_POINT_WEIGHTS) / 2
  density = (1 + eta) * jnp.exp(-(1 + eta) * back) * weights
  density = jnp.where(s > 0, schedule.at(s).alpha, 0.0) * density
  return lambda nodes: density @ _lagrange(nodes, axis(end - back))


def _midpoint_rule(
  schedule: Schedule, t, s, *, eta: float | Array = 0.0
) -> Rule:
  """DPM-Solver++ 2M's weights: the linear term at the middle of the step."""
  h = _half_log_snr(schedule, s) - _half_log_snr(schedule, t)
  gain = -jnp.where(s > 0, schedule.at(s).alpha, 0.0)
  gain = gain * jnp.expm1(-(1 + eta) * h)

  def rule(nodes):
    if len(nodes) == 1:
      return gain[None]
    slope = h / (2 * (nodes[0] - nodes[1]))  # 1 / (2 r) in the paper
    return gain * jnp.stack([1 + slope, -slope])

  return rule


def dpm(
  order: int = 2,
  *,
  eta: float | Float[Array, ""] = 0.0,
) -> Solver:
  """DPM-Solver++ 2M and 3M, and with eta = 1 the SDE form.

  Lu et al. 2022 (DPM-Solver++), algorithm 2 and eq. 18 (SDE-DPM-Solver++).
  x0_hat is a polynomial in lambda. Order 2 is the paper's, which takes the
  linear term at the middle of the step; order 3 integrates the parabola
  exactly. (Published code for 3M halves the quadratic term, which makes it
  second order.)

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
  make_rule = _midpoint_rule if order == 2 else _data_rule

  def step(predict, schedule, x_t, t, s, eps, history):
    p = predict(x_t, t)
    node = _half_log_snr(schedule, t)
    history = _pushed(history, p.x0_hat, node, x_t, t)
    h = _half_log_snr(schedule, s) - node
    weights = _weights(
      make_rule(schedule, t, s, eta=eta), history.nodes, history.filled, h
    )
    x_s = _drift(schedule, x_t, p.x0_hat, t, s, eta)
    x_s = _corrected(x_s, history.outputs, weights)
    std = schedule.at(s).sigma * jnp.sqrt(-jnp.expm1(-2 * eta * h))
    return x_s + std * eps, p.x0_hat, history

  return Solver(functools.partial(_empty, order), step)


def unipc(
  order: int = 3,
  *,
  axis: str = "scales",
) -> Solver:
  """UniPC: a multistep predictor, corrected without another network call.

  Zhao et al. 2023, algorithms 5 and 6, in data prediction. When the network
  answers at t, that answer is one more point for the polynomial of the step
  that led to t; the step is taken again with it (one order higher), and the
  next one starts from there. The weights are the exact integrals, to which
  the paper's B(h) cancels.

  The paper's polynomial is in lambda, on which the noisiest steps are far
  apart although nothing happens there. On the axis "scales" it is in
  ``spacing.clock``: less error at 5 and 10 calls, see docs/solvers.md.

  Args:
    order: Of the predictor, 1, 2 or 3.
    axis: "scales", or "log_snr" as in the paper.

  Returns:
    The solver.

  Raises:
    ValueError: If the order is not 1, 2 or 3, or the axis not known.
  """
  _check_order(order, (1, 2, 3))
  if axis not in AXES:
    raise ValueError(f"{axis=} is not one of {', '.join(AXES)}")
  rule = functools.partial(_data_rule, axis=AXES[axis])

  def at(schedule, t):
    return AXES[axis](_half_log_snr(schedule, t))

  def correct(schedule, x_t, x0_hat, t, history):
    """The step that led to t once more, now that x0_hat at t is known."""

    def second(new, old):
      new = new[None].astype(x_t.dtype)
      return jnp.concatenate([old[:1], new, old[1:]])

    outputs = second(x0_hat, history.outputs)
    nodes = second(at(schedule, t), history.nodes)
    weights = _weights(
      rule(schedule, history.t, t),
      nodes,
      history.filled + 1,
      reach=nodes[1] - nodes[0],
    )
    x = _drift(schedule, history.x, outputs[0], history.t, t)
    x = _corrected(x, outputs, weights)
    return jnp.where(history.filled > 0, x, x_t)

  def step(predict, schedule, x_t, t, s, eps, history):
    del eps  # deterministic
    p = predict(x_t, t)
    x_t = correct(schedule, x_t, p.x0_hat, t, history)
    history = _pushed(history, p.x0_hat, at(schedule, t), x_t, t)
    weights = _weights(
      rule(schedule, t, s),
      history.nodes,
      history.filled,
      reach=at(schedule, s) - at(schedule, t),
    )
    x_s = _drift(schedule, x_t, p.x0_hat, t, s)
    return _corrected(x_s, history.outputs, weights), p.x0_hat, history

  return Solver(functools.partial(_empty, order), step)


def _time_rule(schedule: Schedule, t, s) -> Rule:
  """Exact weights for eps_hat as a polynomial in the step t / T.

  w_j = alpha_s int L_j(t(u)) du from u_t to u_s; 0 at s = 0. The integral is
  taken over arcsinh(u), which tames the range of u = sigma / alpha.
  """
  start, end = (
    jnp.arcsinh(jnp.where(x.alpha > 0, x.sigma / x.alpha, 1e6))
    for x in map(schedule.at, (t, s))
  )
  middle, half = (end + start) / 2, (end - start) / 2
  a = middle + half * np.array(_POINTS)
  density = jnp.cosh(a) * (half * np.array(_POINT_WEIGHTS))
  density = jnp.where(s > 0, schedule.at(s).alpha, 0.0) * density
  return lambda nodes: density @ _lagrange(nodes, schedule.part(a))


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
    weights = _weights(
      _time_rule(schedule, t, s),
      history.nodes,
      history.filled,
      reach=(t - s) / schedule.T,
    )
    x_s = _drift(schedule, x_t, p.x0_hat, t, s)
    return _corrected(x_s, history.outputs, weights), p.x0_hat, history

  return Solver(functools.partial(_empty, order), step)


def _check_order(order: int, orders: Sequence[int]) -> None:
  if order not in orders:
    raise ValueError(f"{order=} is not one of {', '.join(map(str, orders))}")


# Euler's method for dy/du = eps_hat, under the name it is better known by.
euler_step = functools.partial(ddim_step, eta=0.0)


def heun_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Int[Array, ""] | int,
  s: Int[Array, ""] | int,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """Heun's method: a DDIM step, then again with the answer from its end.

  Two network calls, the second at s; at s = 0, where a network has no answer,
  it is DDIM's step with one call. In place of the average of two slopes
  (Karras et al. 2022, algorithm 1, for dy/du = eps_hat) x0_hat goes evenly
  from one answer to the other on the axis "scales", integrated exactly. In u
  itself the method explodes where a schedule starts at u = 20,000, as the
  cosine one does.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at step t.
    t: Where it stands, 1..T; a scalar.
    s: Where to go, 0..t-1; a scalar.
    eps: Unused; the step is deterministic.

  Returns:
    x_s and the predicted clean data x0_hat at t.
  """
  del eps
  t, s = jnp.asarray(t), jnp.asarray(s)
  p = predict(x_t, t)
  euler = _drift(schedule, x_t, p.x0_hat, t, s)

  def corrected(x_s):
    at = jnp.maximum(s, schedule.first)
    there = predict(x_s, at)
    outputs = jnp.stack([p.x0_hat, there.x0_hat])
    nodes = _scales(_half_log_snr(schedule, jnp.stack([t, s])))
    weights = _data_rule(schedule, t, s, axis=_scales)(nodes)
    return _corrected(euler, outputs, weights)

  return jax.lax.cond(s > 0, corrected, lambda x_s: x_s, euler), p.x0_hat


def ddim_encode_step(
  predict: Predict,
  schedule: Schedule,
  x_s: Batch,
  s: Time,
  t: Time,
) -> Batch:
  """DDIM's step the other way, from s up to t (DDIM, section 4.3).

  x_t = alpha_t x0_hat + sigma_t eps_hat, both predicted at s. No network
  answers at s = 0: there the noise is what it predicts at step 1, and x0_hat
  is the picture itself.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_s: The sample at step s.
    s: Where it stands, 0..T-1.
    t: Where to go, s+1..T.

  Returns:
    x_t, the shape of x_s.
  """
  at = jnp.maximum(jnp.asarray(s), schedule.first)
  p = predict(x_s, at)
  x0_hat = jnp.where(per_example(s, x_s) > 0, p.x0_hat, x_s)
  alpha, sigma = rates(schedule, t, x_s)
  return alpha * x0_hat + sigma * p.eps_hat


def encode(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  pairs: timesteps.Pairs | Int[Array, "S 2"],
) -> Batch:
  """From pictures to the noise that DDIM turns into them.

  ``sample`` with ``ddim_step``, eta 0, the same pairs and ``x_T`` set to what
  this returns gives x0 back, up to an error that falls as 1 / S.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x0: Clean data, images in [-1, 1].
    pairs: The (t, s) of sampling; walked from the last to the first.

  Returns:
    x_T, the shape of x0.
  """

  def body(x_s, pair):
    t, s = pair
    return ddim_encode_step(predict, schedule, x_s, s, t), None

  return jax.lax.scan(body, x0, jnp.asarray(pairs)[::-1])[0]
