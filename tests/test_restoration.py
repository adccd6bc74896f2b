"""Restoration of Gaussians, whose posteriors are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from oracles import GAUSSIAN, Mixture

import diffusion_jax as dj
from diffusion_jax import (
  prediction,
  restoration,
  samplers,
  schedules,
  solvers,
  targets,
  timesteps,
)

SCHEDULE = schedules.cosine(200)
SHAPE = (4, 6, 2)
MASK = np.arange(48).reshape(SHAPE) % 3 > 0
OBSERVATIONS = {
  "inpainting": restoration.inpainting(MASK),
  "blurring": restoration.blurring(0.7),
  "downsampling": restoration.downsampling((2, 3)),
  "measuring": restoration.measuring(jax.random.key(9), SHAPE, 20),
}
# Asked for x_0: J of one that is asked for eps loses digits as alpha^2 falls.
EXACT = GAUSSIAN.predictor(SCHEDULE, targets.x0)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def matrix(observe, shape=SHAPE):
  """A, column by column."""
  identity = jnp.eye(np.prod(shape)).reshape(-1, *shape)
  return np.asarray(observe(identity), float).reshape(len(identity), -1).T


def posterior_mean(mean, cov, A, std, x_t, t, y):
  """E[x_0 | x_t, y], from the joint Gaussian of all three, for each row."""
  alpha, sigma = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
  n, m = len(cov), len(A)
  B = np.concatenate([alpha * np.eye(n), A])
  noise = np.diag([sigma**2] * n + [std**2] * m)
  rows = x_t.reshape(-1, n)
  seen = np.concatenate([rows, y.reshape(len(rows), m)], axis=1)
  gain = np.linalg.solve(B @ cov @ B.T + noise, B @ cov).T
  return mean + (seen - B @ np.full(n, mean)) @ gain.T


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_the_transpose_passes_the_dot_product_test(name):
  observe, x = OBSERVATIONS[name], normal(0, 3, *SHAPE)
  y = normal(1, *observe(x).shape)
  back = restoration.transpose(observe, y, x)
  np.testing.assert_allclose(
    (observe(x) * y).sum(), (x * back).sum(), rtol=1e-4
  )


def test_a_blur_keeps_a_constant_and_spreads_a_point():
  flat = jnp.full((1, 9, 9, 1), 0.3)
  blur = restoration.blurring(1.0)
  np.testing.assert_allclose(blur(flat), flat, rtol=1e-6)
  point = jnp.zeros((1, 21, 21, 1)).at[0, 10, 10, 0].set(1.0)
  spread = blur(point)[0, :, 10, 0]
  np.testing.assert_allclose(spread[10] / spread[11], np.exp(0.5), rtol=1e-5)
  np.testing.assert_allclose(blur(point).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("width", [0.7, 3.0, 6.0, 20.0])
def test_a_blur_is_reflected_however_wide_it_is(width):
  x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
  want = scipy.ndimage.gaussian_filter(
    x[0, ..., 0], width, mode="mirror", radius=math.ceil(3 * width)
  )
  got = jax.jit(restoration.blurring(width))(x)[0, ..., 0]
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("t", [1, 60, 140, 199])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_pigdm_is_the_posterior_mean_of_a_gaussian_at_every_time(name, t):
  observe, std = OBSERVATIONS[name], 0.3
  x_t = normal(0, 2, *SHAPE)
  y = 0.5 * normal(1, *observe(x_t).shape)
  predict = restoration.pigdm(
    EXACT, SCHEDULE, observe, y, std=std, data_var=GAUSSIAN.var
  )
  cov = GAUSSIAN.var * np.eye(x_t[0].size)
  want = posterior_mean(
    GAUSSIAN.mean, cov, matrix(observe), std, x_t, t, np.asarray(y)
  )
  p = predict(x_t, t)
  np.testing.assert_allclose(p.x0_hat.reshape(2, -1), want, atol=2e-5)
  alpha, sigma = SCHEDULE.alpha[t], SCHEDULE.sigma[t]
  np.testing.assert_allclose(
    alpha * p.x0_hat + sigma * p.eps_hat, x_t, atol=1e-5
  )


@pytest.mark.parametrize("t", [20, 140])
def test_with_the_true_covariance_correlated_data_are_exact_too(t):
  shape = (1, 4, 1)
  apart = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
  cov = 0.25 * 0.8**apart

  # The mean given x_t alone is linear: its matrix, row by row.
  none = np.zeros((0, 4))
  gain = posterior_mean(0.0, cov, none, 0.0, np.eye(4), t, np.zeros((4, 0)))

  def apply(x_t, t):
    del t
    return (x_t.reshape(-1, 4) @ gain).reshape(x_t.shape)

  exact = prediction.predictor(apply, SCHEDULE, target=targets.x0)
  observe = restoration.measuring(jax.random.key(2), shape, 2)
  x_t, y = normal(0, 3, *shape), normal(1, 3, 2)
  for std in (0.0, 0.4):
    want = posterior_mean(
      0.0, cov, matrix(observe, shape), std, x_t, t, np.asarray(y)
    )
    predict = restoration.tmpd(exact, SCHEDULE, observe, y, std=std)
    given = predict(x_t, jnp.full(3, t)).x0_hat.reshape(3, -1)
    np.testing.assert_allclose(given, want, atol=1e-4)


@pytest.mark.parametrize("method", [restoration.pigdm, restoration.tmpd])
def test_what_is_seen_without_noise_is_returned(method):
  y, x_t = normal(0, 2, *SHAPE), normal(1, 2, *SHAPE)
  options = {"data_var": GAUSSIAN.var} if method is restoration.pigdm else {}
  predict = method(EXACT, SCHEDULE, lambda x: x, y, **options)
  for t in (1, 100, 199):
    np.testing.assert_allclose(predict(x_t, t).x0_hat, y, atol=1e-4)


def test_dps_goes_too_far_towards_what_was_seen():
  # By r^2 / std^2 instead of r^2 / (r^2 + std^2).
  y, x_t, std = normal(0, 2, *SHAPE), normal(1, 2, *SHAPE), 0.4
  predict = restoration.dps(EXACT, SCHEDULE, lambda x: x, y, std=std)
  for t in (10, 100, 190):
    alpha, sigma = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
    var = GAUSSIAN.var
    r2 = var * sigma**2 / (var * alpha**2 + sigma**2)
    x0_hat = EXACT(x_t, t).x0_hat
    want = x0_hat + r2 / std**2 * (y - x0_hat)
    np.testing.assert_allclose(predict(x_t, t).x0_hat, want, atol=1e-4)


# N(0.2, 0.8^2) seen as 1.5 through noise of 0.5: mean and std of the posterior.
PRIOR, SEEN, STD = Mixture((0.2,), (1.0,), 0.8), 1.5, 0.5
GAIN = PRIOR.var / (PRIOR.var + STD**2)
TRUTH = (0.2 + GAIN * (SEEN - 0.2), np.sqrt(GAIN) * STD)
ROWS = 4096


def restored(method, step, **options):
  """Mean, std and their standard errors over many restored numbers."""
  y = jnp.full((ROWS, 1), SEEN)
  predict = method(
    PRIOR.predictor(SCHEDULE), SCHEDULE, lambda x: x, y, std=STD, **options
  )
  run = jax.jit(
    lambda key: samplers.sample(
      step, predict, SCHEDULE, (ROWS, 1), key,
      pairs=timesteps.every(SCHEDULE.T),
    )[0]
  )  # fmt: skip
  x = np.asarray(run(jax.random.key(3)))
  return x.mean(), x.std()


@pytest.mark.parametrize(
  "step",
  [samplers.ancestral_step, samplers.ddim_step, solvers.dpm()],
  ids=["ancestral", "ddim", "dpm"],
)
def test_every_step_and_solver_draws_the_posterior(step):
  mean, std = restored(restoration.pigdm, step, data_var=PRIOR.var)
  # And 1 % of the std for 200 steps of an ODE.
  error = TRUTH[1] / np.sqrt(ROWS)
  assert abs(mean - TRUTH[0]) < 5 * error + 0.01 * TRUTH[1]
  assert abs(std - TRUTH[1]) < 5 * error / np.sqrt(2) + 0.01 * TRUTH[1]


def test_the_samples_of_dps_are_biased_as_its_formula_says():
  # All maps of the walk are affine: mean and std follow one after another.
  x, spread = 0.0, 1.0
  for t, s in timesteps.every(SCHEDULE.T):
    alpha, sigma = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
    var_t = alpha**2 * PRIOR.var + sigma**2
    J, r2 = alpha * PRIOR.var / var_t, sigma**2 * PRIOR.var / var_t
    far = (
      r2 / STD**2
    )  # of the way to what was seen; r2 / (r2 + STD**2) is right
    x0 = PRIOR.mean + J * (x - alpha * PRIOR.mean)
    x0 += far * (SEEN - x0)
    ratio = float(SCHEDULE.sigma[s]) / sigma
    from_x0 = float(SCHEDULE.alpha[s]) - ratio * alpha
    x = from_x0 * x0 + ratio * x
    spread *= abs(from_x0 * (1 - far) * J + ratio)
  mean, std = restored(restoration.dps, samplers.ddim_step)
  error = spread / np.sqrt(ROWS)
  assert abs(mean - x) < 5 * error
  assert abs(std - spread) < 5 * error / np.sqrt(2)
  assert mean - TRUTH[0] > 50 * error
  assert TRUTH[1] - std > 50 * error


def test_the_published_step_of_dps_takes_the_gradient_of_the_norm_off():
  observe = OBSERVATIONS["blurring"]
  x_t, eps, y = normal(0, 3, 2, *SHAPE)
  step = functools.partial(
    restoration.dps_step, EXACT, SCHEDULE, observe=observe, zeta=0.5
  )
  got, x0_hat = step(x_t, 100, 99, eps, y=y)
  plain, want_x0 = samplers.ancestral_step(EXACT, SCHEDULE, x_t, 100, 99, eps)
  np.testing.assert_array_equal(x0_hat, want_x0)
  # Of a Gaussian J is a number.
  alpha, sigma = SCHEDULE.alpha[100], SCHEDULE.sigma[100]
  J = alpha * GAUSSIAN.var / (alpha**2 * GAUSSIAN.var + sigma**2)
  residual = y - observe(x0_hat)
  norm = jnp.sqrt((residual**2).sum(axis=(1, 2, 3), keepdims=True))
  pulled = restoration.transpose(observe, residual / norm, x_t)
  np.testing.assert_allclose(got, plain + 0.5 * J * pulled, atol=1e-5)
  # No image depends on its batch, and a perfect one stays.
  alone, _ = step(x_t[:1], 100, 99, eps[:1], y=y[:1])
  np.testing.assert_allclose(alone, got[:1], atol=1e-6)
  same, _ = step(x_t, 100, 99, eps, y=observe(x0_hat))
  np.testing.assert_allclose(same, plain, atol=1e-6)


def test_no_restored_image_depends_on_its_batch():
  observe = OBSERVATIONS["blurring"]
  x_t, y = normal(0, 2, 3, *SHAPE)
  y = y * jnp.array([1e-3, 1, 1e3]).reshape(3, 1, 1, 1)
  both = [
    restoration.pigdm(EXACT, SCHEDULE, observe, y[part], iterations=5)(
      x_t[part], 100
    ).x0_hat
    for part in (slice(None), slice(1))
  ]
  np.testing.assert_allclose(both[0][:1], both[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["dps", "pigdm", "tmpd", "dps_step"])
@pytest.mark.parametrize(
  ("of_y", "of_x"),
  [("float64", "float32"), ("float32", "bfloat16"), ("int32", "float32")],
)
def test_an_observation_is_taken_in_the_precision_of_the_images(
  name, of_y, of_x
):
  observe, call = OBSERVATIONS["blurring"], getattr(restoration, name)
  schedule = dj.schedules.linear(1000, dtype=jnp.float32)
  predict = dj.predictor(lambda x, t: 0.5 * x, schedule)

  def restored(dtype):
    x_t = jnp.full((2, *SHAPE), 0.25, of_x)
    y = jnp.ones((2, *SHAPE), dtype)
    if name == "dps_step":
      how = {"observe": observe, "y": y, "zeta": 0.3}
      return call(predict, schedule, x_t, 90, 80, 0 * x_t, **how)[0]
    return call(predict, schedule, observe, y, std=0.1)(x_t, 90).x0_hat

  with jax.enable_x64(True):
    got, want = restored(of_y), restored(of_x)
  assert got.dtype == want.dtype
  np.testing.assert_array_equal(got, want)


def test_no_pictures_are_observed_as_none():
  for observe in OBSERVATIONS.values():
    seen = observe(jnp.ones((1, *SHAPE))).shape[1:]
    assert observe(jnp.ones((0, *SHAPE))).shape == (0, *seen)


def test_impossible_restorations_are_refused():
  x = jnp.zeros((2, *SHAPE))
  observe = OBSERVATIONS["downsampling"]
  with pytest.raises(ValueError, match=r"std=0: DPS divides by the noise"):
    restoration.dps(EXACT, SCHEDULE, observe, x, std=0)
  with pytest.raises(ValueError, match=r"std=-1 must be at least 0"):
    restoration.pigdm(EXACT, SCHEDULE, observe, x, std=-1)
  with pytest.raises(ValueError, match="data_var=0 must be above 0"):
    restoration.pigdm(EXACT, SCHEDULE, observe, x, data_var=0)
  with pytest.raises(ValueError, match="are observed as"):
    restoration.pigdm(EXACT, SCHEDULE, observe, x)(x, 10)
  with pytest.raises(ValueError, match="mask is 0 everywhere"):
    restoration.inpainting(0 * MASK)
  with pytest.raises(
    ValueError, match=r"mask is \[4, 6, 1\], must be \[4, 6, 2\]"
  ):
    restoration.inpainting(MASK[..., :1])(x)
  with pytest.raises(ValueError, match=r"matrix is of \[4, 6, 2\], must be"):
    OBSERVATIONS["measuring"](x[..., :1])
  with pytest.raises(ValueError, match="count=0 must be a whole number"):
    restoration.measuring(jax.random.key(0), SHAPE, 0)
  for size in (2, (2, 3, 2)):
    with pytest.raises(
      ValueError, match=r"size=.* must be one number for each axis"
    ):
      restoration.downsampling(size)(x)
  with pytest.raises(ValueError, match="width=0 of the blur"):
    restoration.blurring(0)


@pytest.mark.parametrize("name", ["dps", "pigdm", "tmpd"])
def test_pure_noise_is_no_reason_for_nan(name):
  # A walk of a flow, or of a table with zero_terminal, starts at alpha = 0.
  schedule, x = dj.continuous.flow(), jnp.linspace(-1, 1, 8).reshape(2, 2, 2, 1)
  predict = dj.mixtures.predictor(
    schedule, dj.mixtures.around(jnp.full((1, 2, 2, 1), 0.3), 0.5)
  )
  observe = dj.restoration.blurring(1.0)
  given = getattr(dj.restoration, name)(
    predict, schedule, observe, observe(x), std=0.1
  )
  np.testing.assert_allclose(given(x, schedule.T).x0_hat, 0.3, rtol=1e-5)
  assert np.isfinite(given(x, 0.9).x0_hat).all()
