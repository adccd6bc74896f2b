import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import importance, timesteps

T = 40
COST = jnp.exp(-jnp.arange(1, T + 1) / 5)  # the loss at each step


def warm():
  history = importance.history(T)
  for _ in range(10):
    history = importance.update(history, jnp.arange(T), COST)
  return history


def test_uniform_until_every_step_was_seen_ten_times():
  history = importance.history(T)
  for n in range(10):
    np.testing.assert_allclose(importance.probabilities(history), 1 / T)
    t = jnp.arange(1, T + 1) if n < 9 else jnp.arange(1, T)
    history = importance.update(history, t - 1, COST[t - 1])
  assert not importance.warmed_up(history)
  history = importance.update(history, jnp.array([T - 1]), COST[-1:])
  assert importance.warmed_up(history)
  want = 0.999 * COST / COST.sum() + 0.001 / T
  np.testing.assert_allclose(importance.probabilities(history), want, rtol=1e-5)


def test_the_weighted_loss_is_unbiased_and_has_less_variance():
  n = 200_000
  t, weight = importance.draw(jax.random.key(0), n, warm())
  assert t.min() >= 1 and t.max() <= T
  weighted = np.asarray(weight * COST[t - 1])
  error = weighted.std() / np.sqrt(n)
  assert abs(weighted.mean() - COST.mean()) < 4 * error
  uniform = timesteps.uniform(jax.random.key(1), n, T)
  assert weighted.std() < 0.1 * np.asarray(COST[uniform - 1]).std()


def test_draws_have_the_probabilities():
  n = 100_000
  history = warm()
  t, weight = importance.draw(jax.random.key(0), n, history)
  p = np.asarray(importance.probabilities(history))
  count = np.bincount(np.asarray(t) - 1, minlength=T)
  assert (np.abs(count - n * p) < 5 * np.sqrt(n * p) + 1).all()
  np.testing.assert_allclose(weight, 1 / (T * p[np.asarray(t) - 1]), rtol=1e-5)


def test_a_batch_is_remembered_in_order():
  # One loss after the other is the definition; steps repeat, one of them
  # more often than there is room for.
  rng = np.random.default_rng(0)
  t = np.append(rng.integers(1, 5, 40), [2] * 25)
  losses = rng.uniform(size=len(t)).astype(np.float32)
  batched = importance.history(6)
  for part in np.split(np.arange(65), [20, 21, 30]):
    batched = importance.update(
      batched, jnp.asarray(t[part] - 1), jnp.asarray(losses[part])
    )
  for step in range(1, 7):
    last = losses[t == step][-10:]
    kept = np.asarray(batched.losses[step - 1])
    np.testing.assert_allclose(np.sort(kept[kept > 0]), np.sort(last))
    assert batched.counts[step - 1] == (t == step).sum()


def test_losses_of_zero_leave_uniform_draws():
  history = importance.history(3)
  for _ in range(10):
    history = importance.update(history, jnp.arange(3), jnp.zeros(3))
  np.testing.assert_allclose(importance.probabilities(history), 1 / 3)


def test_antithetic_draws_are_uniform_and_even():
  draws = np.stack(
    [timesteps.antithetic(jax.random.key(k), 8, 20) for k in range(500)]
  )
  assert draws.min() == 1 and draws.max() == 20
  count = np.bincount(draws.ravel() - 1, minlength=20)
  assert (np.abs(count - 200) < 5 * np.sqrt(200)).all()
  # One in each eighth of the steps, whatever the offset.
  fine = np.asarray(timesteps.antithetic(jax.random.key(0), 8, 1000))
  assert sorted(np.ceil(fine / 125)) == list(range(1, 9))
