"""Likelihoods of Gaussian data, where both are known."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, TWO_PEAKS, Mixture

from diffusion_jax import (
  bound,
  continuous,
  likelihood,
  prediction,
  process,
  schedules,
  spacing,
  targets,
  timesteps,
)

SHAPE = (64, 4, 4, 1)


def quantised(key, data=GAUSSIAN, n=64):
  """8-bit data: a Gaussian rounded to the nearest k / 127.5 - 1."""
  x = data.sample(key, (n, *SHAPE[1:]))
  return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


def exact_reverse(data, schedule):
  """Exact noise, and the exact variance of p(x_s | x_t), "learned".

  Var[x_s | x_t] = posterior + c_0^2 Var[x_0 | x_t] (the law of total
  variance); with it the bound of Gaussian data is tight.
  """
  noise = data.predictor(schedule)

  def denoise(x_t, t):
    s = t - 1
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    var_x0 = data.std**2 * sigma**2 / (alpha**2 * data.std**2 + sigma**2)
    c_0 = schedule.alpha[s] * process.fresh_noise(schedule, t, s)
    var = process.posterior_var(schedule, t, s) + c_0**2 * var_x0
    raw = process.per_example(jnp.log(var), x_t)
    return jnp.concatenate(
      [noise(x_t, t).output, jnp.broadcast_to(raw, x_t.shape)], axis=-1
    )

  return prediction.predictor(denoise, schedule, variance="learned")


def entropy_bits(data, x0):
  """-log2 of the probability of x_0's bin, per dimension, by image."""
  mass = bound.discretised_log_prob(x0, data.mean, jnp.log(data.std), cdf="erf")
  return -mass.mean(axis=(1, 2, 3)) / np.log(2)


@pytest.mark.parametrize("T", [50, 250])
def test_the_bound_is_tight_for_gaussian_data(T):
  # A narrow Gaussian well inside [-1, 1], so that rounding to 8 bits is all
  # that separates it from a Gaussian.
  data = Mixture(means=(0.1,), weights=(1.0,), std=0.2)
  schedule = schedules.cosine(T)
  x0 = quantised(jax.random.key(0), data, n=1024)
  result = jax.jit(
    lambda key: likelihood.variational_bound(
      exact_reverse(data, schedule), schedule, x0, key, cdf="erf"
    )
  )(jax.random.key(1))  # fmt: skip
  gap = np.asarray(result.total - entropy_bits(data, x0))
  error = gap.std() / np.sqrt(len(gap))
  assert abs(gap.mean()) < 4 * error + 2e-3
  assert error < 0.015  # which says something: the entropy is 6.7 bits
  assert result.prior.max() < 1e-3


def test_the_wrong_variance_costs_bits():
  schedule = schedules.cosine(100)
  x0 = quantised(jax.random.key(0))

  def run(predict):
    return jax.jit(
      lambda x0: likelihood.variational_bound(
        predict, schedule, x0, jax.random.key(1)
      ).total.mean()
    )(x0)

  best = run(exact_reverse(GAUSSIAN, schedule))
  exact = GAUSSIAN.predictor(schedule)
  for variance in ("fixed_small", "fixed_large"):
    predict = prediction.predictor(
      lambda x, t: exact(x, t).output, schedule, variance=variance
    )
    assert run(predict) > best + 0.01


def test_terms_add_up_and_images_stand_alone():
  schedule = schedules.cosine(50)
  x0 = quantised(jax.random.key(0), TWO_PEAKS)

  @jax.jit
  def run(x0, first=0):
    return likelihood.variational_bound(
      TWO_PEAKS.predictor(schedule), schedule, x0, jax.random.key(1),
      first=first,
    )  # fmt: skip

  whole = run(x0)
  assert whole.vb.shape == whole.mse.shape == (64, 50)
  np.testing.assert_allclose(
    whole.total, whole.prior + whole.vb.sum(axis=1), rtol=1e-6
  )
  part = run(x0[40:44], first=40)
  np.testing.assert_allclose(part.total, whole.total[40:44], rtol=1e-5)


def test_fewer_moves_are_another_model_with_its_own_bound():
  schedule = schedules.cosine(400)
  x0 = quantised(jax.random.key(0))

  @functools.partial(jax.jit, static_argnums=1)
  def total(x0, num):
    return likelihood.variational_bound(
      GAUSSIAN.predictor(schedule), schedule, x0, jax.random.key(1),
      pairs=timesteps.spaced(400, num),
    ).total.mean()  # fmt: skip

  totals = [total(x0, num) for num in (10, 50, 400)]
  assert totals[0] > totals[1] > totals[2]


def respaced(schedule, pairs):
  """The published respacing: a schedule whose steps are the walk's moves."""
  t, s = jnp.asarray(pairs).T
  betas = process.beta(schedule, t, s)[::-1]
  return schedules.from_betas(betas), jnp.append(0, pairs[::-1, 0])


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
  ("spec", "num"), [("100", None), ("ddim50", None), ("trailing", 25)]
)
def test_the_bound_of_a_walk_is_that_of_the_schedule_of_its_moves(
  variance, spec, num
):
  with jax.enable_x64(True):
    schedule = schedules.linear(1000)
    pairs = spacing.named(schedule, spec, num)
    short, original = respaced(schedule, pairs)
    x0 = quantised(jax.random.key(0), n=4)
    eps = jax.random.normal(jax.random.key(1), (1001, *x0.shape))
    exact = GAUSSIAN.predictor(schedule)
    door = lambda schedule, steps: prediction.predictor(
      lambda x, t: exact(x, steps[t]).output, schedule, variance=variance
    )

    @jax.jit
    def both(x0, eps):
      got = likelihood.variational_bound_with(
        prediction.clipped(door(schedule, jnp.arange(1001)), schedule),
        schedule, x0, lambda t: eps[t], pairs=pairs,
      )  # fmt: skip
      want = likelihood.variational_bound_with(
        prediction.clipped(door(short, original), short), short, x0,
        lambda t: eps[original[t]],
      )  # fmt: skip
      return got.vb, want.vb

    got, want = both(x0, eps)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_flows_density_is_that_of_gaussian_data(name):
  with jax.enable_x64(True):
    schedule = getattr(schedules, name)(1000)
    data = GAUSSIAN
    x = data.sample(jax.random.key(0), SHAPE)
    bits = jax.jit(
      lambda x: likelihood.probability_flow(
        data.predictor(schedule), schedule, x, jax.random.key(1)
      )
    )(x)
    # For Gaussian data x_t is Gaussian, and the flow keeps its z-score. At
    # T the model has N(0, I) where the data have almost that.
    std = jnp.sqrt(schedule.alpha**2 * data.var + schedule.sigma**2)
    z = (x - schedule.alpha[1] * data.mean) / std[1]
    x_T = schedule.alpha[-1] * data.mean + std[-1] * z
    nats = -jax.scipy.stats.norm.logpdf(x_T) - jnp.log(std[-1] / std[1])
    want = nats.mean(axis=(1, 2, 3)) / np.log(2)
  # Heun's error over 1000 steps.
  np.testing.assert_allclose(bits, want, atol=2e-5)


def test_hutchinsons_estimate_is_exact_in_the_mean():
  # Peaks at every pixel: the Jacobian is diagonal, and random signs give its
  # trace without error. Mixed by a rotation, only on average.
  schedule = schedules.cosine(100)
  mix = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (16, 16)))[0]

  def rotated(x_t, t):
    flat = x_t.reshape(-1, 16) @ mix
    out = TWO_PEAKS.predictor(schedule)(flat.reshape(x_t.shape), t).output
    return (out.reshape(-1, 16) @ mix.T).reshape(x_t.shape)

  rotated = prediction.predictor(rotated, schedule)

  x = TWO_PEAKS.sample(jax.random.key(0), (1, 4, 4, 1))
  turned = (x.reshape(-1, 16) @ mix.T).reshape(x.shape)
  exact = jax.jit(
    lambda x: likelihood.probability_flow(
      TWO_PEAKS.predictor(schedule), schedule, x, jax.random.key(1)
    )
  )(x)
  n = 256
  many = jnp.broadcast_to(turned, (n, 4, 4, 1))
  bits = jax.jit(
    lambda x: likelihood.probability_flow(
      rotated, schedule, x, jax.random.key(1)
    )
  )(many)
  error = float(bits.std()) / np.sqrt(n)
  assert error > 0
  assert abs(float(bits.mean() - exact[0])) < 4 * error + 1e-3


@pytest.mark.parametrize("visited", [[], [20], [20, 1], [0, 20], [1, 9, 9, 20]])
def test_a_flow_that_does_not_ascend_is_refused(visited):
  x = jnp.zeros((1, 2, 2, 1))
  with pytest.raises(ValueError, match="must ascend from 1 to T=20"):
    likelihood.probability_flow(
      lambda x, t: x, schedules.cosine(20), x, jax.random.key(0),
      visited=visited,
    )  # fmt: skip


FLOW, EDM = continuous.flow(), continuous.edm()


@pytest.mark.parametrize(
  ("schedule", "ends"),
  [
    (FLOW, (1e-3, 0.5)), (FLOW, (0.5, 0.9999)), (FLOW, (1e-3, 0.9)),
    (EDM, (0.002, 1)), (EDM, (0.01, 80)), (continuous.cosine(), (1e-3, 0.9)),
  ],
)  # fmt: skip
def test_a_flow_that_leaves_out_an_end_is_refused(schedule, ends):
  x, T = jnp.zeros((1, 2)), schedule.T
  with pytest.raises(ValueError, match=f"{schedule.first} to T={T}"):
    likelihood.probability_flow(
      lambda x, t: x, schedule, x, jax.random.key(0),
      visited=np.geomspace(*ends, 20),
    )  # fmt: skip


@pytest.mark.parametrize(
  ("schedule", "visited"),
  [
    (FLOW, np.linspace(1e-3, 0.9999, 400)), (FLOW, np.linspace(5e-4, 1, 400)),
    (EDM, np.geomspace(0.002, 75, 400)),
    (EDM, spacing.karras(EDM, 200)[::-1, 0]),
    (continuous.cosine(), np.linspace(1e-3, 0.995, 400)),
  ],
)  # fmt: skip
def test_what_a_flow_may_leave_out_is_negligible(schedule, visited):
  x = jnp.array([[0.1], [1.2], [-0.7]])
  bits = jax.jit(
    lambda x: likelihood.probability_flow(
      GAUSSIAN.predictor(schedule, targets.v), schedule, x, jax.random.key(0),
      visited=visited,
    )
  )(x)  # fmt: skip
  want = -jax.scipy.stats.norm.logpdf(x[:, 0], 0.3, 0.5) / np.log(2)
  np.testing.assert_allclose(bits, want, atol=0.03)


def test_a_flow_may_end_at_the_t_of_float32():
  # Which is more than that of float64.
  schedule, x = continuous.edm(sigma_max=0.1), jnp.zeros((1, 2))
  ends = np.float32([schedule.first, schedule.T])
  assert float(ends[1]) > schedule.T
  predict = GAUSSIAN.predictor(schedule, targets.v)
  bits = jax.eval_shape(
    lambda x: likelihood.probability_flow(
      predict, schedule, x, jax.random.key(0), visited=ends
    ),
    x,
  )
  assert bits.shape == (1,)


@pytest.mark.parametrize("path", [continuous.ve, continuous.straight])
def test_likelihoods_are_the_same_on_every_path(path):
  # One process in x / alpha. Two things are in units of x_1: its density, and
  # the variance that the decoder borrows from the move before it.
  with jax.enable_x64(True):
    vp = continuous.linear()
    other = dataclasses.replace(vp, path=path)
    pairs = spacing.named(vp, "log_snr", 30)
    first = pairs[-1, 0]
    x0 = quantised(jax.random.key(0), n=2).astype(float)
    ratio = other.at(first).alpha / vp.at(first).alpha

    def both(schedule, ratio):
      predict = GAUSSIAN.predictor(schedule)
      return likelihood.variational_bound(
        predict, schedule, x0, jax.random.key(1), pairs=pairs
      ), likelihood.probability_flow(
        predict, schedule, ratio * x0, jax.random.key(2),
        visited=pairs[::-1, 0],
      )  # fmt: skip

    (want, density), (got, moved) = both(vp, 1.0), both(other, ratio)
  got, want = ((b.prior, b.vb[:, :-1], b.x0_mse) for b in (got, want))
  chex.assert_trees_all_close(got, want, rtol=1e-6)
  want = np.asarray(density) + np.log2(np.asarray(ratio))
  np.testing.assert_allclose(moved, want, rtol=1e-6)


@pytest.mark.parametrize(
  ("pairs", "message"),
  [([[20, 10], [5, 0]], "must begin where"), ([[20, 10]], "end at s=10")],
)
def test_a_bound_of_a_part_of_the_walk_is_refused(pairs, message):
  schedule, x0 = schedules.cosine(20), jnp.zeros((1, 2, 2, 1))
  with pytest.raises(ValueError, match=message):
    likelihood.variational_bound(
      GAUSSIAN.predictor(schedule), schedule, x0, jax.random.key(1),
      pairs=np.array(pairs),
    )  # fmt: skip


def test_a_walk_from_a_cleaner_step_pays_for_the_signal_there():
  schedule, x0 = schedules.cosine(20), quantised(jax.random.key(0), n=2)
  alpha, sigma = schedule.alpha[5], schedule.sigma[5]
  want = (alpha * x0) ** 2 + sigma**2 - 1 - 2 * jnp.log(sigma)
  got = likelihood.variational_bound(
    GAUSSIAN.predictor(schedule), schedule, x0, jax.random.key(1),
    pairs=timesteps.walk([5, 1]),
  ).prior  # fmt: skip
  want = want.mean(axis=(1, 2, 3)) / 2 / np.log(2)
  np.testing.assert_allclose(got, want, rtol=1e-5)
