import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import load

from diffusion_jax import (
  likelihood,
  prediction,
  process,
  schedules,
  solvers,
  timesteps,
)
from diffusion_jax.targets import TARGETS

NAMES = {"linear": schedules.linear, "cosine": schedules.cosine}


@pytest.fixture(params=NAMES)
def published(request):
  """(numbers of one schedule, schedule, x0, eps, x_t, t, s) in float64."""
  name, data = request.param, load("process")
  with jax.enable_x64(True):
    numbers = {
      key.removeprefix(f"{name}_"): data[key]
      for key in data
      if key.startswith(f"{name}_")
    }
    t = jnp.asarray(numbers["t"] + 1)  # published steps count from 0
    yield (
      numbers,
      data["coefs"],
      NAMES[name](1000),
      jnp.asarray(data["x0"]),
      jnp.asarray(data["noise"]),
      jnp.asarray(numbers["x_t"]),
      t,
      t - 1,
    )


def test_forward_process_is_the_published_one(published):
  numbers, _, schedule, x0, eps, x_t, t, _ = published
  got = process.q_sample(schedule, x0, t, eps)
  np.testing.assert_allclose(got, x_t, rtol=1e-6)
  alpha, sigma = process.rates(schedule, t, x0)
  np.testing.assert_allclose(alpha * x0, numbers["q_mean"], rtol=1e-6)
  log_var = jnp.broadcast_to(2 * jnp.log(sigma), x0.shape)
  np.testing.assert_allclose(log_var, numbers["q_logvar"], rtol=1e-6)


def test_posterior_is_the_published_one(published):
  numbers, _, schedule, x0, _, x_t, t, s = published
  mean, var = process.q_posterior(schedule, x0, x_t, t, s)
  np.testing.assert_allclose(mean, numbers["posterior_mean"], rtol=1e-6)
  var = jnp.broadcast_to(var, mean.shape)
  np.testing.assert_allclose(
    var, numbers["posterior_var"], rtol=1e-6, atol=1e-300
  )
  log_var = process.posterior_log_var(schedule, t, s)
  log_var = jnp.broadcast_to(process.per_example(log_var, mean), mean.shape)
  np.testing.assert_allclose(log_var, numbers["posterior_logvar"], rtol=1e-6)


@pytest.mark.parametrize("target", ["eps", "x0", "mean"])
@pytest.mark.parametrize("variance", prediction.VARIANCES)
@pytest.mark.parametrize("clip", [True, False])
def test_reverse_gaussian_is_the_published_one(
  published, target, variance, clip
):
  numbers, coefs, schedule, _, _, x_t, t, s = published
  predict = reference.predict(coefs, schedule, target=target, variance=variance)
  if clip:
    predict = prediction.clipped(predict, schedule)
  found = predict(x_t, t)
  p = prediction.p_mean_variance(schedule, found, x_t, t, s)
  prefix = f"{target}_{variance}_{'clip' if clip else 'noclip'}"
  for name, got in (
    ("mean", p.mean),
    ("logvar", p.log_var),
    ("x0", found.x0_hat),
  ):
    np.testing.assert_allclose(
      jnp.broadcast_to(got, x_t.shape),
      numbers[f"{prefix}_{name}"],
      rtol=1e-6,
      atol=1e-9,
      err_msg=name,
    )


def draws(shape=(6, 4, 5, 2), seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  return (jax.random.normal(key, shape) for key in keys)


def test_single_steps_compose_to_the_jump():
  # q(x_t | x_s) q(x_s | x_0) = q(x_t | x_0), for any s in between: the
  # coefficient of x_0 multiplies and the variances add.
  schedule = schedules.cosine(300)
  for s, t in [(0, 1), (1, 2), (17, 90), (150, 300), (299, 300)]:
    s, t = jnp.asarray(s), jnp.asarray(t)
    ratio = schedule.alpha[t] / schedule.alpha[s]
    np.testing.assert_allclose(
      ratio * schedule.alpha[s], schedule.alpha[t], rtol=1e-6
    )
    var = ratio**2 * schedule.sigma[s] ** 2 + process.beta(schedule, t, s)
    np.testing.assert_allclose(var, schedule.sigma[t] ** 2, rtol=2e-4)


def test_a_thousand_single_steps_have_the_moments_of_the_jump():
  T, n = 1000, 5_000
  schedule = schedules.linear(T)
  x0 = jnp.full((n, 1), 0.7)

  def step(x, t):
    eps = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x.shape)
    x = process.q_step(schedule, x, t, eps)
    return x, (x.mean(), x.var())

  _, (mean, var) = jax.lax.scan(step, x0, jnp.arange(1, T + 1))
  sigma = schedule.sigma[1:]
  error = (mean - schedule.alpha[1:] * 0.7) / (sigma / np.sqrt(n))
  assert jnp.abs(error).max() < 5
  error = (var - sigma**2) / (sigma**2 * np.sqrt(2 / n))
  assert jnp.abs(error).max() < 5


def test_posterior_is_bayes_rule():
  # q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0): a product
  # of Gaussians in x_s, whose precisions add.
  with jax.enable_x64(True):
    schedule = schedules.linear(500)
    x0, x_t = (x.astype(jnp.float64) for x in draws())
    for s, t in [(1, 2), (3, 80), (100, 101), (250, 500)]:
      s, t = jnp.asarray(s), jnp.asarray(t)
      ratio = schedule.alpha[t] / schedule.alpha[s]
      beta = process.beta(schedule, t, s)
      precision = ratio**2 / beta + 1 / schedule.sigma[s] ** 2
      mean = (
        ratio * x_t / beta + schedule.alpha[s] * x0 / schedule.sigma[s] ** 2
      ) / precision
      got = process.q_posterior(schedule, x0, x_t, t, s)
      np.testing.assert_allclose(got.mean, mean, rtol=1e-9)
      np.testing.assert_allclose(got.var.ravel(), 1 / precision, rtol=1e-9)


def test_the_last_posterior_is_a_point():
  schedule = schedules.cosine(100)
  x0, x_t = draws()
  got = process.q_posterior(schedule, x0, x_t, 7, 0)
  np.testing.assert_array_equal(got.mean, x0)
  np.testing.assert_array_equal(got.var, 0)


@pytest.mark.parametrize("t", [1, 30, 100])
def test_conversions_are_inverses(t):
  schedule = schedules.linear(100)
  x0, eps = draws()
  x_t = process.q_sample(schedule, x0, t, eps)
  for name, target in TARGETS.items():
    F = target.of(schedule, x0, t, eps)
    p = prediction.read(schedule, x_t, t, F, target=target)
    np.testing.assert_allclose(p.x0_hat, x0, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(p.eps_hat, eps, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("t", "s"), [(1, 0), (40, 39), (100, 20), (60, 0)])
def test_all_targets_stand_for_the_same_gaussian(variance, t, s):
  schedule = schedules.linear(100)
  x0, eps = draws()
  x0 = jnp.clip(x0, -1, 1)
  x_t = process.q_sample(schedule, x0, t, eps)
  want = process.q_posterior(schedule, x0, x_t, t, s)
  for name, target in TARGETS.items():
    output = target.of(schedule, x0, t, eps)
    found = prediction.clipped(
      prediction.predictor(
        lambda x, t, out=output: out, schedule, target=target, variance=variance
      ),
      schedule,
    )(x_t, t)
    p = prediction.p_mean_variance(schedule, found, x_t, t, s)
    chex.assert_equal_shape([p.mean, found.x0_hat, found.eps_hat, x_t])
    np.testing.assert_allclose(p.mean, want.mean, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(found.x0_hat, x0, atol=1e-3, err_msg=name)
    chex.assert_tree_all_finite((p, found))


def test_fixed_large_is_wider_than_fixed_small():
  schedule = schedules.cosine(100)
  t = jnp.arange(2, 101)
  x = jnp.zeros((99, 2, 2, 1))
  small, large = (
    prediction.p_mean_variance(
      schedule, prediction.read(schedule, x, t, x, variance=v), x, t, t - 1
    ).log_var
    for v in ("fixed_small", "fixed_large")
  )
  assert (large > small).all()


def test_snr_is_the_ratio_of_powers():
  schedule = schedules.linear(100)
  t = jnp.arange(1, 101)
  want = (schedule.alpha[t] / schedule.sigma[t]) ** 2
  np.testing.assert_allclose(process.snr(schedule, t), want, rtol=1e-5)
  assert jnp.isposinf(process.snr(schedule, jnp.asarray(0)))


def test_the_reparameterised_draw_is_differentiable():
  # d/dmean and d/dstd of E[(mean + std eps)^2] = mean^2 + std^2.
  eps = jax.random.normal(jax.random.key(0), (200_000,))

  def reparameterised(mean, std):
    return ((mean + std * eps) ** 2).mean()

  def direct(mean, std):
    # Drawing from the law itself, by bisection on its distribution function:
    # the numbers come out of comparisons, which have no derivative.
    u = jax.random.uniform(jax.random.key(1), (1000,))
    x = jnp.linspace(-20, 20, 4001)
    cdf = jax.scipy.stats.norm.cdf(x, mean, std)
    return (x[jnp.searchsorted(cdf, u)] ** 2).mean()

  grad = jax.grad(reparameterised, argnums=(0, 1))(0.7, 1.3)
  np.testing.assert_allclose(grad, (2 * 0.7, 2 * 1.3), rtol=0.02)
  assert abs(direct(0.7, 1.3) - (0.7**2 + 1.3**2)) < 0.5
  np.testing.assert_array_equal(jax.grad(direct, argnums=(0, 1))(0.7, 1.3), 0)


def test_q_sample_is_linear_in_its_noise():
  schedule = schedules.cosine(50)
  x0, eps = draws()
  _, tangent = jax.jvp(
    lambda e: process.q_sample(schedule, x0, 20, e), (eps,), (eps,)
  )
  np.testing.assert_allclose(tangent, schedule.sigma[20] * eps, rtol=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"variance": "small"}, "variance='small' is not one of fixed_small"),
    ({"target": "v"}, "target='v' must be one of dj.targets"),
    ({"variance": "learned"}, r"needs an output of \(1, 2, 2, 4\); the"),
  ],
)
def test_bad_names_are_refused(change, message):
  x = jnp.zeros((1, 2, 2, 2))
  with pytest.raises(ValueError, match=message):
    prediction.predictor(lambda x, t: x, schedules.cosine(10), **change)(x, 2)


def test_a_target_is_two_numbers():
  # F = p x_0 + q eps and x_t = alpha x_0 + sigma eps, solved by NumPy.
  with jax.enable_x64(True):
    schedule = schedules.linear(100)
    for t in (1, 2, 60, 100):
      at = schedule.at(t)
      for name, target in TARGETS.items():
        p, q = (float(c(schedule, t)) for c in (target.p, target.q))
        both = np.array([[at.alpha, at.sigma], [p, q]], float)
        det = np.linalg.det(both)
        np.testing.assert_allclose(
          target.det(schedule, t), det, rtol=1e-9, err_msg=name
        )
        x0, eps = 0.3, -1.2
        x_t, F = both @ (x0, eps)
        got = target.to_x0(
          schedule, jnp.full((1, 1), x_t), t, jnp.full((1, 1), F)
        )
        np.testing.assert_allclose(got, x0, rtol=1e-9, err_msg=name)


def test_targets_are_those_of_the_papers():
  schedule = schedules.cosine(100)
  x0, eps = draws()
  alpha, sigma, _ = schedule.at(30)
  want = {
    "eps": eps,
    "x0": x0,
    "v": alpha * eps - sigma * x0,  # Salimans and Ho 2022, appendix D
    "flow": eps - x0,  # Lipman et al. 2023, towards noise
  }
  for name, F in want.items():
    got = TARGETS[name].of(schedule, x0, 30, eps)
    np.testing.assert_allclose(got, F, atol=1e-6, err_msg=name)


def test_dynamic_thresholds_clip_one_pixel_in_ten():
  schedule = schedules.cosine(50)
  x0 = jnp.stack([jnp.arange(1.0, 11), jnp.linspace(-0.5, 0.5, 10)])
  x0 = x0.reshape(2, 5, 2, 1)
  plain = prediction.predictor(lambda x, t: x0, schedule, target=TARGETS["x0"])
  x_t = jnp.ones_like(x0)
  p = prediction.thresholded(plain, schedule, quantile=8 / 9)(x_t, 20)
  # Of 1..10 the quantile is 9; the second image is within bounds.
  want = jnp.stack([jnp.minimum(x0[0], 9) / 9, x0[1]])
  np.testing.assert_allclose(p.x0_hat, want, rtol=1e-6)
  np.testing.assert_array_equal(p.mean_x0, p.x0_hat)
  alpha, sigma = process.rates(schedule, 20, x0)
  np.testing.assert_allclose(alpha * p.x0_hat + sigma * p.eps_hat, x_t, 1e-5)
  with pytest.raises(ValueError, match="quantile=2.0 must be in"):
    prediction.thresholded(plain, schedule, quantile=2.0)


def test_a_network_meets_scaled_inputs_and_its_own_clock():
  schedule, seen = schedules.cosine(50), []

  def apply(x, t, cond):
    seen.append((x, t, cond))
    return x

  prediction.predictor(
    apply,
    schedule,
    scale=lambda schedule, t: 1 / schedule.at(t).alpha,
    clock=lambda schedule, t: (t - 1) / 49,
  )(jnp.ones((3, 2)), 50, {"y": 1})
  ((x, t, cond),) = seen
  np.testing.assert_allclose(x, 1 / schedule.alpha[50], rtol=1e-6)
  np.testing.assert_array_equal(t, np.ones(3))
  assert cond == {"y": 1}


@pytest.mark.parametrize("variance", prediction.VARIANCES)
def test_one_step_alone_has_a_variance(variance):
  # There is no move before it to borrow one from: it takes sigma_1^2.
  schedule = schedules.cosine(1)
  x = jnp.full((1, 2, 2, 1), 0.5)
  learned = variance.startswith("learned")
  output = jnp.concatenate([x, x], axis=-1) if learned else x
  found = prediction.predictor(lambda x, t: output, schedule, variance=variance)
  p = prediction.p_mean_variance(schedule, found(x, 1), x, 1, 0)
  want = 0.5 if variance == "learned" else 2 * jnp.log(schedule.sigma[1])
  np.testing.assert_allclose(
    jnp.broadcast_to(p.log_var, x.shape), want, atol=1e-6
  )
  chex.assert_tree_all_finite(p)


def test_the_last_move_borrows_the_variance_of_the_one_before():
  schedule = schedules.cosine(100)
  borrowed = process.posterior_log_var(schedule, 10, 0, above=30)
  want = jnp.log(process.posterior_var(schedule, 30, 10))
  np.testing.assert_allclose(borrowed, want, rtol=1e-6)
  # Where nothing is said of the walk, it is an even one.
  np.testing.assert_allclose(
    process.posterior_log_var(schedule, 10, 0),
    jnp.log(process.posterior_var(schedule, 20, 10)),
    rtol=1e-6,
  )


def test_a_condition_may_be_bound_before_and_after_clipping():
  schedule = schedules.cosine(50)
  predict = prediction.predictor(lambda x, t, cond: cond * x, schedule)
  x = jnp.ones((2, 3))
  for bound in (
    prediction.given(prediction.clipped(predict, schedule), 0.5),
    prediction.clipped(prediction.given(predict, 0.5), schedule),
  ):
    np.testing.assert_array_equal(bound(x, 20).output, 0.5 * x)
    assert abs(bound(x, 20).x0_hat).max() <= 1


def test_bytes_for_images_are_refused():
  x0 = jnp.zeros((1, 2, 2, 1), jnp.uint8)
  with pytest.raises(ValueError, match="x0 is uint8; pass floats"):
    process.q_sample(schedules.cosine(10), x0, 3, x0)
  predict, schedule = (lambda x, t: x), schedules.cosine(10)
  with pytest.raises(ValueError, match="x0 is uint8; pass floats"):
    solvers.encode(predict, schedule, x0, timesteps.every(10))
  with pytest.raises(ValueError, match="x is uint8; pass floats"):
    likelihood.probability_flow(predict, schedule, x0, jax.random.key(0))


def test_noise_and_outputs_that_would_be_shared_are_refused():
  schedule, x = schedules.cosine(10), jnp.zeros((4, 2, 2, 1))
  with pytest.raises(ValueError, match="each number needs noise of its own"):
    process.q_sample(schedule, x, 3, x[:1])
  mean = lambda x_t, t: x_t.mean((1, 2, 3), keepdims=True)
  with pytest.raises(ValueError, match=r"the network returned \(4, 1, 1, 1\)"):
    prediction.predictor(mean, schedule)(x, 3)


def test_noise_that_would_be_shared_is_refused():
  schedule, x = schedules.cosine(10), jnp.zeros((2, 4))
  for eps in (jnp.ones((1, 4)), jnp.ones(4), jnp.ones(())):
    with pytest.raises(ValueError, match="needs noise of its own"):
      process.q_step(schedule, x, 3, eps)
    with pytest.raises(ValueError, match="needs noise of its own"):
      process.q_sample(schedule, x, 3, eps)


def test_times_in_the_wrong_order_are_refused():
  schedule, x = schedules.cosine(10), jnp.zeros((2, 4, 4, 1))
  with pytest.raises(ValueError, match="s=5 is above t=3; s must be the clean"):
    process.q_posterior(schedule, x, x, 3, 5)
  with pytest.raises(ValueError, match="s=4 is above t=2; s must be the clean"):
    process.q_step(schedule, x, jnp.array([5, 2]), x, s=4)


@pytest.mark.parametrize("t", [np.ones(3, int), np.ones((2, 1), int)])
def test_times_that_would_be_broadcast_are_refused(t):
  schedule, x = schedules.cosine(10), jnp.zeros((2, 4, 4, 1))
  with pytest.raises(ValueError, match="t has shape .*one for each of the 2"):
    process.q_sample(schedule, x, t, x)
