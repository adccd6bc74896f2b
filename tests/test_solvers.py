"""Solvers: orders of convergence, identities, and one program for all."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import reference
from oracles import GAUSSIAN, TWO_PEAKS

import diffusion_jax as dj
from diffusion_jax import samplers, schedules, solvers, timesteps

LONG = 2**15  # steps of a schedule on which rounding to whole steps is nothing


def log_walk(schedule, num, high, low):
  """num moves, log(sigma / alpha) even from high to low."""
  table = np.asarray(schedule.log_snr)[::-1]
  targets = -2 * np.linspace(np.log(high), np.log(low), num + 1)
  t = LONG - np.rint(np.interp(targets, table, np.arange(LONG + 1))).astype(int)
  return np.stack([t[:-1], t[1:]], axis=1)


def error_after(solver, num, *, high=100.0, low=0.1):
  """Distance to the exact solution of the flow for Gaussian data."""
  with jax.enable_x64(True):
    schedule = schedules.linear(LONG)
    pairs = log_walk(schedule, num, high, low)
    x_t = jnp.array([-1.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
    x = oracles.walk(solver, GAUSSIAN, schedule, x_t, pairs)
    ends = np.array([pairs[0, 0], pairs[-1, 1]])
    alpha, sigma = schedule.alpha[ends], schedule.sigma[ends]
    std = jnp.sqrt((alpha * GAUSSIAN.std) ** 2 + sigma**2)
    mean = alpha * GAUSSIAN.mean
    exact = mean[1] + (x_t - mean[0]) * std[1] / std[0]
    return float(jnp.sqrt(((x - exact) ** 2).mean()))


ORDERS = {
  "euler": (solvers.euler_step, 1),
  "heun": (solvers.heun_step, 2),
  **{f"dpm{p}": (solvers.dpm(p), p) for p in (1, 2, 3)},
  **{f"deis{p}": (solvers.deis(p), p) for p in (1, 2, 3)},
  # The correction adds one.
  **{
    f"unipc{p} {axis}": (solvers.unipc(p, axis=axis), p + 1)
    for p in (1, 2, 3)
    for axis in solvers.AXES
  },
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_solver_has_its_order(name):
  solver, order = ORDERS[name]
  errors = [error_after(solver, num) for num in (128, 256)]
  assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25


def walk(
  solver, *, pairs, T=1000, x64=True, num=6, data=TWO_PEAKS, clip=True,
  **options,
):  # fmt: skip
  with jax.enable_x64(x64):
    schedule = schedules.cosine(T)
    predict = data.predictor(schedule)
    if clip:
      predict = dj.clipped(predict, schedule)
    x, _ = samplers.sample(
      solver, predict, schedule, (num, 4, 4, 1),
      jax.random.key(3), pairs=pairs, **options,
    )  # fmt: skip
    return np.asarray(x)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("make", [solvers.dpm, solvers.deis])
def test_order_one_is_ddim(make, clip):
  pairs = timesteps.spaced(1000, 13)
  chex.assert_trees_all_close(
    walk(make(1), pairs=pairs, clip=clip),
    walk(dj.ddim_step, pairs=pairs, clip=clip),
    rtol=1e-9,
  )


def test_the_sdes_first_order_step_is_the_ancestral_one():
  pairs = timesteps.spaced(1000, 13)
  chex.assert_trees_all_close(
    walk(solvers.dpm(1, eta=1.0), pairs=pairs),
    walk(dj.ancestral_step, pairs=pairs),
    rtol=1e-9,
  )


def test_dpm_2m_is_the_papers_algorithm():
  # Lu et al. 2022, algorithm 2, in NumPy, for data prediction.
  pairs = timesteps.spaced(1000, 9)
  with jax.enable_x64(True):
    schedule = schedules.cosine(1000)
    alpha, sigma = np.asarray(schedule.alpha), np.asarray(schedule.sigma)
    images, shape = jnp.arange(6), (4, 4, 1)
    x = samplers.noise(jax.random.key(3), jnp.int32(1000), images, shape)
    x, old, last_h = np.asarray(x), None, None
    for t, s in pairs[:-1]:
      x0 = np.asarray(TWO_PEAKS.x0_given(schedule, x, np.full(6, t)))
      h = np.log(alpha[s] / sigma[s]) - np.log(alpha[t] / sigma[t])
      D = x0
      if old is not None:
        r = last_h / h
        D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old
      x = sigma[s] / sigma[t] * x - alpha[s] * np.expm1(-h) * D
      old, last_h = x0, h
    want = np.asarray(TWO_PEAKS.x0_given(schedule, x, np.full(6, 1)))
  got = walk(solvers.dpm(2), pairs=pairs, clip=False)
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(
  "solver",
  [
    solvers.dpm(2),
    solvers.dpm(3),
    solvers.dpm(2, eta=1.0),
    solvers.dpm(3, eta=1.0),
    solvers.dpm(2, eta=0.5),
    solvers.unipc(3),
    solvers.deis(3),
    solvers.heun_step,
  ],
)
def test_solvers_recover_a_mixture(solver):
  # 16,384 independent pixels; the bias of 100 steps is well below 5 errors.
  pairs = dj.spacing.scales(schedules.cosine(1000), 100)
  x = walk(solver, pairs=pairs, num=1024, x64=False)
  n = x.size
  assert abs(x.mean() - TWO_PEAKS.mean) < 5 * np.sqrt(TWO_PEAKS.var / n)
  fourth = np.mean((x - x.mean()) ** 4)
  error = np.sqrt((fourth - TWO_PEAKS.var**2) / n)
  assert abs(x.var() - TWO_PEAKS.var) < 5 * error
  left = (x < 0).mean()
  assert abs(left - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)


SOLVERS = {
  "dpm": solvers.dpm(3),
  "sde": solvers.dpm(2, eta=1.0),
  "unipc": solvers.unipc(3),
  "deis": solvers.deis(3),
  "heun": solvers.heun_step,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_cut_walk_remembers(name):
  solver, pairs = SOLVERS[name], timesteps.spaced(1000, 12)
  whole = walk(solver, pairs=pairs)
  with jax.enable_x64(True):
    schedule, key = schedules.cosine(1000), jax.random.key(3)

    @jax.jit  # pieces of one length are one program
    def piece(x, history, pairs):
      x, kept = samplers.sample(
        solver, dj.clipped(TWO_PEAKS.predictor(schedule), schedule), schedule,
        x.shape, jax.random.clone(key), pairs=pairs, x_T=x, history=history,
      )  # fmt: skip
      return x, kept.history

    t = jnp.asarray(pairs[0, 0])
    x = samplers.prior(schedule, key, t, jnp.arange(6), (4, 4, 1))
    history = samplers.as_solver(solver).init(x, t)
    for part in np.split(pairs, 6):
      x, history = piece(x, history, part)
  np.testing.assert_allclose(x, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_network_calls_are_counted(name):
  schedule = schedules.cosine(1000)
  calls, traces = [], []

  def denoise(x_t, t):
    traces.append(1)
    jax.debug.callback(lambda: calls.append(1))
    return x_t

  samplers.sample(
    SOLVERS[name], dj.predictor(denoise, schedule), schedule, (2, 4, 4, 1),
    jax.random.key(0), pairs=timesteps.spaced(1000, 10),
  )  # fmt: skip
  jax.effects_barrier()
  assert len(calls) == (19 if name == "heun" else 10)
  assert len(traces) == (2 if name == "heun" else 1)


def test_eta_is_data():
  schedule = schedules.cosine(100)
  traces = []

  @jax.jit
  def draw(eta):
    traces.append(1)
    return [
      samplers.sample(
        solver, TWO_PEAKS.predictor(schedule), schedule, (2, 4, 4, 1),
        jax.random.key(0), pairs=timesteps.spaced(100, 5),
      )[0]
      for solver in (
        functools.partial(dj.ddim_step, eta=eta), solvers.dpm(2, eta=eta),
      )
    ]  # fmt: skip

  first, second = draw(0.0), draw(1.0)
  assert len(traces) == 1
  for a, b in zip(first, second, strict=True):
    assert np.isfinite(a).all() and np.isfinite(b).all()
    assert not np.allclose(a, b)


def test_axes_are_two_solvers_with_one_limit():
  pairs = timesteps.spaced(1000, 10), timesteps.spaced(1000, 500)
  few, many = (
    np.abs(
      walk(solvers.unipc(3), pairs=p)
      - walk(solvers.unipc(3, axis="log_snr"), pairs=p)
    ).max()
    for p in pairs
  )
  assert few > 1e-3
  assert many < few / 100


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_one_encoding_step_is_the_published_one(schedule_name):
  data = reference.load("process")
  with jax.enable_x64(True):
    schedule = getattr(schedules, schedule_name)(1000)
    t = jnp.asarray(data[f"{schedule_name}_t"])
    x_t = jnp.asarray(data[f"{schedule_name}_x_t"])
    predict = dj.clipped(
      reference.predict(data["coefs"], schedule, variance="learned_range"),
      schedule,
    )
    ahead = jnp.minimum(t + 2, schedule.T)
    out = solvers.ddim_encode_step(predict, schedule, x_t, t + 1, ahead)
    # Above the last step the published code has only noise: alpha = 0.
    noise = predict(x_t, t + 1).eps_hat
  want = data[f"{schedule_name}_ddim_reverse"]
  got = np.where(np.asarray(t)[:, None, None, None] < 999, out, noise)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_encoding_and_decoding_give_the_picture_back():
  schedule = schedules.cosine(1000)
  predict = GAUSSIAN.predictor(schedule)
  x0 = GAUSSIAN.sample(jax.random.key(0), (6, 4, 4, 1))
  errors = []
  for num in (50, 100, 200):
    pairs = timesteps.spaced(1000, num)
    x_T = solvers.encode(predict, schedule, x0, pairs)
    back, _ = samplers.sample(
      dj.ddim_step, predict, schedule, x0.shape, jax.random.key(0),
      pairs=pairs, x_T=x_T,
    )  # fmt: skip
    errors.append(float(jnp.sqrt(((back - x0) ** 2).mean())))
  # Noise that looks like noise, and an error that halves.
  assert abs(float(x_T.std()) - 1) < 0.25
  assert errors[-1] < 0.01
  np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, atol=0.4)


@pytest.mark.parametrize("make", [solvers.dpm, solvers.unipc, solvers.deis])
@pytest.mark.parametrize("order", [0, 4])
def test_orders_are_refused(make, order):
  with pytest.raises(ValueError, match=f"order={order} is not one of 1, 2, 3"):
    make(order)


def test_a_negative_eta_is_refused():
  with pytest.raises(ValueError, match="eta=-1.0 must be in"):
    solvers.dpm(eta=-1.0)


def test_unknown_axes_are_refused():
  with pytest.raises(ValueError, match="'time' is not one of log_snr, scales"):
    solvers.unipc(3, axis="time")
