"""Consistency: the published numbers, Gaussian data, a mixture in the plane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import PATHS, flow_map

import diffusion_jax as dj
from diffusion_jax import consistency, continuous, edm, targets
from experiments.tools import flow_maps

EDM, OURS = continuous.edm(), targets.edm()
# (q, k, stage) of ect_r_i: n is 1 + 8 sigmoid(-u), or 1.
MAPS = [
  (q, k, stage) for k in (8.0, 0.0) for q in (2, 4) for stage in (0, 1, 3, 7)
]
# c, stage, mean and std of log sigma, q, k of ect_loss_i.
LOSSES = [
  (0.0, 0, -1.1, 2.0, 2, 8.0),
  (0.0, 3, -1.1, 2.0, 2, 8.0),
  (0.06, 7, -0.8, 1.6, 2, 8.0),
  (0.00054, 2, -1.1, 2.0, 4, 0.0),
]


@pytest.fixture(scope="module")
def numbers():
  return reference.load("consistency")


def stand_in(numbers):
  """The published codes' network, of x and one scalar per example."""
  a, b, c, _ = numbers["coefs"]

  def f(x, s):
    s = s.reshape(-1, 1, 1, 1)
    return a * x + b * jnp.sin(2 * x + s) + c * s

  return f


def boundary(least):
  """OpenAI's target: x_0 itself at t = least, where ours has t = 0."""

  def c(schedule, t):
    h = jnp.hypot(t - least, 0.5)
    skip, out = 0.25 / h**2, (t - least) * 0.5 / jnp.hypot(t, 0.5)
    return -skip / out, 1 / out

  nothing = lambda schedule, t: 0.0
  return targets.Target(p=nothing, q=nothing, c=c)


def door(F, *, target=OURS):
  return dj.predictor(
    F, EDM, target=target, scale=edm.c_in(), clock=edm.c_noise
  )


def state(step=0):
  return dj.state.TrainState(jnp.int32(step), (), {}, ())


def near(got, want):
  np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


# --------------------------------------------------------- published numbers


@pytest.mark.parametrize("number", range(16))
def test_the_map_is_the_published_one(numbers, number):
  q, k, stage = MAPS[number]
  with jax.enable_x64(True):
    r = consistency.ect(numbers["ect_t"], stage, q=q, k=k)
    near(r, numbers[f"ect_r_{number}"])


@pytest.mark.parametrize("number", range(4))
def test_the_objective_is_the_published_one(numbers, number):
  c, stage, mean, std, q, k = LOSSES[number]
  eps = numbers[f"ect_loss_{number}_noise"]
  t = np.exp(mean + std * numbers[f"ect_loss_{number}_draw"])
  with jax.enable_x64(True):
    f = stand_in(numbers)
    objective = consistency.consistency(
      lambda params, x_t, t, cond, key: f(x_t, t), EDM,
      nearer=consistency.stages(5, q=q, k=k),
      distance=functools.partial(consistency.pseudo_huber, c=c),
      draw=lambda key, B, T: jnp.asarray(t),
    )  # fmt: skip
    x0 = numbers["x0"]
    drawn = objective.draw(
      jax.random.key(0), state(5 * stage + 3), {"image": x0}
    )
    r = drawn.examples.r
    near(r, numbers[f"ect_loss_{number}_r"])
    examples = drawn.examples._replace(  # of the published noise
      x_t=dj.q_sample(EDM, x0, t, eps), x_r=dj.q_sample(EDM, x0, r, eps)
    )
    loss = objective.loss((), examples, jax.random.key(0))
    near(loss, numbers[f"ect_loss_{number}"])


@pytest.mark.parametrize(
  ("kind", "num"), [("training", 18), ("distillation", 40)]
)
def test_neighbours_on_a_grid_are_the_published_ones(numbers, kind, num):
  # Student and target network are two networks in this code.
  x0, eps, losses = numbers["x0"], numbers["noise"], []
  with jax.enable_x64(True):
    f, d = stand_in(numbers), numbers["coefs"][3]
    bounded = functools.partial(door, target=boundary(0.002))
    student, target = bounded(f), bounded(lambda x, s: 0.9 * f(x, s))
    teacher = door(
      lambda x, s: d * x - 0.1 * jnp.cos(x + s.reshape(-1, 1, 1, 1))
    )
    grid = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), num) ** 7
    for k, i in enumerate(numbers[f"cm_{kind}_uniform_l2_index"]):
      t, r, one = grid[i], grid[i + 1], slice(k, k + 1)
      x_t = dj.q_sample(EDM, x0[one], t, eps[one])
      if kind == "training":
        x_r = dj.q_sample(EDM, x0[one], r, eps[one])
      else:
        x_r, _ = edm.heun(1)(teacher, EDM, x_t, t, r, eps[one])
      far = target(x_r, r).x0_hat
      losses.append(((student(x_t, t).x0_hat - far) ** 2).mean())
    near(np.array(losses), numbers[f"cm_{kind}_uniform_l2"])


@pytest.mark.parametrize("case", ["cm_multistep", "cmsi_4"])
def test_every_call_of_the_sampler_is_the_published_one(numbers, case):
  least = 0.002  # where these samplers end, and what they leave of the noise
  if case == "cmsi_4":
    sigmas, xs = numbers["cmsi_4_sigmas"], numbers["cmsi_4_x"]
  else:
    grid = numbers["cm_sigmas_karras"]
    sigmas = grid[numbers["cm_multistep_ts"]]
    xs = [80 * numbers["noise"], numbers["cm_multistep_out"]]
  with jax.enable_x64(True):
    predict = door(stand_in(numbers), target=boundary(least))
    x = xs[0]
    for i, (t, s) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
      left = np.sqrt(max(s**2 - least**2, 0)) / s
      eps = numbers[f"{case}_eps"][i] * left
      x, _ = consistency.renoise_step(predict, EDM, x, t, s, eps)
      if case == "cmsi_4":
        near(x, xs[i + 1])
    near(x, xs[-1])


def test_the_circle_of_scm_is_the_published_one(numbers):
  # diffusers' TrigFlow: angles, and noise of the data's deviation 0.5.
  with jax.enable_x64(True):
    angles, x = numbers["scm_1_timesteps"], numbers["scm_1_x"]
    known = dj.predictor(
      lambda x_t, t: numbers["scm_1_x0"][0], continuous.cosine(),
      target=targets.x0,
    )  # fmt: skip
    x_s, _ = consistency.renoise_step(
      known, continuous.cosine(), x[0], 1.0, angles[1] / (np.pi / 2),
      0.5 * numbers["scm_1_eps"][0],
    )  # fmt: skip
    near(x_s, x[1])


# ------------------------------------------------------------- closed forms


def exact(path, *, wrong=0.0):
  """The objective of the exact map, its gain off by a part."""
  schedule, mean, std = PATHS[path]
  map_of = functools.partial(flow_map, schedule, mean, std)

  def apply(params, x_t, t, cond, key):
    x0 = map_of(x_t, t, 0 * t) * (1 + wrong * jnp.tanh(t)[:, None])
    eps = dj.prediction.eps_from_x0(schedule, x_t, t, x0)
    return targets.v.of(schedule, x0, t, eps)

  return consistency.consistency(
    apply, schedule, target=targets.v, scale=None, clock=None,
    nearer=consistency.stages(10),
    draw=dj.timesteps.drawn_by(lambda u, T: 0.9 * T * u),
    teacher=lambda state: None,
    step=lambda predict, schedule, x, t, s, eps: (map_of(x, t, s), None),
  )  # fmt: skip


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("path", PATHS)
def test_the_exact_map_alone_costs_nothing(path, stage):
  with jax.enable_x64(True):
    x0 = {"image": jax.random.normal(jax.random.key(1), (64, 5))}
    losses = []
    for wrong in (0.0, -0.01, 0.01):
      objective = exact(path, wrong=wrong)
      drawn = objective.draw(jax.random.key(0), state(10 * stage), x0)
      assert ((drawn.examples.r == 0).any()) == (stage == 0)
      losses.append(objective.loss((), drawn.examples, jax.random.key(0)))
    assert losses[0].max() < 1e-9
    assert min(losses[1].mean(), losses[2].mean()) > 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_several_calls_of_the_exact_map_keep_the_data(path):
  schedule, mean, std = PATHS[path]
  n, T = 40_000, 0.999 * schedule.T

  def predict(x_t, t, cond=None):
    x0 = flow_map(schedule, mean, std, x_t, t, 0.0)
    return dj.prediction.read(schedule, x_t, t, x0)

  at = schedule.at(T)
  start = at.alpha * mean + jnp.hypot(
    at.alpha * std, at.sigma
  ) * jax.random.normal(jax.random.key(1), (n, 1))
  for visited in ([T], [T, 0.4], [T, 0.6, 0.3, 0.1]):
    x, _ = dj.sample(
      consistency.renoise_step, predict, schedule, (n, 1), jax.random.key(0),
      pairs=dj.timesteps.real(visited), x_T=start,
    )  # fmt: skip
    assert abs(x.mean() - mean) < 5 * std / np.sqrt(n)
    assert abs(x.std() / std - 1) < 5 / np.sqrt(2 * n)


def test_the_nearer_point_has_the_same_dropout_and_no_gradient():
  seen = []

  def apply(params, x_t, t, cond, key):
    seen.append(jax.random.key_data(key))
    return params * x_t

  objective = consistency.consistency(
    apply, continuous.flow(), nearer=consistency.stages(1), target=targets.flow,
    scale=None, clock=None, draw=lambda key, B, T: jnp.full(B, 0.8),
  )  # fmt: skip
  x0 = jax.random.normal(jax.random.key(1), (4, 3))
  drawn = objective.draw(jax.random.key(0), state(5), {"image": x0})
  assert (drawn.examples.r > 0).all()
  x_t, t, x_r, r, _ = drawn.examples
  loss = lambda a: objective.loss(a, drawn.examples, jax.random.key(2)).sum()
  slope = jax.grad(loss)(0.3)
  np.testing.assert_array_equal(*seen[:2])
  # f = (1 - a t) x_t: only the farther one is derived, times 1 / (u_t - u_r).
  d = (1 - 0.3 * 0.8) * x_t - (1 - 0.3 * r[:, None]) * x_r
  want = (d * -0.8 * x_t).sum(1) / jnp.linalg.norm(d, axis=1)
  want /= 0.8 / 0.2 - r / (1 - r)
  np.testing.assert_allclose(slope, want.sum(), rtol=1e-4)


def test_no_difference_has_no_gradient():
  grad = jax.grad(lambda d: consistency.pseudo_huber(d).sum())
  np.testing.assert_array_equal(grad(jnp.zeros((2, 3))), 0)


def test_every_stage_comes_nearer_until_the_last():
  u = jnp.array([0.1, 1.0, 10.0])
  nearer = consistency.stages(100)
  gaps = [u - nearer(u, step) for step in (0, 99, 100, 700, 900)]
  np.testing.assert_array_equal(gaps[0], gaps[1])
  assert (gaps[2] <= gaps[1]).all()
  assert (gaps[2] < gaps[1]).any()
  np.testing.assert_array_equal(gaps[3], gaps[4])
  assert (gaps[3] > 0).all()


@pytest.mark.parametrize("name", flow_maps.METHODS)
def test_a_small_network_learns_the_map_of_a_mixture(name):
  x_T = jax.random.normal(jax.random.key(9), (500, 2))
  true = flow_maps.exact(x_T)
  errors = [
    jnp.sqrt(((flow_maps.learn(name, steps)(x_T) - true) ** 2).mean())
    for steps in (0, 600)
  ]
  assert errors[1] < 0.5 * errors[0]


# ----------------------------------------------------------------- bad input


def test_whole_steps_have_no_neighbours():
  with pytest.raises(
    ValueError, match="consistency needs continuous time, and"
  ):
    consistency.consistency(
      None, dj.schedules.cosine(10), nearer=consistency.stages(1)
    )


def test_a_stage_has_an_update():
  with pytest.raises(ValueError, match="every=0 must be at least 1"):
    consistency.stages(0)
