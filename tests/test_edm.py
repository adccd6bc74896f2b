"""EDM: the published code's numbers, and Gaussian data in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import Mixture

import diffusion_jax as dj
from diffusion_jax import continuous, edm, losses, spacing, targets, timesteps

SCHEDULE = continuous.edm()
PATHS = {
  "ve": SCHEDULE, "vp": continuous.linear(), "flow": continuous.flow(),
}  # fmt: skip
CHURN = {
  "det18": {},
  "det5": {},
  "churn18": {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003},
  "churn5": {"S_churn": 1.5},
}


@pytest.fixture(scope="module")
def numbers():
  return reference.load("edm")


def stand_in(numbers, sign=1):
  """The published code's network."""
  a, b, c, _ = numbers["coefs"]

  def F(x, s):
    s = s.reshape(-1, 1, 1, 1)
    return sign * (a * x + b * jnp.sin(2 * x + s) + c * s)

  return F


def door(numbers):
  """The published code's stand-in for F, behind the door."""
  return dj.predictor(
    stand_in(numbers), SCHEDULE, target=targets.edm(), scale=edm.c_in(),
    clock=edm.c_noise,
  )  # fmt: skip


def test_the_door_is_the_published_preconditioning(numbers):
  with jax.enable_x64(True):
    x, sigma = numbers["precond_x"], numbers["precond_sigma"]
    D = door(numbers)(x, sigma).x0_hat
    scaled = edm.c_in()(SCHEDULE, sigma).reshape(-1, 1, 1, 1) * x
    clock = edm.c_noise(SCHEDULE, sigma)
  np.testing.assert_allclose(D, numbers["precond_edm_D"], atol=1e-11)
  np.testing.assert_allclose(scaled, numbers["precond_edm_net_in"], rtol=1e-12)
  np.testing.assert_allclose(clock, numbers["precond_edm_c_noise"], atol=1e-12)


# The networks of Song et al., as EDM reads them; the error of D over sigma is
# that of the noise.
SONG = {
  "vp": (lambda schedule, t: 999 * t, 1),
  "ve": (lambda schedule, t: jnp.log(schedule.at(t).sigma / 2), -1),
}


@pytest.mark.parametrize("name", SONG)
def test_song_networks_are_read_as_published(numbers, name):
  schedule, (clock, sign) = PATHS[name], SONG[name]
  time = lambda sigma: schedule.time(-2 * jnp.log(sigma))
  with jax.enable_x64(True):
    predict = dj.predictor(stand_in(numbers, sign), schedule, clock=clock)
    t = time(numbers["precond_sigma"])
    clocked = numbers[f"precond_{name}_c_noise"]
    np.testing.assert_allclose(clock(schedule, t), clocked, rtol=1e-9)
    alpha = jnp.reshape(schedule.at(t).alpha, (-1, 1, 1, 1))
    D = predict(alpha * numbers["precond_x"], t).x0_hat
    want = numbers[f"precond_{name}_D"]
    np.testing.assert_allclose(D, want, atol=1e-9 * abs(want).max())
    loss = losses.weighted_mse(
      predict, schedule, numbers["x0"], time(numbers[f"loss_{name}_sigma"]),
      jnp.asarray(numbers[f"loss_{name}_noise"]),
    )  # fmt: skip
    want = numbers[f"loss_{name}"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, want, rtol=1e-8)


def test_noise_levels_of_the_cosine_schedule_are_the_published_ones(numbers):
  with jax.enable_x64(True):
    at = dj.schedules.cosine(1000).at(np.arange(1001))
  u = numbers["iddpm_u"][::-1]
  np.testing.assert_allclose(at.sigma / at.alpha, u, rtol=1e-9)


@pytest.mark.parametrize("levels", ["edm", "iddpm"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_plain_solvers_are_those_of_the_ablation(numbers, levels, solver):
  # Of dx / dsigma, at noise levels of either paper.
  name = f"ablation_{levels}_linear_none_{solver}_1"
  every = 1 if solver == "euler" else 2
  sigmas = np.append(numbers[f"{name}_sigma"][::every], 0)
  step = dj.ddim_step if solver == "euler" else edm.heun(6)
  with jax.enable_x64(True):
    x = numbers["noise"] * sigmas[0]
    for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
      x, _ = step(door(numbers), SCHEDULE, x, t, s, np.zeros_like(x))
  want = numbers[f"{name}_out"]
  np.testing.assert_allclose(x, want, atol=1e-8 * abs(want).max())


@pytest.mark.parametrize("weight", [None, dj.weights.edm()])
def test_the_loss_is_the_published_one(numbers, weight):
  with jax.enable_x64(True):
    loss = losses.weighted_mse(
      door(numbers), SCHEDULE, numbers["x0"], numbers["loss_edm_sigma"],
      jnp.asarray(numbers["loss_edm_noise"]), weight=weight,
    )  # fmt: skip
    want = numbers["loss_edm"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, want, rtol=1e-11)
    normal = jax.scipy.stats.norm.cdf(numbers["loss_edm_draw"])
    sigma = timesteps.log_normal()(normal, SCHEDULE.T)
    np.testing.assert_allclose(sigma, numbers["loss_edm_sigma"], rtol=1e-8)


@pytest.mark.parametrize("name", CHURN)
def test_the_sampler_is_the_published_one(numbers, name):
  num = int(name.removeprefix("det").removeprefix("churn"))
  with jax.enable_x64(True):
    pairs = spacing.named(SCHEDULE, "karras", num)
    if num == 18:
      steps = numbers["sampler_det18_steps"]
      np.testing.assert_allclose(pairs[:, 0], steps[:-1], rtol=1e-12)
    step, predict = edm.heun(num, **CHURN[name]), door(numbers)
    x = numbers["noise"] * SCHEDULE.noise_scale(pairs[0, 0])
    eps = np.zeros((num, *x.shape))
    if "churn" in name:
      eps = numbers[f"sampler_{name}_eps"]
    for (t, s), noise in zip(pairs, eps, strict=True):
      x, _ = step(predict, SCHEDULE, x, t, s, noise)
  want = numbers[f"sampler_{name}_out"]
  np.testing.assert_allclose(x, want, atol=1e-9 * abs(want).max())


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_to_be_learnt_of_gaussian_data(path):
  # F's ideal is 0 and the loss 1 for each dimension, at every noise level.
  schedule, data = PATHS[path], Mixture((0.0,), (1.0,), 0.5)
  n = 4096
  with jax.enable_x64(True):
    x0 = data.sample(jax.random.key(0), (n, 2, 2, 1))
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    ideal = data.predictor(schedule, targets.edm())
    for part in (0.001, 0.1, 0.5, 0.9):
      t = jnp.full(n, part * schedule.T)
      F = ideal(dj.q_sample(schedule, x0, t, eps), t).output
      assert jnp.abs(F).max() < 1e-12
      loss = losses.weighted_mse(ideal, schedule, x0, t, eps)
      assert abs(loss.mean() - 1) < 5 * loss.std() / math.sqrt(n)


@pytest.mark.parametrize("path", PATHS)
def test_inputs_and_targets_have_unit_variance(path):
  schedule = PATHS[path]
  for part in (0.001, 0.5, 1.0):
    t = part * schedule.T
    at, target = schedule.at(t), targets.edm(0.3)
    variance = edm.c_in(0.3)(schedule, t) ** 2 * (
      at.alpha**2 * 0.3**2 + at.sigma**2
    )
    F = (target.p(schedule, t) * 0.3) ** 2 + target.q(schedule, t) ** 2
    np.testing.assert_allclose([variance, F], 1, rtol=1e-5)


def test_18_steps_contract_a_gaussian_as_computed_by_hand():
  # The exact map is 0.0062499; Heun's method is linear here as well.
  data = Mixture((0.0,), (1.0,), 0.5)
  with jax.enable_x64(True):
    x, _ = dj.sample(
      edm.heun(18), data.predictor(SCHEDULE), SCHEDULE, (1, 1),
      jax.random.key(0), pairs=spacing.named(SCHEDULE, "karras", 18),
      x_T=jnp.full((1, 1), 80.0),
    )  # fmt: skip
  np.testing.assert_allclose(x, 80 * 0.0065953, rtol=1e-5)


@pytest.mark.parametrize("path", ["ve", "vp"])
def test_churn_keeps_the_marginal(path):
  schedule, data = PATHS[path], Mixture((0.3,), (1.0,), 0.5)
  n = 8192
  pairs = spacing.named(schedule, "karras", 80)
  x, _ = dj.sample(
    edm.heun(80, S_churn=8.0), data.predictor(schedule), schedule, (n, 1),
    jax.random.key(0), pairs=pairs,
  )  # fmt: skip
  # 1 % is what steps of this size leave, see the test above.
  assert abs(x.mean() - 0.3) < 5 * 0.5 / math.sqrt(n) + 0.005
  assert abs(x.std() / 0.5 - 1) < 5 / math.sqrt(2 * n) + 0.01


@pytest.mark.parametrize("name", spacing.CONTINUOUS)
@pytest.mark.parametrize("path", PATHS)
def test_a_walk_in_continuous_time_starts_at_the_noise_and_ends_at_the_data(
  name, path
):
  schedule = PATHS[path]
  for num in (1, 2, 18):
    pairs = spacing.named(schedule, name, num)
    assert len(pairs) == num
    assert pairs[-1, 1] == 0
    assert (pairs[:, 0] <= schedule.T).all()
    assert pairs[0, 0] > 0.99 * schedule.T
    np.testing.assert_array_equal(pairs[1:, 0], pairs[:-1, 1])
    assert (np.diff(pairs[:, 0]) < 0).all()


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ValueError, match="sigma_data=0 must be above 0"):
    targets.edm(0)
  with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
    edm.heun(0)
  with pytest.raises(ValueError, match="S_min=2, S_max=1 must be 0 <= S_min"):
    edm.heun(18, S_min=2, S_max=1)
  with pytest.raises(ValueError, match="'leading' is not one of even, "):
    spacing.named(SCHEDULE, "leading", 18)
  with pytest.raises(ValueError, match="'karras' needs a number of steps"):
    spacing.named(SCHEDULE, "karras")
  table, zeros = dj.schedules.cosine(100), jnp.zeros((1, 2))
  predict = Mixture((0.0,), (1.0,), 0.5).predictor(table)
  with pytest.raises(ValueError, match="no noise level between two steps"):
    edm.heun(5, S_churn=1.0)(predict, table, zeros, 100, 50, zeros)
