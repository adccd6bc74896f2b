"""Averages chosen after training: EDM2's numbers, and closed forms."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import diffusion_jax as dj
from diffusion_jax import averages, state
from diffusion_jax.runs import networks, restoring
from experiments.configs import common


@pytest.fixture(scope="module")
def numbers():
  return reference.load("phema")


def test_exponents_and_weights_are_the_published_ones(numbers):
  got = [averages.exponent(std) for std in numbers["std"]]
  np.testing.assert_allclose(got, numbers["exp"], rtol=1e-9)
  with jax.enable_x64(True):
    n = numbers["beta_t_next"] / 128  # images; a step is a batch
    betas = [1 - averages.weight(gamma, n) for gamma in got]
  np.testing.assert_allclose(betas, numbers["beta"], rtol=1e-9, atol=1e-12)


def test_scalar_products_of_profiles_are_the_published_ones(numbers):
  (t_a, std_a), (t_b, std_b) = (
    ([10, 20, 40], [0.05, 0.1, 0.2]), ([15, 20], [0.1, 0.05])
  )  # fmt: skip
  exponents = np.vectorize(averages.exponent)
  got = averages._product(
    np.array(t_a, float)[:, None], exponents(std_a)[:, None],
    np.array(t_b, float), exponents(std_b),
  )  # fmt: skip
  np.testing.assert_allclose(got, numbers["corr"], rtol=1e-9)


def tracked(thetas, stds, start):
  """The averages of a run, after each of its steps."""
  ema, history = {averages.name(std): start for std in stds}, []
  for step, theta in enumerate(thetas):
    ema = {
      name: state.update_average(name, average, theta, step, warmup=False)
      for name, average in ema.items()
    }
    history.append([ema[averages.name(std)] for std in stds])
  return np.array(history)


def test_tracked_averages_are_the_published_ones(numbers):
  with jax.enable_x64(True):
    got = tracked(
      jnp.asarray(numbers["ema_params"]), (0.05, 0.075, 0.1),
      jnp.asarray(numbers["ema_init"]),
    )  # fmt: skip
  np.testing.assert_allclose(got, numbers["ema_power"], rtol=1e-9)


@pytest.mark.parametrize("case", ["two_at_each_of_8", "uneven", "identity"])
def test_the_coefficients_are_the_published_ones(numbers, case):
  part = {
    key: numbers[f"solve|{case}|{key}"]
    for key in ("in_t", "in_std", "out_t", "out_std", "coef")
  }
  for k, (t, std) in enumerate(
    zip(part["out_t"], part["out_std"], strict=True)
  ):
    got = averages.coefficients(part["in_t"], part["in_std"], t, std)
    want = part["coef"][:, k] / part["coef"][:, k].sum()
    np.testing.assert_allclose(got, want, atol=1e-8 * abs(want).max())


def test_of_parameters_that_grow_the_average_is_known():
  # t (gamma + 1) / (gamma + 2), up to one step.
  n, stds = 1000, (0.05, 0.1)
  with jax.enable_x64(True):
    got = tracked(jnp.arange(n) + 0.5, stds, jnp.zeros(()))[-1]
  for average, std in zip(got, stds, strict=True):
    gamma = averages.exponent(std)
    np.testing.assert_allclose(
      average, n * (gamma + 1) / (gamma + 2), rtol=2e-5
    )


def test_what_is_reconstructed_is_what_was_tracked():
  thetas = np.random.default_rng(0).standard_normal((512, 3)).cumsum(axis=0)
  stds = (0.05, 0.1)
  with jax.enable_x64(True):
    all_stds = (*stds, 0.07, 0.2)
    history = tracked(jnp.asarray(thetas), all_stds, jnp.zeros(3))
  kept = [(step, k) for step in range(64, 513, 64) for k in range(2)]
  trees = [history[step - 1, k] for step, k in kept]
  spread = history[-1].std()
  for k, tolerance in enumerate((1e-9, 1e-9, 0.03, 0.15)):
    coefs = averages.coefficients(
      [step for step, _ in kept], [stds[k] for _, k in kept], 512, all_stds[k]
    )
    got = averages.combined(trees, coefs)
    assert abs(got - history[-1, k]).max() < tolerance * spread


def test_checkpoints_leave_small_averages_behind(tmp_path):
  # The run loses its checkpoint of step 448, goes on from 384 with other
  # parameters, and ends at 512. Half precision is all that is lost.
  thetas = np.random.default_rng(0).standard_normal((512, 3)).cumsum(axis=0)
  history = tracked(jnp.asarray(thetas, jnp.float32), (0.05, 0.1), jnp.zeros(3))
  folders = {"averages": tmp_path / "averages"}
  here = dj.parallel.replicated(dj.parallel.data_mesh())

  def state_at(step, sign=1):
    names = ("std0.05", "std0.1")
    ema = dict(zip(names, sign * history[step - 1], strict=True))
    return jax.device_put(
      state.TrainState(step, {}, {**ema, "0.9": np.zeros(3, "f4")}, {}), here
    )

  newest = state_at(512)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), newest
  )
  with dj.checkpoint.Checkpoints(tmp_path / "c", keep=2, **folders) as kept:
    for step in (64, 128, 192, 256, 320, 384, 448):
      kept.save(state_at(step, sign=1 if step < 400 else -1))
  shutil.rmtree(tmp_path / "c/448")
  with dj.checkpoint.Checkpoints(tmp_path / "c", keep=2, **folders) as kept:
    assert int(kept.restore(like).step) == 384
    for step in (448, 512):
      kept.save(state_at(step))
  with dj.checkpoint.Checkpoints(
    tmp_path / "c", read_only=True, **folders
  ) as kept:
    assert kept.steps() == [448, 512]
    small = kept.averages(newest)
  assert sorted(small) == list(range(64, 513, 64))
  trees = [np.asarray(tree) for ema in small.values() for tree in ema.values()]
  assert {tree.dtype for tree in trees} == {np.dtype(np.float16)}
  ends = np.repeat(list(small), 2)
  stds = [averages.std_in(name) for ema in small.values() for name in ema]
  got = averages.combined(trees, averages.coefficients(ends, stds, 512, 0.1))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, history[-1][1], rtol=2**-11)


def test_a_small_weight_keeps_its_digits():
  # In float32 1 - (1 - 1/n)^(g+1) as a difference is off by a percent.
  np.testing.assert_allclose(
    averages.weight(6.9372, 10**7), 7.9372e-7, rtol=1e-5
  )


def test_names():
  config = common.make(ema={"rates": (0.999, 0.9), "stds": (0.1, 0.05)})
  assert networks.averages(config) == ["0.9", "0.999", "std0.05", "std0.1"]
  assert restoring.average(config, None) == "0.999"
  assert restoring.average(config, ".9990") == "0.999"
  assert restoring.average(config, "std:0.10") == "std0.1"
  assert restoring.average(config, "std:0.07") == "std0.07"
  made = networks.state(
    config, {"w": jnp.zeros(2)}, dj.training.optimizer(lr=1)
  )
  assert sorted(made.ema) == ["0.9", "0.999", "std0.05", "std0.1"]
  for wanted, message in (
    ("std:0.5", "`ema=std:0.5`: an average of width 0.5 must be in"),
    ("0.5", "`ema` '0.5' is not one of raw, 0.9, "),
  ):
    with pytest.raises(ValueError, match=message):
      restoring.average(config, wanted)
  with pytest.raises(ValueError, match="has kept no such averages"):
    restoring.average(common.make(), "std:0.1")
  with pytest.raises(ValueError, match="width 0.3 must be in"):
    state.create({}, dj.training.optimizer(lr=1), ("std0.3",))
  with pytest.raises(ValueError, match="2 steps and 1 widths: .* one of each"):
    averages.coefficients([10, 20], [0.1], 20, 0.1)
  with pytest.raises(ValueError, match="2 averages and 1 coefficients"):
    averages.combined([{"a": np.ones(2)}, {"a": np.ones(2)}], [1.0])
  with pytest.raises(ValueError, match="must be some, and distinct"):
    averages.coefficients([1, 1], [0.1, 0.1], 1, 0.05)


@pytest.mark.parametrize("step", [0, 21])
def test_averages_of_steps_before_or_after_the_saved_are_refused(step):
  with pytest.raises(ValueError, match=r"steps=\[10, 20\] have none of step="):
    averages.coefficients([10, 20], [0.05, 0.1], step, 0.07)
  with pytest.raises(ValueError, match=r"steps=\[0, 20\] have none of step=20"):
    averages.coefficients([0, 20], [0.05, 0.1], 20, 0.07)
