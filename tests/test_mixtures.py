"""Mixtures: the denoiser against calculus, Monte Carlo and special cases."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import TWO_PEAKS

import diffusion_jax as dj
from diffusion_jax import mixtures, schedules
from diffusion_jax.targets import TARGETS

SCHEDULE = schedules.cosine(1000)
UNEVEN = mixtures.Mixture(
  means=jnp.array([[-1.0, 0.5], [0.5, 0.2], [2.0, -1.0]]),
  stds=jnp.array([0.1, 0.4, 0.2]),
  weights=jnp.array([0.2, 0.5, 0.3]),
)


def at_step(t):
  """The mixture of x_t, written down: every Gaussian shrinks and widens."""
  alpha, sigma = SCHEDULE.alpha[t], SCHEDULE.sigma[t]
  stds = jnp.sqrt((alpha * UNEVEN.stds) ** 2 + sigma**2)
  return mixtures.Mixture(alpha * UNEVEN.means, stds, UNEVEN.weights)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_the_denoiser_is_the_score(t):
  # Tweedie: E[eps | x_t] = -sigma_t grad log q(x_t).
  x_t = jnp.array([[0.3, -0.2], [-1.0, 0.6], [2.5, -1.0], [0.0, 3.0]])
  score = jax.grad(lambda x: mixtures.log_density(at_step(t), x).sum())(x_t)
  eps = mixtures.predictor(SCHEDULE, UNEVEN)(x_t, t).eps_hat
  np.testing.assert_allclose(
    eps, -SCHEDULE.sigma[t] * score, rtol=2e-3, atol=2e-3
  )


def test_bytes_as_centres_are_refused():
  with pytest.raises(ValueError, match="means is int32; pass floats"):
    mixtures.around(np.ones((2, 3), np.int32), 0.1)


def test_density_is_that_of_scipy():
  from scipy import stats

  x = np.array([[0.3, -0.2], [2.0, -1.5]])
  want = sum(
    w * stats.multivariate_normal(m, s**2 * np.eye(2)).pdf(x)
    for m, s, w in zip(*map(np.asarray, UNEVEN), strict=True)
  )
  got = mixtures.log_density(UNEVEN, jnp.asarray(x))
  np.testing.assert_allclose(got, np.log(want), rtol=1e-5)


@pytest.mark.parametrize("target", ["eps", "mean"])
def test_one_pixel_is_the_oracle_of_the_tests(target):
  mixture = mixtures.Mixture(
    jnp.array(TWO_PEAKS.means).reshape(2, 1, 1, 1),
    jnp.full(2, TWO_PEAKS.std),
    jnp.array(TWO_PEAKS.weights),
  )
  x_t = jnp.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
  t = jnp.array([1, 5, 50, 200, 400, 600, 800, 950, 1000])
  chex.assert_trees_all_close(
    mixtures.predictor(SCHEDULE, mixture, target=TARGETS[target])(x_t, t),
    TWO_PEAKS.predictor(SCHEDULE, TARGETS[target])(x_t, t),
    rtol=1e-3,
    atol=1e-4,
  )


def test_draws_have_the_mixtures_moments():
  n = 20_000
  x = np.asarray(mixtures.draw(UNEVEN, jax.random.key(0), n), np.float64)
  m, s, w = (np.asarray(part, np.float64) for part in UNEVEN)
  mean = w @ m
  var = w @ (m**2 + s[:, None] ** 2) - mean**2
  assert (np.abs(x.mean(axis=0) - mean) < 5 * np.sqrt(var / n)).all()
  fourth = ((x - mean) ** 4).mean(axis=0)
  assert (
    np.abs(x.var(axis=0) - var) < 5 * np.sqrt((fourth - var**2) / n)
  ).all()


def test_the_roll_is_a_line_with_even_steps():
  roll = mixtures.swiss_roll(400, reach=2.0)
  radius = np.hypot(*np.asarray(roll.means).T)
  np.testing.assert_allclose(radius[[0, -1]], [2 / 3, 2], rtol=1e-6)
  assert (np.diff(radius) > 0).all()
  steps = np.hypot(*np.diff(roll.means, axis=0).T)
  np.testing.assert_allclose(steps, steps.mean(), rtol=0.03)
  assert steps.max() < roll.stds[0]  # so close that it is a line


def test_walking_back_gives_the_roll():
  # Distance to the line: that of a Gaussian of the line's width.
  roll = mixtures.swiss_roll(100)
  x, _ = dj.sample(
    dj.solvers.unipc(), mixtures.predictor(SCHEDULE, roll), SCHEDULE,
    (500, 2), jax.random.key(0), pairs=dj.spacing.scales(SCHEDULE, 50),
  )  # fmt: skip
  away = np.linalg.norm(
    np.asarray(x)[:, None] - np.asarray(roll.means), axis=-1
  )
  assert np.quantile(away.min(axis=1), 0.99) < 3.5 * float(roll.stds[0])
  # All of the line is reached.
  share = np.bincount(away.argmin(axis=1) // 10, minlength=10) / 500
  assert (np.abs(share - 0.1) < 5 * np.sqrt(0.09 / 500)).all()


@pytest.mark.parametrize("schedule", [
  dj.continuous.flow(), dj.continuous.cosine(),
  dj.schedules.cosine(100, zero_terminal=True),
])  # fmt: skip
def test_pure_noise_says_nothing_about_the_data(schedule):
  x_t = jax.random.normal(jax.random.key(0), (5, *UNEVEN.means.shape[1:]))
  x0_hat = mixtures.predictor(schedule, UNEVEN)(x_t, schedule.T).x0_hat
  mean = jnp.tensordot(UNEVEN.weights, UNEVEN.means, axes=1)
  np.testing.assert_allclose(
    x0_hat, np.broadcast_to(mean, x_t.shape), rtol=1e-4, atol=1e-5
  )


def test_no_points_have_no_denoiser():
  mixture = mixtures.around(jnp.zeros((2, 3)), 0.5)
  x = jnp.zeros((0, 3))
  assert mixtures.x0_given(mixture, x, 1.0).shape == (0, 3)
  assert mixtures.log_density(mixture, x).shape == (0,)
