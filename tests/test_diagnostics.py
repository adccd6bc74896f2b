import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Mixture

import diffusion_jax as dj
from diffusion_jax import diagnostics

SCHEDULE = dj.schedules.cosine(100)


def test_the_loss_curve_of_a_gaussian_is_its_closed_form():
  # Var(eps | x_t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) for x_0 of std s.
  oracle = Mixture(means=(0.3,), weights=(1.0,), std=0.5)
  x0 = oracle.sample(jax.random.key(0), (400, 4, 4, 1))
  t = jnp.array([1, 3, 10, 50, 100])
  curve = diagnostics.loss_curve(
    oracle.predictor(SCHEDULE), SCHEDULE, x0, t, jax.random.key(1)
  )
  signal = SCHEDULE.alpha[t] ** 2 * 0.25
  want = signal / (signal + SCHEDULE.sigma[t] ** 2)
  np.testing.assert_array_equal(curve.t, t)
  assert (np.abs(curve.mean - want) < 5 * curve.stderr).all()
  # The mean of 16 pixels' squared normal errors varies by sqrt(2 / 16).
  np.testing.assert_allclose(
    curve.stderr[:4], want[:4] * np.sqrt(2 / 16 / 400), rtol=0.2
  )


def test_more_images_or_steps_change_no_noise():
  x0 = jnp.zeros((4, 2, 2, 1))
  key = jax.random.key(0)

  def curve(x0, *t):
    # With x_t = sigma eps and an idle network, the loss is mean eps^2.
    return diagnostics.loss_curve(
      dj.predictor(lambda x_t, t: 0 * x_t, SCHEDULE),
      SCHEDULE,
      x0,
      jnp.array(t),
      jax.random.clone(key),
    )

  whole = curve(x0, 7, 30)
  np.testing.assert_array_equal(curve(x0, 30).mean[0], whole.mean[1])
  more = curve(jnp.zeros((8, 2, 2, 1)), 7)
  eps = dj.samplers.noise(key, 7, jnp.arange(8), (2, 2, 1))
  np.testing.assert_allclose(more.mean[0], (eps**2).mean(), rtol=1e-6)
  np.testing.assert_allclose(whole.mean[0], (eps[:4] ** 2).mean(), rtol=1e-6)


def test_one_image_has_no_standard_error():
  with pytest.raises(ValueError, match="1 images have no standard error"):
    diagnostics.loss_curve(
      dj.predictor(lambda x_t, t: x_t, SCHEDULE), SCHEDULE,
      jnp.zeros((1, 2, 2, 1)), jnp.array([1]), jax.random.key(0),
    )  # fmt: skip
  with pytest.raises(ValueError, match=r"t=\[0, 5\] must be in 1..T="):
    diagnostics.loss_curve(
      dj.predictor(lambda x_t, t: x_t, SCHEDULE), SCHEDULE,
      jnp.zeros((2, 2, 2, 1)), jnp.array([0, 5]), jax.random.key(0),
    )  # fmt: skip


def test_a_shift_of_one_channel_is_its_drift():
  rng = np.random.default_rng(0)
  colour = rng.normal(size=(500, 1, 1, 3))
  data = colour + rng.normal(size=(500, 6, 5, 3))
  shifted = data + np.array([0.0, 0.3, -0.1])
  means = diagnostics.mean_colour(data)
  np.testing.assert_allclose(means, data.mean(axis=(1, 2)), rtol=1e-12)
  np.testing.assert_allclose(
    diagnostics.colour_drift(diagnostics.mean_colour(shifted), means),
    np.array([0.0, 0.3, -0.1]) / means.std(axis=0),
    atol=1e-12,
  )
  # Pixels in another order, or all a multiple, are no drift of another size.
  turned = diagnostics.mean_colour(5 * shifted[:, ::-1, ::-1])
  np.testing.assert_allclose(
    diagnostics.colour_drift(turned, 5 * means),
    np.array([0.0, 0.3, -0.1]) / means.std(axis=0),
    atol=1e-12,
  )


def test_chance_drifts_by_one_over_the_root_of_the_number():
  rng = np.random.default_rng(0)
  data = 4 + 3 * rng.normal(size=(100_000, 1))
  drifts = [
    diagnostics.colour_drift(4 + 3 * rng.normal(size=(25, 1)), data)[0]
    for _ in range(1000)
  ]
  # Of 1000 draws of a normal the second moment is known to sqrt(2 / 1000).
  second = np.mean(np.square(drifts)) * 25
  assert abs(second - 1) < 5 * np.sqrt(2 / 1000)


def test_data_of_one_colour_have_a_unit_too():
  data = np.full((3, 2), 0.5)
  drift = diagnostics.colour_drift(data[:2] + [0, 2 / 255], data)
  np.testing.assert_allclose(drift, [0, 1], atol=1e-12)


def test_saturation_is_a_share():
  x = np.zeros((2, 2, 5, 1))
  x[0, 0, :3], x[0, 1, 0], x[0, 1, 1] = 1.0, -1.5, 0.99
  np.testing.assert_allclose(diagnostics.saturation(x), [0.4, 0])
  np.testing.assert_allclose(diagnostics.saturation(x, 0.98), [0.5, 0])


def test_distance_of_scaled_parameters_is_the_scale():
  params = {"a": jnp.arange(1.0, 4), "b": {"c": jnp.full((2, 2), -3.0)}}
  for scale in (1.0, 1.25, 0.0, -1.0):
    scaled = jax.tree.map(lambda p, s=scale: s * p, params)
    np.testing.assert_allclose(
      diagnostics.relative_distance(scaled, params), abs(scale - 1), rtol=1e-6
    )
  # One tensor's distance counts against the norm of all.
  moved = {**params, "a": params["a"] + 3.0}
  np.testing.assert_allclose(
    diagnostics.relative_distance(moved, params),
    np.sqrt(27) / optax.tree.norm(params),
    rtol=1e-6,
  )


@pytest.mark.parametrize("shape", [(8, 8, 1), (3, 5, 2), (33, 64, 3)])
def test_random_features_take_any_image(shape):
  x = np.random.default_rng(0).normal(size=(6, *shape))
  x = jnp.asarray(x, jnp.float32)
  key = jax.random.key(0)

  def features(x, **options):
    return dj.metrics.random_features(x, jax.random.clone(key), **options)

  whole = features(x)
  chex.assert_shape(whole, (6, 32))
  chex.assert_shape(features(x, features=5), (6, 5))
  # No biases: twice the contrast is twice the response.
  np.testing.assert_allclose(features(2 * x), 2 * whole, rtol=1e-4)
  np.testing.assert_allclose(features(x[4:]), whole[4:], rtol=1e-4, atol=1e-6)
  other = dj.metrics.random_features(x, jax.random.key(1))
  assert (np.abs(other - whole) > 1e-3).any()


def test_random_features_tell_digits_from_their_lookalikes():
  digits = dj.data.load("digits").gather(np.arange(1000))["image"]
  digits = dj.images.from_uint8(digits)
  rng = np.random.default_rng(0)
  one, other = digits[:500], digits[500:]
  mixed = rng.permuted(other.reshape(500, 64), axis=1).reshape(other.shape)
  features = [
    np.asarray(
      dj.metrics.random_features(jnp.asarray(x, jnp.float32), jax.random.key(0))
    )
    for x in (one, other, other + 0.1, mixed)
  ]
  same, brighter, scrambled = [
    dj.metrics.frechet_distance(features[0], f) for f in features[1:]
  ]
  # Brighter pictures, and the same pixels in another order, are far away.
  assert brighter > 3 * same
  assert scrambled > 3 * same
