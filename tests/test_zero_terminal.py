"""Schedules that end without any signal, and weights by the log-SNR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import GAUSSIAN

import diffusion_jax as dj
from diffusion_jax import (
  continuous,
  samplers,
  schedules,
  solvers,
  spacing,
  targets,
  weights,
)
from diffusion_jax.runs import checks, processes
from experiments.configs import common

MAKE = {
  "linear": lambda T, **more: schedules.linear(T, scale=False, **more),
  "scaled_linear": lambda T, **more: schedules.quadratic(
    T, beta_start=0.00085, beta_end=0.012, **more
  ),
  "cosine": schedules.cosine,
}


@pytest.mark.parametrize("T", [1000, 50])
@pytest.mark.parametrize("name", MAKE)
def test_the_betas_are_the_published_ones(name, T):
  with jax.enable_x64(True):
    schedule = MAKE[name](T, zero_terminal=True)
    at, to = schedule.at(np.arange(1, T + 1)), schedule.at(np.arange(T))
    betas = 1 - (at.alpha / to.alpha) ** 2
    want = reference.load("guidance")[f"zsnr_{name}_{T}_rescaled"]
    np.testing.assert_allclose(betas, want, atol=1e-13)
    np.testing.assert_array_equal(jax.tree.leaves(schedule.at(T))[:2], [0, 1])
    assert jnp.isneginf(schedule.log_snr[T])
    assert (np.diff(schedule.log_snr[1:]) < 0).all()
    first = MAKE[name](T).at(1)
    np.testing.assert_allclose(schedule.at(1), first, rtol=1e-9)


STEPS = {
  "ancestral": dj.ancestral_step, "ddim": dj.ddim_step,
  "heun": solvers.heun_step, "dpm": solvers.dpm(2),
  "unipc": solvers.unipc(), "deis": solvers.deis(), "flow": dj.flow.heun_step,
}  # fmt: skip
TABLE = schedules.linear(1000, scale=False, zero_terminal=True)


@pytest.mark.parametrize("name", STEPS)
def test_every_sampler_starts_from_pure_noise(name):
  pairs = spacing.named(TABLE, "trailing", 50)
  assert pairs[0, 0] == 1000
  predict = GAUSSIAN.predictor(TABLE, targets.v)
  x, _ = samplers.sample(
    STEPS[name], predict, TABLE, (4096, 1), jax.random.key(0), pairs=pairs
  )
  assert abs(x.mean() - 0.3) < 5 * 0.5 / 64 + 0.02
  assert abs(x.std() / 0.5 - 1) < 5 / np.sqrt(2 * 4096) + 0.06


@pytest.mark.parametrize("name", STEPS)
def test_the_first_move_is_that_of_every_target(name):
  # Where alpha is 0 and a target could divide by it.
  solver = samplers.as_solver(STEPS[name])
  x, eps = jax.random.normal(jax.random.key(0), (2, 8, 1))
  t, s = jnp.int32(1000), jnp.int32(980)

  @jax.jit
  def moves():
    return [
      solver.step(
        GAUSSIAN.predictor(TABLE, target), TABLE, x, t, s, eps,
        solver.init(x, t),
      )[0]
      for target in (targets.v, targets.x0, targets.flow)
    ]  # fmt: skip

  first, *others = moves()
  assert jnp.isfinite(first).all()
  for other in others:
    np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", spacing.NAMES)
def test_every_spacing_walks_on_it(name):
  pairs = spacing.named(TABLE, name, 20)
  assert len(pairs) == 20
  assert (np.diff(pairs[:, 0]) < 0).all()


@pytest.mark.parametrize(
  "weight", [None, weights.p2(), weights.min_snr(), weights.sigmoid()]
)
def test_the_loss_is_finite_at_the_end(weight):
  predict = dj.predictor(lambda x, t: 0 * x, TABLE, target=targets.v)
  x0 = jnp.full((2, 4), 0.5)
  loss = dj.losses.weighted_mse(
    predict, TABLE, x0, jnp.array([1000, 999]), jnp.ones((2, 4)), weight=weight
  )
  assert jnp.isfinite(loss).all()
  if weight is None:  # v is -x0 where alpha is 0.
    np.testing.assert_allclose(loss[0], 0.25)


@pytest.mark.parametrize("target", ["x0", "v", "flow", "edm"])
def test_the_weighted_error_is_the_true_one_where_no_signal_is_left(target):
  # There only x_0 is predicted: all errors are that of x_0 times a number.
  x0, eps = jnp.full((1, 4), 0.5), jnp.ones((1, 4))
  small = schedules.linear(50, zero_terminal=True)
  for schedule, weight, of_x0 in (
    (TABLE, weights.truncated_snr(), 1.0),
    (continuous.cosine(), weights.truncated_snr(), 1.0),
    (continuous.flow(), weights.shifted(weights.truncated_snr(), 2.0), 0.25),
    (TABLE, weights.edm(), 4.0),
    (continuous.flow(), weights.edm(1.0), 1.0),
    (small, weights.p2(k=0.0), 1.0),
    (small, weights.bound("fixed_large"), small.at(49).alpha ** 2 / 2),
    (
      small,
      weights.bound("fixed_small"),
      small.at(49).alpha ** 2 / small.at(49).sigma ** 2 / 2,
    ),
  ):
    T = jnp.array([schedule.T])
    goal = targets.TARGETS[target]

    def loss(x0_hat, schedule=schedule, weight=weight, T=T, goal=goal):
      F = goal.of(schedule, x0_hat * x0, T, eps)
      predict = dj.predictor(lambda x, t: F, schedule, target=goal)
      return dj.losses.weighted_mse(
        predict, schedule, x0, T, eps, weight=weight
      )[0]

    value, slope = jax.value_and_grad(loss)(3.0)
    np.testing.assert_allclose(value, of_x0, rtol=1e-4)
    np.testing.assert_allclose(slope, of_x0, rtol=1e-4)
    predict = dj.predictor(lambda x, t: 0 * x, schedule)
    of_eps = dj.losses.weighted_mse(
      predict, schedule, x0, T, eps, weight=weight
    )
    assert jnp.isposinf(of_eps)


def test_a_noise_that_says_nothing_is_no_target():
  schedule = {"name": "linear", "zero_terminal": True}
  for changes in ({}, {"target": "v", "loss": {"name": "vlb"}}):
    config = common.make(schedule=schedule, **changes)
    with pytest.raises(ValueError, match="zero_terminal leaves no signal"):
      checks.check(config, processes.schedule(config))
  for weight in processes.WEIGHTS:
    config = common.make(schedule=schedule, target="v", loss={"weight": weight})
    checks.check(config, processes.schedule(config))
  with pytest.raises(ValueError, match="at least 2 betas"):
    schedules.from_betas([0.1], zero_terminal=True)


def test_weights_by_the_log_snr():
  schedule = schedules.cosine(100)
  t = jnp.arange(1, 101)
  log_snr = np.asarray(schedule.log_snr[1:], float)
  got = weights.sigmoid(2.0)(schedule, t)
  np.testing.assert_allclose(got, 1 / (1 + np.exp(log_snr - 2)), rtol=1e-5)
  # e^b sigmoid(L - b) of the error of x0 (|eps error|^2 is SNR times that).
  of_x0 = np.exp(2) / (1 + np.exp(2 - log_snr))
  np.testing.assert_allclose(got * np.exp(log_snr), of_x0, rtol=1e-5)


@pytest.mark.parametrize(
  "make",
  [
    weights.p2,
    weights.min_snr,
    weights.sigmoid,
    weights.edm,
    weights.truncated_snr,
  ],
)
def test_a_shifted_weight_is_that_of_the_cleaner_schedule(make):
  # The schedule shifted by k, weighted by the shifted weight, is as before.
  t, weight = jnp.arange(1, 101), make()
  noisier = schedules.cosine(100, shift=3.0)
  np.testing.assert_allclose(
    weights.shifted(weight, 3.0)(noisier, t),
    weight(schedules.cosine(100), t),
    rtol=1e-4,
  )
  with pytest.raises(ValueError, match="k=0 must be above 0"):
    weights.shifted(weight, 0)
