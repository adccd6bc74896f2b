"""Flow matching: the published codes' numbers, and Gaussian data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import reference
from oracles import GAUSSIAN, Mixture

import diffusion_jax as dj
from diffusion_jax import continuous, flow, losses, solvers, spacing, targets

SCHEDULE = continuous.flow()
JIT = {
  "euler": {"steps": 5, "scale": 2.9, "interval": (0, 0.9)},
  "heun": {"steps": 5, "scale": 2.9, "interval": (0, 0.9)},
  "heun_full": {"steps": 4, "scale": 1.5, "interval": None},
  "heun_interval": {"steps": 8, "scale": 2.9, "interval": (0.3, 0.7)},
}


@pytest.fixture(scope="module")
def numbers():
  return reference.load("flow")


def stand_in(numbers, source):
  """The published codes' network, of x and one scalar per example."""
  a, b, c, d = numbers[f"{source}_coefs"]

  def f(x, s, y=None):
    s = s.reshape(-1, 1, 1, 1)
    label = 0 if y is None else d * y.reshape(-1, 1, 1, 1) / 5
    return a * x + b * jnp.sin(2 * x + s) + c * s + label

  return f


def sit(numbers):
  """SiT's t = 1 is data, and its velocity goes there."""
  f = stand_in(numbers, "sit")
  return dj.predictor(lambda x, t: -f(x, 1 - t), SCHEDULE, target=targets.flow)


def near(got, want):
  np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


def walked(step, predict, schedule, x, pairs, eps=None):
  """Every x on the way."""
  eps = np.zeros((len(pairs), *x.shape)) if eps is None else eps
  xs = []
  for (t, s), noise in zip(pairs, eps, strict=True):
    x, _ = step(predict, schedule, x, t, s, noise)
    xs.append(x)
  return np.stack(xs)


def test_the_loss_is_the_published_one(numbers):
  with jax.enable_x64(True):
    t, eps = 1 - numbers["sit_t"], numbers["sit_noise"]
    near(
      dj.q_sample(SCHEDULE, numbers["sit_x0"], t, eps),
      numbers["sit_Linear_x_t"],
    )
    loss = losses.weighted_mse(
      sit(numbers), SCHEDULE, numbers["sit_x0"], t, eps
    )
    near(loss, numbers["sit_Linear_velocity_none_loss"])


@pytest.mark.parametrize(
  ("path", "schedule"),
  [
    ("Linear", SCHEDULE), ("GVP", continuous.cosine()),
    ("VP", continuous.linear()),
  ],
)  # fmt: skip
def test_each_path_is_the_published_one(numbers, path, schedule):
  with jax.enable_x64(True):
    t, eps = 1 - numbers["sit_t"], jnp.asarray(numbers["sit_noise"])
    at, x0 = schedule.at(t), numbers["sit_x0"]
    if path != "Linear":
      near(at.alpha, numbers[f"sit_{path}_alpha"])
      near(at.sigma, numbers[f"sit_{path}_sigma"])
    near(dj.q_sample(schedule, x0, t, eps), numbers[f"sit_{path}_x_t"])
    f = stand_in(numbers, "sit")
    predict = dj.predictor(lambda x, t: f(x, 1 - t), schedule)
    loss = losses.weighted_mse(predict, schedule, x0, t, eps)
    near(loss, numbers[f"sit_{path}_noise_none_loss"])


def test_noise_and_score_of_a_velocity_are_the_published_ones(numbers):
  with jax.enable_x64(True):
    t, out = 1 - numbers["sit_t"], jnp.asarray(numbers["sit_out"])
    predict = dj.predictor(lambda *_: -out, SCHEDULE, target=targets.flow)
    eps_hat = predict(jnp.asarray(numbers["sit_Linear_x_t"]), t).eps_hat
    near(eps_hat, numbers["sit_Linear_noise_from_velocity"])
    score = -eps_hat / SCHEDULE.at(t).sigma.reshape(-1, 1, 1, 1)
    near(score, numbers["sit_Linear_score_from_velocity"])


def test_euler_of_a_network_of_the_noise_is_the_published_one(numbers):
  with jax.enable_x64(True):
    want = numbers["sit_Linear_noise_ode_euler"]
    f, times = stand_in(numbers, "sit"), 1 - np.linspace(0.001, 0.999, 7)
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    predict = dj.predictor(lambda x, t: f(x, 1 - t), SCHEDULE)
    near(walked(dj.ddim_step, predict, SCHEDULE, want[0], pairs), want[1:])


@pytest.mark.parametrize(
  "name",
  [
    "shift1", "shift3", "shift_half", "dyn_exp", "dyn_lin", "terminal",
    "karras", "custom",
  ],
)  # fmt: skip
def test_euler_is_that_of_diffusers(numbers, name):
  with jax.enable_x64(True):
    f = stand_in(numbers, "diffusers")
    predict = dj.predictor(f, SCHEDULE, target=targets.flow)
    sigmas = numbers[f"diffusers_euler_{name}_sigmas"]
    pairs = np.stack([sigmas[:-1], sigmas[1:]], axis=1)
    want = numbers[f"diffusers_euler_{name}_x"]
    near(walked(dj.ddim_step, predict, SCHEDULE, want[0], pairs), want[1:])


@pytest.mark.parametrize(
  ("name", "shift"), [("dyn_exp", np.exp(0.8)), ("dyn_lin", 1.8)]
)
def test_a_shift_that_follows_the_size_is_a_shift(numbers, name, shift):
  with jax.enable_x64(True):
    even = numbers["diffusers_euler_shift1_sigmas"][:-1]
    got = SCHEDULE.shifted(shift).at(even).sigma
    near(got, numbers[f"diffusers_euler_{name}_sigmas"][:-1])


def test_euler_with_new_noise_at_each_step_is_the_published_one(numbers):
  # What diffusers calls stochastic sampling is consistency models' sampler.
  with jax.enable_x64(True):
    f = stand_in(numbers, "diffusers")
    predict = dj.predictor(f, SCHEDULE, target=targets.flow)
    sigmas, want, eps = (
      numbers[f"diffusers_euler_sde_{part}"] for part in ("sigmas", "x", "eps")
    )
    pairs = np.stack([sigmas[:-1], sigmas[1:]], axis=1)
    step = dj.consistency.renoise_step
    near(walked(step, predict, SCHEDULE, want[0], pairs, eps), want[1:])


def test_euler_is_ddim(numbers):
  with jax.enable_x64(True):
    want = numbers["sit_Linear_velocity_ode_euler"]
    pairs = spacing.named(SCHEDULE, "even", 6)
    xs = walked(dj.ddim_step, sit(numbers), SCHEDULE, want[0], pairs)
    near(xs, want[1:])


@pytest.mark.parametrize("last", ["Mean", "Tweedie"])
def test_the_sde_is_the_published_one(numbers, last):
  with jax.enable_x64(True):
    want, eps = (
      numbers[f"sit_Linear_velocity_sde_Euler_sigma_{last}_{part}"]
      for part in ("x", "eps")
    )
    times = np.linspace(1, 0.04, 7)
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    xs = walked(
      flow.sde_step, sit(numbers), SCHEDULE, numbers["sit_noise"], pairs, eps
    )
    near(xs, want[: len(xs)])


@pytest.mark.parametrize("name", ["shift1", "shift3"])
def test_heun_is_the_published_one(numbers, name):
  # Their last step but one goes to a sigma of their own, not to 0.
  with jax.enable_x64(True):
    f = stand_in(numbers, "diffusers")
    predict = dj.predictor(f, SCHEDULE, target=targets.flow)
    sigmas = numbers[f"diffusers_heun_{name}_sigmas"]
    times = np.append(sigmas[:-1:2], 0)
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    want = numbers[f"diffusers_heun_{name}_x"]
    xs = walked(flow.heun_step, predict, SCHEDULE, want[0], pairs)
    near(xs, np.append(want[2::2], want[-1:], axis=0))


def test_a_shifted_schedule_is_the_published_one(numbers):
  with jax.enable_x64(True):
    schedule = SCHEDULE.shifted(3.0)
    pairs = spacing.named(schedule, "even", 6)
    near(
      schedule.at(pairs[:, 0]).sigma,
      numbers["diffusers_euler_custom_sigmas"][:-1],
    )
    predict = dj.predictor(
      stand_in(numbers, "diffusers"), schedule, target=targets.flow,
      clock=lambda schedule, t: schedule.at(t).sigma,
    )  # fmt: skip
    want = numbers["diffusers_euler_custom_x"]
    near(walked(dj.ddim_step, predict, schedule, want[0], pairs), want[1:])


def jit_door(numbers):
  """JiT's t = 1 is data."""
  return dj.predictor(
    stand_in(numbers, "jit"), SCHEDULE, target=targets.x0,
    clock=lambda schedule, t: 1 - t,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("number", "mean", "std"), [(0, 0.8, 0.8), (1, -2.5, 1.2)]
)
def test_the_loss_of_jit_is_the_published_one(numbers, number, mean, std):
  with jax.enable_x64(True):
    draw = numbers[f"jit_loss_{number}_draw"]
    quantile = dj.timesteps.logit_normal(mean, std)
    t = quantile(jax.scipy.stats.norm.cdf(-draw), 1.0)
    loss = losses.weighted_mse(
      functools.partial(jit_door(numbers), cond=numbers["jit_labels"]),
      SCHEDULE, numbers["jit_x0"], t, numbers[f"jit_loss_{number}_noise"],
      space=targets.jit(),
    )  # fmt: skip
    np.testing.assert_allclose(
      loss.mean(), numbers[f"jit_loss_{number}"], rtol=1e-8
    )


def test_more_noise_is_the_published_one(numbers):
  with jax.enable_x64(True):
    schedule, t_eps = continuous.flow(noise=2.0), 0.1
    draw = numbers["jit_loss_2_draw"]
    t = dj.timesteps.logit_normal(0.8, 0.8)(jax.scipy.stats.norm.cdf(-draw), 1)
    at = schedule.at(t)
    near(at.alpha, 1 - t)
    near(at.sigma, 2 * t)
    near(schedule.time(at.log_snr), t)
    predict = dj.predictor(
      stand_in(numbers, "jit"), schedule, target=targets.x0,
      clock=lambda schedule, t: 1 - t,
    )  # fmt: skip
    loss = losses.weighted_mse(
      functools.partial(predict, cond=numbers["jit_labels"]), schedule,
      numbers["jit_x0"], t, numbers["jit_loss_2_noise"],
      space=targets.jit(2 * t_eps),
    )  # fmt: skip
    np.testing.assert_allclose(
      4 * loss.mean(), numbers["jit_loss_2"], rtol=1e-8
    )
  with pytest.raises(ValueError, match="noise=0 must be above 0"):
    continuous.flow(noise=0)


@pytest.mark.parametrize("name", JIT)
def test_the_sampler_of_jit_is_the_published_one(numbers, name):
  case = JIT[name]
  step = dj.ddim_step if name == "euler" else flow.heun_step
  with jax.enable_x64(True):
    predict = dj.guidance.classifier_free(
      jit_door(numbers), SCHEDULE, lambda y: 0 * y + 5, case["scale"],
      interval=case["interval"],
    )  # fmt: skip
    predict = functools.partial(predict, cond=numbers["jit_labels"])
    pairs = spacing.named(SCHEDULE, "even", case["steps"])
    start = numbers[f"jit_sample_{name}_start"]
    xs = walked(step, predict, SCHEDULE, start, pairs)
    near(xs[-1], numbers[f"jit_sample_{name}_out"])


@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_no_velocity_loss_is_below_the_closed_form(t):
  # s^2 / ((1 - t)^2 s^2 + t^2) on N(0, s^2).
  data, n = Mixture((0.0,), (1.0,), 0.5), 4096
  x0 = data.sample(jax.random.key(0), (n, 2, 2, 1))
  eps = jax.random.normal(jax.random.key(1), x0.shape)
  predict = data.predictor(SCHEDULE, targets.flow)
  loss = losses.weighted_mse(predict, SCHEDULE, x0, jnp.full(n, t), eps)
  least = 0.25 / ((1 - t) ** 2 * 0.25 + t**2)
  assert abs(loss.mean() - least) < 5 * loss.std() / np.sqrt(n)


PATHS = {
  "flow": SCHEDULE, "shifted": SCHEDULE.shifted(3.0), "vp": continuous.linear(),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_heun_has_its_order_and_every_path_the_same_end(path):
  schedule, errors = PATHS[path], []
  with jax.enable_x64(True):
    y = 20 * jnp.array([-1.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
    spread = lambda u: np.sqrt(0.25 + u**2)
    exact = 0.3 + (y - 0.3) * spread(0.1) / spread(20)
    for num in (64, 128):
      u = np.exp(np.linspace(np.log(20), np.log(0.1), num + 1))
      times = np.asarray(schedule.time(-2 * jnp.log(u)))
      x = oracles.walk(
        flow.heun_step, GAUSSIAN, schedule, schedule.at(times[0]).alpha * y,
        np.stack([times[:-1], times[1:]], axis=1),
      )  # fmt: skip
      errors.append(float(abs(x / schedule.at(times[-1]).alpha - exact).max()))
  assert 1.8 < np.log2(errors[0] / errors[1]) < 2.2
  assert errors[1] < 0.01


@pytest.mark.parametrize(
  "diffusion", [lambda tau: tau, lambda tau: 0.3, lambda tau: tau * (1 - tau)]
)
@pytest.mark.parametrize("path", PATHS)
def test_any_diffusion_keeps_the_marginal(path, diffusion):
  # A step on Gaussian data is linear, k x + c eps: with the variance V_t of
  # x_t, k^2 V_t + c^2 is V_s but for the square of the step's length.
  schedule, data = PATHS[path], Mixture((0.0,), (1.0,), 0.5)
  step = functools.partial(flow.sde_step, diffusion=diffusion)
  variance = lambda at: at.alpha**2 * 0.25 + at.sigma**2
  errors = []
  with jax.enable_x64(True):
    predict, one = data.predictor(schedule), jnp.ones((1, 1))
    for h in (1e-3, 5e-4):
      t, s = 0.6, 0.6 - h
      k, _ = step(predict, schedule, one, t, s, 0 * one)
      c, _ = step(predict, schedule, 0 * one, t, s, one)
      V, V_s = (variance(schedule.at(time)) for time in (t, s))
      errors.append(abs((k**2 * V + c**2 - V_s).item()))
  assert errors[0] < 1e-4
  assert 3.5 < errors[0] / errors[1] < 4.5


SOLVERS = {
  "ddim": dj.ddim_step, "flow_heun": flow.heun_step, "sde": flow.sde_step,
  "heun": solvers.heun_step, "dpm3": solvers.dpm(3),
  "unipc": solvers.unipc(3), "deis": solvers.deis(3),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_a_walk_may_start_where_there_is_no_signal_at_all(name):
  # At t = 1 alpha is 0 and the log-SNR minus infinity.
  pairs = spacing.named(SCHEDULE, "even", 40)
  assert pairs[0, 0] == 1
  x, _ = dj.sample(
    SOLVERS[name], GAUSSIAN.predictor(SCHEDULE, targets.flow), SCHEDULE,
    (4096, 1), jax.random.key(0), pairs=pairs,
  )  # fmt: skip
  assert abs(x.mean() - 0.3) < 5 * 0.5 / 64 + 0.01
  assert abs(x.std() / 0.5 - 1) < 5 / np.sqrt(2 * 4096) + 0.05


def test_a_prediction_knows_no_path():
  # The clamped velocity is the velocity itself but where there is no noise.
  at = [SCHEDULE.at(t) for t in (0.02, 0.5)]
  assert targets.jit().det(SCHEDULE, 0.5) == targets.flow.det(SCHEDULE, 0.5)
  np.testing.assert_allclose(
    targets.jit().det(SCHEDULE, 0.02), at[0].sigma / 0.05, rtol=1e-6
  )
  assert dataclasses.replace(targets.jit()) == targets.jit()
