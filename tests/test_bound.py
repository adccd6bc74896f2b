import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.stats

from diffusion_jax import bound, likelihood, losses, prediction, schedules

CASES = [tuple(case) for case in reference.notes("process")["cases"]]


def published(name, T, target, variance):
  numbers = reference.load("process")
  schedule = getattr(schedules, name)(T)
  predict = reference.predict(
    numbers["coefs"], schedule, target=target, variance=variance
  )
  x0 = jnp.asarray(numbers["x0"])
  t = jnp.asarray(numbers[f"{name}_t"]) + 1
  return numbers, schedule, predict, x0, t, jnp.asarray(numbers["noise"])


@pytest.mark.parametrize(
  ("name", "T", "target", "variance"), CASES, ids=lambda x: str(x)
)
def test_losses_are_the_published_codes(name, T, target, variance):
  with jax.enable_x64(True):
    numbers, *given = published(name, T, target, variance)
    schedule, predict, x0, t, eps = given
    if variance.startswith("learned"):
      hybrid = functools.partial(
        losses.hybrid_at, predict, schedule, x0, t, eps
      )
      got = {
        "mse": hybrid(vlb_weight=1 / T),
        "rescaled_mse": hybrid(vlb_weight=1e-3),
      }
    else:
      mse = losses.weighted_mse(predict, schedule, x0, t, eps)
      got = {"mse": mse, "rescaled_mse": mse}
    vlb = functools.partial(losses.vlb_at, predict, schedule, x0, t, eps)
    got |= {"kl": vlb(scaled=False), "rescaled_kl": vlb()}
    for loss, value in got.items():
      np.testing.assert_allclose(
        value,
        numbers[f"{name}_{target}_{variance}_{loss}_loss"],
        rtol=1e-6,
        err_msg=loss,
      )


def test_bits_per_dimension_are_the_published_codes():
  with jax.enable_x64(True):
    numbers = reference.load("process")
    eps = jnp.asarray(numbers["noise"])
    schedule = schedules.linear(50)
    predict = reference.predict(
      numbers["coefs"], schedule, variance="learned_range"
    )
    result = likelihood.variational_bound_with(
      prediction.clipped(predict, schedule),
      schedule,
      jnp.asarray(numbers["x0"]),
      lambda t: eps,
    )
    np.testing.assert_allclose(result.total, numbers["bpd_total"], rtol=1e-6)
    np.testing.assert_allclose(result.prior, numbers["bpd_prior"], rtol=1e-6)
    np.testing.assert_allclose(result.vb, numbers["bpd_vb"], rtol=1e-6)
    np.testing.assert_allclose(result.mse, numbers["bpd_mse"], rtol=1e-6)


def test_kl_of_gaussians_is_the_integral():
  x = np.linspace(-12, 12, 200_001)
  p = scipy.stats.norm(0.3, 0.7)
  q = scipy.stats.norm(-0.5, 1.3)
  want = np.trapezoid(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x)
  got = bound.gaussian_kl(
    jnp.float32(-0.5), 2 * jnp.log(1.3), jnp.float32(0.3), 2 * jnp.log(0.7)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("log_std", [-5.0, -3.0, -1.0])
def test_a_decoders_bins_hold_all_of_its_mass(log_std):
  values = jnp.arange(256) / 127.5 - 1
  for cdf in bound.CDFS:
    mass = jnp.exp(
      bound.discretised_log_prob(values, jnp.float32(0.2), log_std, cdf=cdf)
    ).sum()
    np.testing.assert_allclose(mass, 1, rtol=1e-5)


def test_erf_is_the_exact_mass_and_tanh_close_to_it():
  with jax.enable_x64(True):
    values = jnp.arange(256) / 127.5 - 1
    normal = scipy.stats.norm(0.2, 0.05)
    edges = np.append((np.arange(255) + 0.5) / 127.5 - 1, np.inf)
    want = np.diff(normal.cdf(edges), prepend=0)
    log_std = jnp.log(0.05)
    exact = bound.discretised_log_prob(values, 0.2, log_std, cdf="erf")
    tanh = bound.discretised_log_prob(values, 0.2, log_std, cdf="tanh")
  likely = want > 1e-9
  np.testing.assert_allclose(np.exp(exact)[likely], want[likely], rtol=1e-6)
  # 3e-4 is the error that the tanh form is known for.
  np.testing.assert_allclose(np.exp(tanh), want, atol=3e-4)
  assert np.abs(np.exp(tanh) - want).max() > 1e-6
  assert np.asarray(exact).min() >= math.log(bound.MIN_MASS) - 1e-9


@pytest.mark.parametrize("cdf", bound.CDFS)
def test_a_decoders_tails_are_right_on_both_sides(cdf):
  # float32 against float64, up to where the floor of 1e-12 begins.
  std = 0.02
  k = np.array([-1, 1])[:, None] * np.arange(0, 20)
  x0 = np.concatenate([k / 127.5, [[-1.0], [1.0]] * np.ones((2, 2))], axis=1)
  mean = np.concatenate([0 * k, np.sign(x0[:, -2:]) * [0.9, 0.94]], axis=1)
  value = functools.partial(bound.discretised_log_prob, cdf=cdf)
  with jax.enable_x64(True):
    exact = value(jnp.asarray(x0), jnp.asarray(mean), math.log(std))
  single = value(
    jnp.asarray(x0, jnp.float32), jnp.asarray(mean, jnp.float32), math.log(std)
  )
  np.testing.assert_allclose(single, exact, rtol=1e-5)
  np.testing.assert_array_equal(single[0], single[1])
  if cdf == "erf":
    edges = np.array([12.5, 13.5]) / 127.5 / std  # about 5 std away
    want = -np.diff(scipy.stats.norm.sf(edges))[0]
    np.testing.assert_allclose(single[:, 13], math.log(want), rtol=1e-5)


@pytest.mark.parametrize("raw", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("kind", ["vlb", "hybrid"])
def test_gradients_stay_finite_at_extreme_variances(kind, variance, raw):
  schedule = schedules.cosine(1000)
  x0 = jnp.array([-1.0, -0.2, 0.6, 1.0]).reshape(4, 1, 1, 1)
  t = jnp.array([1, 1, 2, 1000])
  core = {"vlb": losses.vlb_at, "hybrid": losses.hybrid_at}[kind]

  def loss(parameters):
    def denoise(x_t, t):
      eps, raw = jnp.broadcast_to(parameters[:, None], (2, 4))
      return jnp.stack([eps, raw], axis=-1).reshape(4, 1, 1, 2)

    predict = prediction.predictor(denoise, schedule, variance=variance)
    return core(predict, schedule, x0, t, jnp.ones_like(x0)).mean()

  value, gradient = jax.value_and_grad(loss)(jnp.array([0.5, raw]))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_the_hybrid_loss_calls_once_and_freezes_the_mean():
  schedule = schedules.linear(100)
  x0 = 0.5 * jnp.ones((6, 2, 2, 1))
  t = jnp.arange(1, 7) * 10
  eps = jax.random.normal(jax.random.key(0), x0.shape)
  calls = []

  def gradient(loss, variance="learned_range"):
    def cost(parameters):
      def denoise(x_t, t):
        calls.append(1)
        return jnp.concatenate(
          [parameters[0] * x_t, parameters[1] * jnp.ones_like(x_t)], axis=-1
        )

      door = prediction.predictor(denoise, schedule, variance=variance)
      return loss(door).mean()

    return jax.grad(cost)(jnp.array([0.3, 0.2]))

  given = (schedule, x0, t, eps)
  both = gradient(lambda d: losses.hybrid_at(d, *given, vlb_weight=0.01))
  assert len(calls) == 1
  simple = gradient(lambda d: losses.weighted_mse(d, *given))
  exact = gradient(lambda d: 0.01 * losses.vlb_at(d, *given))
  np.testing.assert_allclose(both[0], simple[0], rtol=1e-6)  # mse alone
  np.testing.assert_allclose(both[1], exact[1], rtol=1e-5)  # the bound alone
  assert abs(exact[0]) > 1e-3  # which would have moved the mean


def test_fixed_variances_are_refused_by_the_hybrid_loss():
  with pytest.raises(ValueError, match="variance='fixed_small' is fixed"):
    losses.hybrid_at(
      prediction.predictor(lambda x, t: x, schedules.linear(50)),
      schedules.linear(50),
      jnp.zeros((1, 2, 2, 1)),
      jnp.ones(1, jnp.int32),
      jnp.zeros((1, 2, 2, 1)),
    )


def test_unknown_cdfs_are_refused():
  with pytest.raises(ValueError, match="cdf='probit' is not one of tanh, erf"):
    bound.discretised_log_prob(
      jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), cdf="probit"
    )


def test_drawn_losses_are_their_cores_at_uniform_draws():
  schedule = schedules.linear(50)
  x0 = jnp.linspace(-1, 1, 64).reshape(64, 1, 1, 1)
  predict = prediction.predictor(
    lambda x, t: jnp.concatenate([0.5 * x, 0 * x], axis=-1),
    schedule,
    variance="learned_range",
  )
  for drawn, core in (
    (losses.vlb, losses.vlb_at),
    (losses.hybrid, losses.hybrid_at),
  ):
    key_t, key_eps = jax.random.split(jax.random.key(3))
    t = jax.random.randint(key_t, (64,), 1, 51)
    eps = jax.random.normal(key_eps, x0.shape)
    np.testing.assert_allclose(
      drawn(predict, schedule, x0, jax.random.key(3)),
      core(predict, schedule, x0, t, eps),
      rtol=1e-6,
    )
