"""Consistency models: from any point of a path to its clean end in one call.

f(x_t, t), here the x0_hat of any ``predict``, is the end of the probability
flow through x_t (Song et al. 2023). It is the same all along a path, and x_0 at
t = 0: the objective follows from these two facts. With u = sigma / alpha, the
papers' t, and r < t on the same path,

  loss = d(f(x_t, t) - stop_gradient f(x_r, r)) / (u_t - u_r)

x_r is alpha_r x_0 + sigma_r eps with the noise of x_t (training), or the end of
a teacher's step (distillation). During training r moves closer to t, by ``ect``
(Geng et al. 2024, "Consistency models made easy"), whose network, noise levels
and weight are EDM's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import edm, objectives, process, targets, timesteps
from diffusion_jax.objectives import Apply, Objective, Teacher
from diffusion_jax.prediction import Cond, Predict, Scale, given, predictor
from diffusion_jax.process import Batch, per_example
from diffusion_jax.samplers import Step, ddim_step
from diffusion_jax.schedules import Schedule, Time, is_discrete
from diffusion_jax.targets import Target

Real = Float[Array, "..."]
# (u_t, number of updates so far) -> u_r.
Nearer = Callable[[Real, Any], Real]

# ECT's network, and noise levels in the time of ``continuous.edm``.
TARGET, SCALE = targets.edm(), edm.c_in()
DRAW = timesteps.drawn_by(timesteps.log_normal(-1.1, 2.0))


# -------------------------------------------------------------- where r is


def ect(
  u: Real, stage: Any, *, q: float = 2.0, k: float = 8.0, b: float = 1.0
) -> Real:
  """u_r = u (1 - n(u) / q^(stage + 1)), n(u) = 1 + k sigmoid(-b u), but >= 0.

  Geng et al. 2024, section 3.2. In stage 0 of the usual settings r is 0
  everywhere below u = 2: that is a diffusion model's own loss.

  Args:
    u: sigma / alpha at t.
    stage: From 0 on; each divides the gap by q.
    q: See above.
    k: How much wider the gap is at low noise.
    b: How fast that fades as the noise grows.

  Returns:
    u_r, the shape of u.
  """
  n = 1 + k * jax.nn.sigmoid(-b * u)
  return jnp.maximum(u * (1 - n / q ** (stage + 1)), 0)


def stages(every: int, *, last: int = 7, **options: float) -> Nearer:
  """``ect`` in stages of this many updates.

  Args:
    every: Updates in a stage.
    last: The last stage, kept to the end: the gaps of later ones are below the
      precision of float32.
    **options: Options of ``ect``.

  Returns:
    ``(u, step) -> u_r``.

  Raises:
    ValueError: If ``every`` is below 1.
  """
  if every < 1:
    raise ValueError(f"{every=} must be at least 1, the updates in a stage")
  return lambda u, step: ect(u, jnp.minimum(step // every, last), **options)


# ---------------------------------------------------------------- the loss


def pseudo_huber(d: Batch, c: float = 0.0) -> Float[Array, " B"]:
  """sqrt(|d|^2 + c^2) - c, summed over all axes but the first.

  c = 0 is the Euclidean norm (Geng et al. 2024); 0.00054 sqrt(dimensions)
  is quadratic for small errors (Song and Dhariwal 2023, section 3.3).
  """
  total = (d**2).sum(axis=tuple(range(1, d.ndim))) + c**2
  # A norm has no gradient at 0; here it is 0.
  return jnp.sqrt(jnp.maximum(total, jnp.finfo(d.dtype).tiny)) - c


def gap(
  predict: Predict, schedule: Schedule, x_t: Batch, t: Time, x_r: Batch, r: Time
) -> Batch:
  """f(x_t, t) - stop_gradient f(x_r, r); f(x_0, 0) is x_0 without a call."""
  f_t = predict(x_t, t).x0_hat
  f_r = predict(x_r, jnp.where(r > 0, r, schedule.first)).x0_hat
  f_r = jnp.where(per_example(r, x_r) > 0, f_r, x_r)
  return f_t - jax.lax.stop_gradient(f_r)


class Neighbours(NamedTuple):
  """Two points of one path, r < t."""

  x_t: Batch
  t: Any
  x_r: Batch
  r: Any
  cond: Cond


def consistency(
  apply: Apply,
  schedule: Schedule,
  *,
  nearer: Nearer,
  target: Target = TARGET,
  scale: Scale | None = SCALE,
  clock: Scale | None = edm.c_noise,
  distance: Callable[[Batch], Float[Array, " B"]] = pseudo_huber,
  draw: Callable[..., Any] = DRAW,
  condition: Callable[..., Cond] | None = None,
  teacher: Teacher | None = None,
  step: Step = ddim_step,
) -> Objective:
  """Trains f on data, or with a teacher.

  The network is called twice with the same dropout.

  Args:
    apply: The network.
    schedule: The noise schedule, continuous.
    nearer: ``(u, step) -> u_r``, see ``stages``.
    target: What the network predicts; it must be finite at t = 0.
    scale: Scales its input, see ``prediction.predictor``.
    clock: The time it gets, see ``prediction.predictor``.
    distance: d in the loss, see ``pseudo_huber``.
    draw: ``(key, B, T) -> t``, see ``timesteps``.
    condition: See ``objectives.diffusion``.
    teacher: A diffusion model, ``state -> predict``; without one f is trained
      on data alone.
    step: The teacher's step from t to r, with a time for each example.

  Returns:
    The objective, for batches with "image", [B, H, W, C] in [-1, 1].

  Raises:
    ValueError: If the schedule is discrete.
  """
  if is_discrete(schedule):
    raise ValueError(
      "consistency needs continuous time, and this schedule is discrete: use "
      "one of diffusion_jax.continuous"
    )
  noised = objectives.noising(schedule, draw, condition)

  def drawn(key, state, batch):
    found = noised(key, state, batch)
    x0, cond, t, eps = found.examples
    u_r = nearer(_ratio(schedule, t), state.step)
    r = schedule.time(-2 * jnp.log(u_r))
    x_t = process.q_sample(schedule, x0, t, eps)
    if teacher is None:
      x_r = process.q_sample(schedule, x0, r, eps)
    else:
      x_r, _ = step(given(teacher(state), cond), schedule, x_t, t, r, eps)
    return found._replace(examples=Neighbours(x_t, t, x_r, r, cond))

  def loss(params, examples, key):
    x_t, t, x_r, r, cond = examples
    predict = given(
      predictor(
        lambda x_t, t, cond=None: apply(params, x_t, t, cond, key), schedule,
        target=target, scale=scale, clock=clock,
      ),
      cond,
    )  # fmt: skip
    d = distance(gap(predict, schedule, x_t, t, x_r, r))
    return d / (_ratio(schedule, t) - _ratio(schedule, r))

  return Objective(drawn, loss, objectives.bins_of(schedule))


def _ratio(schedule: Schedule, t: Time) -> Real:
  """The ratio u = sigma / alpha; 0 at t = 0."""
  return jnp.exp(-schedule.at(t).log_snr / 2)


# ------------------------------------------------------------------ a step


def renoise_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
) -> tuple[Batch, Batch]:
  """Predicts the path's end and noises it: alpha_s f(x_t, t) + sigma_s eps.

  Multistep consistency sampling (Song et al. 2023, algorithm 1). A single step,
  from T to 0, is f itself.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x_t: The sample at t.
    t: The time of x_t.
    s: The time to move to, below t. At s = 0 no noise is added.
    eps: Standard Gaussian noise, the shape of x_t.

  Returns:
    x_s and f(x_t, t).
  """
  x0_hat = predict(x_t, t).x0_hat
  return process.q_sample(schedule, x0_hat, s, eps), x0_hat
