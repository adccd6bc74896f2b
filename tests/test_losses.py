import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import TWO_PEAKS
from reference import load, predict

from diffusion_jax import (
  losses,
  prediction,
  process,
  schedules,
  timesteps,
  weights,
)
from diffusion_jax.targets import TARGETS

WEIGHTS = {
  "none": None,
  "bound_large": weights.bound("fixed_large"),
  "bound_small": weights.bound("fixed_small"),
  "p2": weights.p2(),
  "min_snr": weights.min_snr(),
  "truncated_snr": weights.truncated_snr(),
}


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("target", ["eps", "x0", "mean"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_simple_loss_is_the_published_one(name, target, variance):
  data = load("process")
  with jax.enable_x64(True):
    schedule = getattr(schedules, name)(1000)
    got = losses.weighted_mse(
      predict(data["coefs"], schedule, target=target, variance=variance),
      schedule,
      jnp.asarray(data["x0"]),
      jnp.asarray(data[f"{name}_t"] + 1),
      jnp.asarray(data["noise"]),
    )
  want = data[f"{name}_{target}_{variance}_mse_loss"]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def setup(n=4096, T=100):
  schedule = schedules.cosine(T)
  key_x, key_t, key_eps = jax.random.split(jax.random.key(0), 3)
  x0 = TWO_PEAKS.sample(key_x, (n, 2, 2, 1))
  t = timesteps.uniform(key_t, n, T)
  return schedule, x0, t, jax.random.normal(key_eps, x0.shape)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_exact_denoiser_minimises_every_loss(target, weight):
  # Any change h(x_t, t) of the output costs E[w h^2] > 0 on average, since
  # the exact output is the conditional mean: the cross term vanishes.
  schedule, x0, t, eps = setup()
  target = TARGETS[target]
  predict = TWO_PEAKS.predictor(schedule, target)
  exact = lambda x, t: predict(x, t).output
  loss = lambda net: losses.weighted_mse(
    prediction.predictor(net, schedule, target=target), schedule, x0, t, eps,
    weight=WEIGHTS[weight],
  )  # fmt: skip
  best = loss(exact)
  chex.assert_shape(best, (len(x0),))
  chex.assert_tree_all_finite(best)
  for change in (
    lambda x, t: 0.1 * jnp.ones_like(x),
    lambda x, t: 0.1 * x,
    lambda x, t: -0.1 * jnp.cos(3 * x) * (t / 100).reshape(-1, 1, 1, 1),
  ):
    worse = loss(lambda x, t, h=change: exact(x, t) + h(x, t))
    cost = np.asarray(
      loss(lambda x, t, h=change: target.of(schedule, x0, t, eps) + h(x, t))
    )  # E[w h^2], the same weights and draws
    gap = np.asarray(worse - best)
    error = (gap - cost).std() / np.sqrt(len(gap))
    assert cost.mean() > 0
    assert abs((gap - cost).mean()) < 5 * error


@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w != "none"])
def test_a_weight_means_the_same_for_every_target(weight):
  # The same guess, told in four languages, must cost the same.
  with jax.enable_x64(True):
    schedule, x0, t, eps = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
      setup(n=64),
    )
    x_t = process.q_sample(schedule, x0, t, eps)
    guess = 0.5 * x_t
    noise = prediction.eps_from_x0(schedule, x_t, t, guess)
    cost = {}
    for name, target in TARGETS.items():
      F = target.of(schedule, guess, t, noise)
      predict = prediction.predictor(
        lambda x, t, F=F: F, schedule, target=target
      )
      cost[name] = losses.weighted_mse(
        predict, schedule, x0, t, eps, weight=WEIGHTS[weight]
      )
  for target in ("x0", "mean", "v", "flow"):
    np.testing.assert_allclose(cost[target], cost["eps"], rtol=1e-6)


def test_weights_are_those_of_the_papers():
  with jax.enable_x64(True):
    schedule = schedules.linear(1000)
    t = jnp.arange(1, 1001)
    snr = schedule.alpha[t] ** 2 / schedule.sigma[t] ** 2
    beta = process.beta(schedule, t, t - 1)
    one_minus_abar = schedule.sigma[t] ** 2
    cases = {
      # DDPM eq. 12 with sigma_t^2 = beta_t.
      "bound_large": beta / (2 * (1 - beta) * one_minus_abar),
      "p2": 1 / (1 + snr),
      "min_snr": jnp.minimum(snr, 5) / snr,
      "truncated_snr": jnp.maximum(snr, 1) / snr,
    }
    for name, want in cases.items():
      np.testing.assert_allclose(
        WEIGHTS[name](schedule, t), want, rtol=1e-6, err_msg=name
      )


def test_the_bound_weight_gives_the_kl_divergence():
  # L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)); with equal variances it
  # is |mean - mean_hat|^2 / (2 var).
  with jax.enable_x64(True):
    schedule = schedules.linear(1000)
    t = jnp.array([2, 10, 400, 1000])
    keys = jax.random.split(jax.random.key(3), 3)
    x0, eps, eps_hat = (
      jax.random.normal(k, (4, 3, 3, 1), jnp.float64) for k in keys
    )
    x_t = process.q_sample(schedule, x0, t, eps)
    predict = prediction.predictor(lambda x, t: eps_hat, schedule)
    got = losses.weighted_mse(
      predict,
      schedule,
      x0,
      t,
      eps,
      weight=weights.bound("fixed_small"),
    )
    q = process.q_posterior(schedule, x0, x_t, t, t - 1)
    p = prediction.p_mean_variance(schedule, predict(x_t, t), x_t, t, t - 1)
    kl = (q.mean - p.mean) ** 2 / (2 * q.var)
    np.testing.assert_allclose(got, kl.mean(axis=(1, 2, 3)), rtol=1e-6)


def test_simple_draws_its_own_steps_and_noise():
  schedule, x0, _, _ = setup(n=64)
  seen = []

  def denoise(x_t, t):
    seen.append((x_t, t))
    return jnp.zeros_like(x_t)

  denoise = prediction.predictor(denoise, schedule)
  key = jax.random.key(5)
  loss = losses.simple(denoise, schedule, x0, jax.random.clone(key))
  again = losses.simple(denoise, schedule, x0, jax.random.clone(key))
  other = losses.simple(denoise, schedule, x0, jax.random.key(6))
  np.testing.assert_array_equal(loss, again)
  assert not np.array_equal(loss, other)
  (x_t, t), *_ = seen
  chex.assert_shape([loss, t], (64,))
  chex.assert_equal_shape([x_t, x0])


def test_knowing_nothing_costs_one():
  schedule, x0, _, _ = setup(n=4096)
  loss = losses.simple(
    prediction.predictor(lambda x, t: jnp.zeros_like(x), schedule),
    schedule,
    x0,
    jax.random.key(7),
  )
  assert abs(loss.mean() - 1) < 5 * loss.std() / np.sqrt(len(loss))


def test_gradient_is_the_same_under_jit():
  schedule, x0, t, eps = setup(n=32)

  def loss(scale):
    return losses.weighted_mse(
      prediction.predictor(lambda x, t: scale * x, schedule),
      schedule,
      x0,
      t,
      eps,
    ).mean()

  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(0.3), jax.grad(loss)(0.3), rtol=1e-5
  )


def test_unknown_bound_is_refused():
  with pytest.raises(ValueError, match="'learned' is not one of fixed_small"):
    weights.bound("learned")


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: weights.min_snr(-5.0), "gamma=-5.0"),
    (lambda: weights.min_snr(float("nan")), "gamma=nan"),
    (lambda: weights.p2(k=-1.0), "k=-1.0"),
    (lambda: weights.edm(0.0), "sigma_data=0.0"),
  ],
)
def test_weights_that_would_turn_learning_round_are_refused(make, named):
  with pytest.raises(ValueError, match=f"{named} must be positive"):
    make()


def test_a_weight_excludes_the_space_of_another_target():
  schedule, x0, t, eps = setup(n=2)
  predict = prediction.predictor(lambda x, t: x, schedule)
  with pytest.raises(ValueError, match="weight and space exclude each other"):
    losses.weighted_mse(
      predict, schedule, x0, t, eps, weight=weights.p2(), space=TARGETS["v"]
    )


def test_a_shifted_weight_of_the_bound_is_refused():
  with pytest.raises(ValueError, match="do not shift it"):
    weights.shifted(weights.bound(), 2.0)(schedules.cosine(10), jnp.array([3]))
