import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.metrics import frechet_distance


def draws(n, d, seed):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_agrees_with_the_matrix_square_root():
  a, b = draws(500, 8, 0), draws(400, 8, 1)
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  root = scipy.linalg.sqrtm(cov_a @ cov_b).real
  gap = a.mean(0) - b.mean(0)
  want = gap @ gap + np.trace(cov_a + cov_b - 2 * root)
  np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-9)


def test_is_a_distance():
  a, b = draws(300, 5, 0), draws(300, 5, 1)
  assert frechet_distance(a, a) < 1e-9
  np.testing.assert_allclose(
    frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9
  )
  # A shift costs its square; nothing else changes.
  shift = np.array([1.0, -2, 0, 3, 0.5])
  np.testing.assert_allclose(
    frechet_distance(a, a + shift), shift @ shift, rtol=1e-9
  )


def test_dead_features_do_no_harm():
  a, b = draws(300, 5, 0), draws(300, 5, 1)
  dead = np.zeros((300, 3))
  np.testing.assert_allclose(
    frechet_distance(np.hstack([a, dead]), np.hstack([b, dead])),
    frechet_distance(a, b),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ("a", "b", "message"),
  [
    (np.zeros((5, 3)), np.zeros((5, 2)), r"\(5, 3\) and \(5, 2\)"),
    (np.zeros((5, 3, 1)), np.zeros((5, 3, 1)), "pass \\(N, D\\)"),
    (np.zeros((1, 3)), np.zeros((5, 3)), "of 1 and 5"),
  ],
)
def test_bad_shapes_are_refused(a, b, message):
  with pytest.raises(ValueError, match=message):
    frechet_distance(a, b)
