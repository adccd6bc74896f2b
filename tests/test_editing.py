"""Editing of correlated Gaussians, where every conditional is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN

from diffusion_jax import (
  continuous,
  editing,
  prediction,
  samplers,
  schedules,
  solvers,
  timesteps,
)

RHO, STD = 0.9, 0.5
# Sum and difference of two such neighbours, over sqrt(2), are independent.
MODES = STD**2 * np.array([[1 + RHO, 1 - RHO]])
TURN = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
SCHEDULE = schedules.cosine(200)
STEP = samplers.ancestral_step


def denoise(x_t, t):
  """Two neighbouring pixels with correlation RHO: the exact noise."""
  alpha, sigma = SCHEDULE.alpha[t][:, None], SCHEDULE.sigma[t][:, None]
  turned = x_t.reshape(-1, 2) @ TURN
  x0 = alpha * MODES * turned / (alpha**2 * MODES + sigma**2)
  return ((turned - alpha * x0) / sigma @ TURN).reshape(x_t.shape)


predict = prediction.predictor(denoise, SCHEDULE)


def inpainted(**options):
  n = 1024
  known = jnp.full((n, 1, 2, 1), 0.6)
  mask = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
  run = jax.jit(
    lambda key: editing.inpaint(
      STEP, predict, SCHEDULE, known, mask, key, **options
    )
  )
  return known, run(jax.random.key(0))


def test_repainting_draws_the_conditional_distribution():
  # b given a = 0.6: mean RHO a, variance STD^2 (1 - RHO^2).
  known, x = inpainted(pairs=timesteps.spaced(200, 100), jump=10, repeats=20)
  np.testing.assert_array_equal(x[:, :, 0], known[:, :, 0])
  b, n = np.asarray(x[:, 0, 1, 0]), len(x)
  std = STD * np.sqrt(1 - RHO**2)
  # Repeats let the fill settle; what is left is a few percent of the std.
  assert abs(b.mean() - 0.54) < 5 * std / np.sqrt(n) + 0.1 * std
  assert abs(b.std() / std - 1) < 5 / np.sqrt(2 * n) + 0.1


def test_repeats_are_what_brings_it_there():
  truth = RHO * 0.6
  error = [
    abs(float(inpainted(
      pairs=timesteps.spaced(200, 50), jump=5, repeats=repeats,
    )[1][:, 0, 1].mean()) - truth)
    for repeats in (1, 10)
  ]  # fmt: skip
  assert error[1] < 0.5 * error[0]


def test_varying_keeps_what_the_start_keeps():
  x0 = GAUSSIAN.sample(jax.random.key(0), (256, 4, 4, 1))
  exact = GAUSSIAN.predictor(SCHEDULE)

  def correlation(start):
    key = jax.random.key(1)
    x = editing.vary(STEP, exact, SCHEDULE, x0, key, start=start)
    return np.corrcoef(x0.ravel(), x.ravel())[0, 1]

  # corr(x0, x) = alpha^2 var / (alpha^2 var + sigma^2), there and back.
  for start in (20, 80, 140):
    signal = float(SCHEDULE.alpha[start]) ** 2 * GAUSSIAN.var
    want = signal / (signal + float(SCHEDULE.sigma[start]) ** 2)
    assert abs(correlation(start) - want) < 5 / np.sqrt(x0.size) + 0.01


def test_slerp_keeps_noise_noise():
  a, b = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  path = editing.slerp(a, b, jnp.linspace(0, 1, 5))
  chex.assert_shape(path, (5, 32, 32, 3))
  np.testing.assert_allclose(path[0], a, atol=1e-5)
  np.testing.assert_allclose(path[-1], b, atol=1e-5)
  for x in path:
    assert abs(float(x.std()) - 1) < 5 / np.sqrt(2 * x.size)
  straight = (a + b) / 2
  assert float(straight.std()) < 0.8


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_slerp_does_not_depend_on_the_scale(scale):
  a = jax.random.normal(jax.random.key(0), (8,))
  want = editing.slerp(a, a[::-1], jnp.array([0.5]))
  got = editing.slerp(scale * a, scale * a[::-1], jnp.array([0.5]))
  np.testing.assert_allclose(got / scale, want, rtol=1e-5)


def test_slerp_between_a_noise_and_itself_stays_there():
  a = jax.random.normal(jax.random.key(0), (8, 8, 3))
  weights = jnp.linspace(0, 1, 5)
  for b in (a, 1.0001 * a):
    path = editing.slerp(a, b, weights)
    np.testing.assert_allclose(path, jnp.stack([a] * 5), rtol=2e-4)
  np.testing.assert_array_equal(editing.slerp(0 * a, 0 * a, weights), 0)


def test_impossible_edits_are_refused():
  x = jnp.zeros((1, 2, 2, 1))
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="jump=7 must divide the 200 moves"):
    editing.inpaint(STEP, predict, SCHEDULE, x, x, key, jump=7)
  gap = np.array([[200, 50], [40, 0]])
  with pytest.raises(ValueError, match="must begin where the one before"):
    editing.inpaint(STEP, predict, SCHEDULE, x, x, key, pairs=gap, jump=1)
  with pytest.raises(ValueError, match="must begin where the one before"):
    solvers.encode(predict, SCHEDULE, x, gap)
  with pytest.raises(ValueError, match="repeats=0"):
    editing.inpaint(STEP, predict, SCHEDULE, x, x, key, repeats=0)
  with pytest.raises(ValueError, match="start=0 is below every step"):
    editing.vary(STEP, predict, SCHEDULE, x, key, start=0)
  with pytest.raises(ValueError, match="start=201 must be a step in 1..T=200"):
    editing.vary(STEP, predict, SCHEDULE, x, key, start=201)
  with pytest.raises(ValueError, match="a solver's memory cannot"):
    editing.inpaint(solvers.dpm(), predict, SCHEDULE, x, x, key)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4, 1), (1, 2, 4, 4, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
  with pytest.raises(ValueError, match=r"the mask is \[.*, the pictures are"):
    editing._check_mask(shape, (2, 4, 4, 1))
  for right in ((), (4, 4, 1), (2, 1, 1, 1)):
    editing._check_mask(right, (2, 4, 4, 1))


def test_inpainting_starts_at_the_noise_of_its_schedule():
  stay = lambda predict, schedule, x_t, t, s, eps: (x_t, x_t)
  known = jnp.zeros((500, 2, 2, 1))
  x = editing.inpaint(
    stay, predict, continuous.edm(), known, 0 * known[0], jax.random.key(0),
    pairs=timesteps.real([80.0]), jump=1, repeats=1,
  )  # fmt: skip
  assert abs(x.std() / 80 - 1) < 5 / np.sqrt(2 * x.size)
