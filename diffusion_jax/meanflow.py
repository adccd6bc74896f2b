"""MeanFlow: the average velocity over a step, by one forward-mode derivative.

On the straight path of ``flow``, z = x / (alpha + sigma) and tau = sigma /
(alpha + sigma), with the velocity v of the probability flow (Geng et al. 2025),

  U(z_t, t, s) = (1 / (tau_t - tau_s)) integral of v from s to t
  z_s = z_t - (tau_t - tau_s) U                                       (eq. 4)
  U = v - (tau_t - tau_s) dU / dtau_t,   along dz = v dtau            (eq. 6)

The last line is the objective: it needs no integral, and the derivative is one
``jax.jvp``. The network has the second time s as an input, under "s" of its
condition; at s = t it predicts v, as in flow matching. As a prediction U is
eps_hat - x0_hat of ``targets.flow``, and eq. 4 is DDIM's step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import objectives, process, samplers, targets, timesteps
from diffusion_jax.losses import mean_per_example
from diffusion_jax.objectives import Apply, Objective, Teacher
from diffusion_jax.prediction import (
  Cond,
  Predict,
  Prediction,
  Scale,
  given,
  predictor,
  towards,
)
from diffusion_jax.process import Batch, per_example
from diffusion_jax.schedules import Schedule, Time, is_discrete

Real = Float[Array, "..."]
# (z_t, t) -> U(z_t, t, s), s in the closure.
Average = Callable[[Batch, Real], Batch]

DRAW = timesteps.drawn_by(timesteps.logit_normal(-0.4))


def identity(
  average: Average,
  schedule: Schedule,
  z: Batch,
  t: Time,
  s: Time,
  v: Batch,
  along: Batch,
) -> tuple[Batch, Batch]:
  """U, and its target v - (tau_t - tau_s) dU / dtau (eq. 6).

  Args:
    average: ``(z, t) -> U`` for steps to s.
    schedule: The noise schedule, continuous.
    z: The samples at the start of the steps.
    t: Their times, [B].
    s: The times that the steps move to, [B].
    v: The velocity at (z, t), or an unbiased estimate of it.
    along: The velocity along which to differentiate, v or a better estimate.

  Returns:
    U and its target, without a gradient in the target.
  """

  def tau(t):
    return straight(schedule, t)[1]

  now, rate = jax.jvp(tau, (t,), (jnp.ones_like(t),))
  tangents = per_example(rate, z) * along, jnp.ones_like(t)
  U, dU_dt = jax.jvp(average, (z, t), tangents)
  span = (now - tau(s)) / rate
  return U, jax.lax.stop_gradient(v - per_example(span, z) * dU_dt)


def guided(
  v: Batch, strong: Batch, weak: Batch, omega: Real | float, kappa: Real | float
) -> Batch:
  """The velocity omega v + kappa strong + (1 - omega - kappa) weak (eq. 19).

  A network trained on it has guidance of scale omega / (1 - kappa) in a single
  call. omega = 1 has the least variance (improved MeanFlow, Geng et al. 2025).

  Args:
    v: The velocity, or an unbiased estimate of it.
    strong: The network's velocity with its condition.
    weak: The network's velocity without it.
    omega: See above.
    kappa: See above.

  Returns:
    The guided velocity.
  """
  return omega * v + kappa * strong + (1 - omega - kappa) * weak


def adaptive(
  error: Batch, *, power: float = 1.0, offset: float = 1e-2
) -> Float[Array, " B"]:
  """The mean square, with the gradient of |error|^2 / (|error|^2 + c)^p.

  The divisor has no gradient (eq. 22). With p = 1 the published loss is close
  to 1 however good the network is, so this one returns the error itself.

  Args:
    error: U minus its target.
    power: p; 0 weights all examples equally.
    offset: c.

  Returns:
    [B].
  """
  stop = jax.lax.stop_gradient
  total = (error**2).sum(axis=tuple(range(1, error.ndim)))
  change = (total - stop(total)) / stop(total + offset) ** power
  return stop(mean_per_example(error**2)) + change


class Guidance(NamedTuple):
  """Guidance that the network learns in training.

  Attributes:
    null: ``cond -> cond``, the null condition, see ``conditions``.
    omega: See ``guided``.
    kappa: See ``guided``.
    interval: Times between which to guide, both included; None is all.
  """

  null: Callable[[Cond], Cond]
  omega: float = 1.0
  kappa: float = 0.5
  interval: tuple[float, float] | None = None


class Spans(NamedTuple):
  """Steps from t to s, and the teacher's velocity at t, if there is one."""

  x0: Batch
  cond: Cond
  t: Any
  s: Any
  eps: Batch
  v: Any


def meanflow(
  apply: Apply,
  schedule: Schedule,
  *,
  scale: Scale | None = None,
  clock: Scale | None = None,
  draw: Callable[..., Any] = DRAW,
  draw_s: Callable[..., Any] | None = None,
  equal: float = 0.75,
  power: float = 1.0,
  offset: float = 1e-2,
  improved: bool = False,
  guidance: Guidance | None = None,
  condition: Callable[..., Cond] | None = None,
  teacher: Teacher | None = None,
) -> Objective:
  """Trains U on data, or on a teacher's velocity.

  Args:
    apply: The network, which predicts ``targets.flow``.
    schedule: The noise schedule, continuous.
    scale: Scales its input, see ``prediction.predictor``.
    clock: The two times it gets, see ``prediction.predictor``; finite at 0.
    draw: ``(key, B, T) -> t``, see ``timesteps``: draws both times, which are
      then sorted.
    draw_s: Draws the second time, if it has another distribution.
    equal: Fraction of examples with s = t, whose target is v itself.
    power: See ``adaptive``.
    offset: See ``adaptive``.
    improved: Differentiate along the network's own v, not along eps - x_0: the
      target then has no more noise than v (improved MeanFlow).
    guidance: Guidance to learn.
    condition: See ``objectives.diffusion``.
    teacher: A diffusion model, ``state -> predict``.

  Returns:
    The objective, for batches with "image", [B, H, W, C] in [-1, 1].

  Raises:
    ValueError: If the schedule is discrete, or ``equal`` is not in [0, 1].
  """
  if is_discrete(schedule):
    raise ValueError(
      "meanflow needs continuous time, and this schedule is discrete: use one "
      "of diffusion_jax.continuous"
    )
  if not 0 <= equal <= 1:
    raise ValueError(f"{equal=} must be in [0, 1], a part of the examples")
  noised = objectives.noising(schedule, draw, condition)

  def drawn(key, state, batch):
    found = noised(key, state, batch)
    x0, cond, t, eps = found.examples
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
    t, s = _two_times(key, t, draw_s or draw, schedule.T, equal)
    v = None
    if teacher is not None:
      predict = given(teacher(state), cond)
      v = _velocity(predict(process.q_sample(schedule, x0, t, eps), t))
    return found._replace(
      examples=Spans(x0, cond, t, s, eps, v),
      bin=objectives.bin_of(schedule, t),
    )

  def loss(params, examples, key):
    x0, cond, t, s, eps, v = examples
    predict = predictor(
      lambda x_t, t, cond: apply(params, x_t, t, cond, key), schedule,
      target=targets.flow, scale=scale, clock=clock,
    )  # fmt: skip
    average = functools.partial(_average, predict, schedule)
    tau = per_example(straight(schedule, t)[1], x0)
    z = (1 - tau) * x0 + tau * eps
    v = eps - x0 if v is None else v
    if guidance is not None:
      now = functools.partial(average, z, t, t)
      v = _learnt_guidance(guidance, now, cond, v, t)
    along = average(z, t, t, cond) if improved else v
    v, along = jax.lax.stop_gradient((v, along))
    U, aim = identity(
      lambda z, t: average(z, t, s, cond), schedule, z, t, s, v, along
    )
    return adaptive(U - aim, power=power, offset=offset)

  return Objective(drawn, loss, objectives.bins_of(schedule))


def _average(predict, schedule, z, t, s, cond) -> Batch:
  """U(z, t, s), as a network predicts it."""
  size = per_example(straight(schedule, t)[0], z)
  return towards(given(predict, cond), s)(size * z, t).output


def _velocity(p: Prediction) -> Batch:
  """The velocity dz / dtau of the line from x0_hat to eps_hat."""
  return p.eps_hat - p.x0_hat


def _two_times(key, t, draw, T, equal) -> tuple[Any, Any]:
  """Times t and s <= t, with s = t in a fraction ``equal`` of them."""
  key_s, key_order, key_equal = jax.random.split(key, 3)
  s = draw(key_s, len(t), T)
  # Evenly spread draws would put every s at the same distance from its t.
  s = jax.random.permutation(key_order, s)
  t, s = jnp.maximum(t, s), jnp.minimum(t, s)
  return t, jnp.where(jax.random.bernoulli(key_equal, equal, t.shape), t, s)


def _learnt_guidance(guidance: Guidance, now, cond, v, t):
  """The guided velocity, for examples with a condition, within the interval."""
  null = guidance.null(cond)
  same = [
    (a == b).all(axis=tuple(range(1, a.ndim)))
    for a, b in zip(jax.tree.leaves(cond), jax.tree.leaves(null), strict=True)
  ]
  plain = jnp.stack(same).all(axis=0)
  if guidance.interval is not None:
    low, high = guidance.interval
    plain |= (t < low) | (t > high)
  mixed = guided(v, now(cond), now(null), guidance.omega, guidance.kappa)
  return jnp.where(per_example(plain, v), v, mixed)


def straight(schedule: Schedule, t: Time) -> tuple[Real, Real]:
  """The sum alpha + sigma, and tau = sigmoid(-log SNR / 2)."""
  at = schedule.at(t)
  return at.alpha + at.sigma, jax.nn.sigmoid(-at.log_snr / 2)


def step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """z_s = z_t - (tau_t - tau_s) U(z_t, t, s) (eq. 4).

  DDIM's step with a network that takes both times; a single step from T to 0
  is the whole sampler.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at t.
    t: The time of x_t.
    s: The time to move to, below t.
    eps: Unused; the step is deterministic.

  Returns:
    x_s, and x0_hat as if the step went all the way to 0.
  """
  return samplers.ddim_step(towards(predict, s), schedule, x_t, t, s, eps)
