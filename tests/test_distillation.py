"""Progressive distillation, where the teacher's two steps are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PATHS, Mixture, flow_map

import diffusion_jax as dj
from diffusion_jax import distillation, process, targets


def map_by(schedule, mean, std, pairs, *, wrong=0.0):
  """A network whose DDIM steps are exact between the times of a walk."""
  starts, ends = (jnp.asarray(times) for times in np.asarray(pairs).T)

  def apply(x_t, t):
    t = process.times(t, x_t)
    s = ends[(t[:, None] == starts[None]).argmax(axis=1)]
    x_s = flow_map(schedule, mean, std, x_t, t, s)
    x0 = distillation.x0_between(schedule, x_t, t, x_s, s) * (1 + wrong)
    eps = dj.prediction.eps_from_x0(schedule, x_t, t, x0)
    return targets.v.of(schedule, x0, t, eps)

  return apply


def walk(schedule):
  """Eight steps from where there still is a signal."""
  if isinstance(schedule.T, int):
    return dj.timesteps.spaced(schedule.T, 8)
  return dj.timesteps.real(np.linspace(0.95 * schedule.T, 0, 8, endpoint=False))


CASES = {**PATHS, "steps": (dj.schedules.cosine(40), 0.3, 0.5)}


@pytest.mark.parametrize("weight", [None, dj.weights.truncated_snr()])
@pytest.mark.parametrize("path", CASES)
def test_the_exact_map_alone_costs_nothing(path, weight):
  with jax.enable_x64(True):
    schedule, mean, std = CASES[path]
    if path == "steps":
      schedule = dj.schedules.cosine(40)  # in float64
    pairs = walk(schedule)
    exact = functools.partial(map_by, schedule, mean, std)
    teacher = dj.predictor(exact(pairs), schedule, target=targets.v)
    x0 = {"image": jax.random.normal(jax.random.key(1), (64, 5))}
    state, losses = dj.state.TrainState(jnp.int32(0), (), {}, ()), []
    for wrong in (0.0, -0.01, 0.01):
      student = exact(distillation.halved(pairs), wrong=wrong)
      made = distillation.progressive(
        lambda params, x_t, t, cond, key, f=student: f(x_t, t), schedule,
        lambda state: teacher, pairs, target=targets.v,
        loss_at=functools.partial(dj.losses.weighted_mse, weight=weight),
      )  # fmt: skip
      drawn = made.draw(jax.random.key(0), state, x0)
      assert set(np.asarray(drawn.examples.t)) == set(np.asarray(pairs[::2, 0]))
      losses.append(made.loss((), drawn.examples, jax.random.key(0)).mean())
    assert losses[0] < 1e-18
    assert min(losses[1:]) > 1e-7


@pytest.mark.parametrize(
  "schedule",
  [
    dj.continuous.cosine(), dj.continuous.flow(),
    dj.schedules.cosine(100, zero_terminal=True),
  ],
)  # fmt: skip
def test_the_loss_of_the_paper_is_finite_where_sampling_starts(schedule):
  made = distillation.progressive(
    lambda params, x_t, t, cond, key: params * x_t, schedule,
    lambda state: dj.predictor(
      lambda x, t: 0.3 * x, schedule, target=targets.v
    ),
    dj.spacing.even(schedule, 2), target=targets.v,
    loss_at=functools.partial(
      dj.losses.weighted_mse, weight=dj.weights.truncated_snr()
    ),
  )  # fmt: skip
  state = dj.state.TrainState(jnp.int32(0), (), {}, ())
  batch = {"image": jnp.ones((2, 3))}

  @jax.jit
  def both():
    drawn = made.draw(jax.random.key(0), state, batch)
    return drawn.examples.t, jax.value_and_grad(
      lambda a: made.loss(a, drawn.examples, jax.random.key(0)).mean()
    )(0.1)

  t, (loss, slope) = both()
  assert (t == schedule.T).all()
  assert 0 < loss < 10
  assert 0 < abs(slope) < 10


@pytest.mark.parametrize("path", PATHS)
def test_the_denoiser_of_a_point_is_a_fixed_point(path):
  # All of a point mass is on straight ways: any step is exact.
  schedule, mean, _ = PATHS[path]
  with jax.enable_x64(True):
    exact = Mixture((mean,), (1.0,), 0.0).predictor(schedule, targets.v)
    made = distillation.progressive(
      lambda params, x_t, t, cond, key: exact(x_t, t).output, schedule,
      lambda state: exact, walk(schedule), target=targets.v,
    )  # fmt: skip
    state = dj.state.TrainState(jnp.int32(0), (), {}, ())
    x0 = {"image": jnp.full((16, 3), mean)}
    drawn = made.draw(jax.random.key(0), state, x0)
    np.testing.assert_allclose(drawn.examples.x0, mean, rtol=1e-9)
    assert made.loss((), drawn.examples, jax.random.key(0)).max() < 1e-18


def test_a_student_learns_of_the_teacher_in_the_state():
  # Linear teacher and student, and a step of training that keeps the teacher.
  schedule, pairs = dj.continuous.flow(), dj.timesteps.real([1.0, 0.5])
  objective = distillation.progressive(
    lambda params, x_t, t, cond, key: params * x_t, schedule,
    lambda state: dj.predictor(
      lambda x_t, t: state.teacher * x_t, schedule, target=targets.flow
    ),
    pairs, target=targets.flow,
  )  # fmt: skip
  tx = dj.training.optimizer(lr=0.1, warmup_steps=0, clip=None)
  state = dj.state.create(
    jnp.float32(0.2), tx, (0.9,), teacher=jnp.float32(0.8)
  )
  step = functools.partial(
    dj.training.train_step, objective=objective, tx=tx, key=jax.random.key(0)
  )
  batch = {"image": jax.random.normal(jax.random.key(1), (64, 3))}
  for _ in range(200):
    state, metrics = jax.jit(step)(state, batch)
  assert state.teacher == jnp.float32(0.8)
  # x (1 - 0.8 / 2)^2 is where two steps end, x (1 - a) where one does.
  np.testing.assert_allclose(state.params, 1 - 0.6**2, atol=1e-3)
  assert metrics.loss < 1e-5


def test_a_walk_of_odd_length_is_refused():
  with pytest.raises(ValueError, match="a walk of 3 steps cannot be halved"):
    distillation.halved(dj.timesteps.spaced(10, 3))
