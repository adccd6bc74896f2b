import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import notes

from diffusion_jax import timesteps


@pytest.mark.parametrize(
  ("T", "num"), [(1000, 250), (4000, 100), (4000, 20), (1000, 1000)]
)
def test_even_spacing_is_the_published_one(T, num):
  # Published steps count from 0 and are listed upwards.
  published = notes("schedules")["spaced_timesteps"][f"{T}:{num}"]
  pairs = timesteps.spaced(T, num)
  np.testing.assert_array_equal(pairs[::-1, 0], np.add(published, 1))


@pytest.mark.parametrize("num", [1, 2, 3, 7, 50, 999, 1000])
def test_walks_are_connected_and_end_at_clean_data(num):
  pairs = timesteps.spaced(1000, num)
  chex.assert_shape(pairs, (num, 2))
  assert pairs[0, 0] == 1000 and pairs[-1, 1] == 0
  assert (pairs[:, 1] < pairs[:, 0]).all()
  np.testing.assert_array_equal(pairs[1:, 0], pairs[:-1, 1])


def test_every_is_all_single_steps():
  np.testing.assert_array_equal(timesteps.every(3), [[3, 2], [2, 1], [1, 0]])


def test_uniform_draws_every_step_equally_often():
  T, n = 10, 100_000
  t = timesteps.uniform(jax.random.key(0), n, T)
  chex.assert_shape(t, (n,))
  counts = np.bincount(t, minlength=T + 1)
  assert counts[0] == 0 and len(counts) == T + 1
  error = np.sqrt(n * (1 / T) * (1 - 1 / T))
  assert np.abs(counts[1:] - n / T).max() < 5 * error


@pytest.mark.parametrize("num", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(num):
  with pytest.raises(ValueError, match=rf"{num} .* 1..T=1000"):
    timesteps.spaced(1000, num)


@pytest.mark.parametrize(
  "visited", [[], [0, 3], [3, 3], [1.5, 2.7], [[1, 5], [2, 3]]]
)
def test_impossible_walks_are_refused(visited):
  with pytest.raises(ValueError, match="must be distinct whole numbers"):
    timesteps.walk(visited)


def test_a_wide_distribution_stays_off_the_ends():
  u = jnp.array([timesteps.ENDS, 0.5, 1 - timesteps.ENDS])
  t = timesteps.logit_normal(0.0, 20.0)(u, 1.0)
  assert (t > 0).all() and (t < 1).all() and t[1] == 0.5
  for make in (timesteps.logit_normal, timesteps.log_normal):
    for std in (0, -1, np.inf):
      with pytest.raises(ValueError, match=f"std={std} above 0, of the times"):
        make(0.0, std)
