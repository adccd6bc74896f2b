"""The polynomial through a network's last outputs, integrated exactly.

The probability-flow ODE is linear except for the network's output. With weights
w_j, integrals of the polynomials that are 1 at one output and 0 at the others,
a step of any order is DDIM's plus a correction,

  x_s = DDIM + alpha_s sum_j w_j (output_j - output_0),

with output_0 the newest. A ``Rule`` computes the weights, for one kind of
output (x0_hat or eps_hat) and one variable.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax import spacing
from diffusion_jax.levels import first_if_clean
from diffusion_jax.process import Batch, beside, check_descends
from diffusion_jax.schedules import Schedule

# 16 points integrate exp(h) times a polynomial to 1e-12 up to h = 20, without
# the cancellation that the closed forms suffer in float32 at small h. JAX
# remembers an array's precision: as numbers they have that of each program.
_POINTS, _POINT_WEIGHTS = map(tuple, np.polynomial.legendre.leggauss(16))

# How many times as far as two nodes are apart a polynomial may reach beyond
# them. Past that its slope is the outputs' error and not their trend.
MOST_STRETCH = 100.0

# Weights for outputs at these nodes, the newest first.
Rule = Callable[[Float[Array, " K"]], Float[Array, " K"]]

# From lambda, half the log-SNR, to the variable of the polynomial.
Axis = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def log_snr(half: Float[Array, "..."]) -> Float[Array, "..."]:
  """Lambda itself."""
  return half


def scales(half: Float[Array, "..."]) -> Float[Array, "..."]:
  """``spacing.clock`` of sigma / alpha."""
  return spacing.clock_left(jnp.exp(-half), xp=jnp)


AXES = {"log_snr": log_snr, "scales": scales}


def lagrange(nodes, z) -> Float[Array, "N K"]:
  """The polynomials that are 1 at one node and 0 at the others, at z."""
  columns = []
  for j, node in enumerate(nodes):
    others = [other for k, other in enumerate(nodes) if k != j]
    factors = [(z - other) / (node - other) for other in others]
    columns.append(jnp.prod(jnp.stack([jnp.ones_like(z), *factors]), axis=0))
  return jnp.stack(columns, axis=1)


def weights(rule: Rule, nodes, filled, reach) -> Float[Array, " K"]:
  """The rule for the first nodes that can be used, 0 for the others.

  A ``filled`` node can be used if it is not too close to a newer one for a step
  as long as ``reach`` on the nodes' axis, see ``MOST_STRETCH``. Their number is
  known only at run time, so every case is computed, a few numbers each.
  """
  size = len(nodes)
  apart = jnp.stack([
    jnp.abs(nodes[k] - nodes[:k]).min() for k in range(1, size)
  ]) if size > 1 else jnp.empty(0)  # fmt: skip
  far_enough = MOST_STRETCH * apart > jnp.abs(reach)  # never if they coincide
  usable = 1 + jnp.cumprod(far_enough).sum()
  cases = [jnp.pad(rule(nodes[:k]), (0, size - k)) for k in range(1, size + 1)]
  return jnp.stack(cases)[jnp.clip(jnp.minimum(filled, usable), 1, size) - 1]


def corrected(x: Batch, outputs, weights) -> Batch:
  """The corrected sample x + sum_j w_j (output_j - output_0)."""
  change = (outputs[1:] - outputs[:1]).astype(x.dtype)
  return x + jnp.tensordot(beside(weights[1:], x), change, axes=1)


def half_log_snr(schedule: Schedule, t) -> Float[Array, "..."]:
  """lambda_t = log(alpha_t / sigma_t), made finite.

  At t = 0 it is that of ``first``, and where alpha is 0 that of u = sigma /
  alpha = 1e6: a polynomial needs a finite node for each output.
  """
  half = schedule.at(first_if_clean(schedule, t)).log_snr / 2
  return jnp.where(jnp.isneginf(half), -math.log(1e6), half)


def drift(
  schedule: Schedule, x_t, x0_hat, t, s, eta: float | Array = 0.0
) -> Batch:
  """The mean of a first-order step, DDIM's where eta = 0.

  sigma_s/sigma_t e^{-eta h} x_t + alpha_s (1 - e^{-(1 + eta) h}) x0_hat with
  h = lambda_s - lambda_t; exactly x0_hat at s = 0, where h is infinite.
  """
  check_descends(t, s)
  at, to = schedule.at(t), schedule.at(s)
  h = (to.log_snr - at.log_snr) / 2
  keep = to.sigma / at.sigma
  # 0 * inf is NaN: at s = 0 keep is 0 in any case, and where x_t is all noise
  # exp(-100 eta) is as good as 0.
  keep = keep * jnp.exp(-eta * jnp.where(s > 0, jnp.minimum(h, 100.0), 0.0))
  gain = -to.alpha * jnp.expm1(-(1 + eta) * h)
  return keep * x_t + gain * x0_hat


def data_rule(
  schedule: Schedule, t, s, *, axis: Axis = log_snr, eta: float | Array = 0.0
) -> Rule:
  """Exact weights for x0_hat as a polynomial on an axis.

  w_j = alpha_s int (1 + eta) e^{-(1 + eta) (lambda_s - l)} L_j(axis(l)) dl,
  from lambda_t to lambda_s; 0 at s = 0.
  """
  start, end = half_log_snr(schedule, t), half_log_snr(schedule, s)
  h = end - start
  back = h * (1 - np.array(_POINTS)) / 2
  weights = h * np.array(_POINT_WEIGHTS) / 2
  density = (1 + eta) * jnp.exp(-(1 + eta) * back) * weights
  density = jnp.where(s > 0, schedule.at(s).alpha, 0.0) * density
  return lambda nodes: density @ lagrange(nodes, axis(end - back))


def midpoint_rule(
  schedule: Schedule, t, s, *, eta: float | Array = 0.0
) -> Rule:
  """DPM-Solver++ 2M's weights: the linear term at the middle of the step."""
  h = half_log_snr(schedule, s) - half_log_snr(schedule, t)
  gain = -jnp.where(s > 0, schedule.at(s).alpha, 0.0)
  gain = gain * jnp.expm1(-(1 + eta) * h)

  def rule(nodes):
    if len(nodes) == 1:
      return gain[None]
    slope = h / (2 * (nodes[0] - nodes[1]))  # 1 / (2 r) in the paper
    return gain * jnp.stack([1 + slope, -slope])

  return rule


def time_rule(schedule: Schedule, t, s) -> Rule:
  """Exact weights for eps_hat as a polynomial in the step t / T.

  w_j = alpha_s int L_j(t(u)) du from u_t to u_s; 0 at s = 0. The integral is
  taken over arcsinh(u), which compresses the range of u = sigma / alpha.
  """
  start, end = (
    jnp.arcsinh(jnp.where(x.alpha > 0, x.sigma / x.alpha, 1e6))
    for x in map(schedule.at, (t, s))
  )
  middle, half = (end + start) / 2, (end - start) / 2
  a = middle + half * np.array(_POINTS)
  density = jnp.cosh(a) * (half * np.array(_POINT_WEIGHTS))
  density = jnp.where(s > 0, schedule.at(s).alpha, 0.0) * density
  return lambda nodes: density @ lagrange(nodes, schedule.part(a))
