"""Progressive distillation: one step of a student does two of its teacher.

Salimans and Ho 2022, algorithm 2. DDIM's step from t to s is linear in x0_hat,
so there is one x_0 with which it ends where the teacher does: the student
learns to predict it, with the loss of any diffusion model. It samples in half
as many steps, and can be the next teacher.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from diffusion_jax import objectives, process
from diffusion_jax.objectives import Apply, Noised, Objective, Teacher
from diffusion_jax.prediction import Cond, eps_from_x0, given
from diffusion_jax.process import Batch, per_example
from diffusion_jax.samplers import Step, ddim_step
from diffusion_jax.schedules import Schedule, Time


def halved(
  pairs: Shaped[np.ndarray, "S 2"],
) -> Shaped[np.ndarray, "S/2 2"]:
  """The pairs of half as many steps, which visit every second time.

  Raises:
    ValueError: If the steps cannot be taken two at a time.

  >>> halved(np.array([[1000, 500], [500, 1], [1, 0], [0, 0]])[:2]).tolist()
  [[1000, 1]]
  """
  if len(pairs) % 2 or not len(pairs):
    raise ValueError(
      f"a walk of {len(pairs)} steps cannot be halved; take an even number"
    )
  return np.stack([pairs[::2, 0], pairs[1::2, 1]], axis=1)


def x0_between(
  schedule: Schedule, x_t: Batch, t: Time, x_s: Batch, s: Time
) -> Batch:
  """The x_0 with which DDIM's step from x_t ends at x_s.

  (x_s - k x_t) / (alpha_s - k alpha_t), k = sigma_s / sigma_t (appendix G).
  """
  at, to = schedule.at(t), schedule.at(s)
  k = to.sigma / at.sigma
  x0 = x_s - per_example(k, x_t) * x_t
  return x0 / per_example(to.alpha - k * at.alpha, x_t)


def progressive(
  apply: Apply,
  schedule: Schedule,
  teacher: Teacher,
  pairs: Shaped[np.ndarray, "S 2"],
  *,
  step: Step = ddim_step,
  condition: Callable[..., Cond] | None = None,
  **options: Any,
) -> Objective:
  """Learns to take two steps of a teacher in one.

  Args:
    apply: The student, usually initialised with the teacher's parameters.
    schedule: The noise schedule.
    teacher: ``state -> predict``.
    pairs: The teacher's steps (t, s), an even number; the student's are
      ``halved`` of these.
    step: The teacher's step, with a time for each example; deterministic.
    condition: See ``objectives.diffusion``.
    **options: Options of ``objectives.diffusion`` except ``draw``. The loss
      should be finite at the first t: the paper takes the plain loss of v, and
      ``weights.truncated_snr``.

  Returns:
    The objective, for batches with "image", [B, H, W, C] in [-1, 1].

  Raises:
    ValueError: If the steps cannot be taken two at a time.
  """
  starts, ends = halved(pairs).T
  starts, middles, ends = (
    jnp.asarray(times) for times in (starts, pairs[::2, 1], ends)
  )

  def draw(key, batch, T):
    return starts[jax.random.randint(key, (batch,), 0, len(starts))]

  plain = objectives.diffusion(
    apply, schedule, draw=draw, condition=condition, **options
  )

  def drawn(key, state, batch):
    found = plain.draw(key, state, batch)
    x0, cond, t, eps = found.examples
    number = (t[:, None] == starts[None]).argmax(axis=1)
    predict = given(teacher(state), cond)
    x_t = process.q_sample(schedule, x0, t, eps)
    x_s, s = x_t, t
    for times in (middles, ends):
      x_s, _ = step(predict, schedule, x_s, s, times[number], eps)
      s = times[number]
    x0 = x0_between(schedule, x_t, t, x_s, s)
    eps = eps_from_x0(schedule, x_t, t, x0)
    return found._replace(examples=Noised(x0, cond, t, eps))

  return plain._replace(draw=drawn)
