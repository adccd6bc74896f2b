import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, TWO_PEAKS
from reference import load, predict

import diffusion_jax as dj
from diffusion_jax import samplers, schedules, timesteps
from diffusion_jax.targets import TARGETS

STEPS = {"ancestral": dj.ancestral_step, "ddim": dj.ddim_step}


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(
  ("step", "published"),
  [
    (dj.ancestral_step, "ancestral"),
    (functools.partial(dj.ddim_step, eta=0.0), "ddim_eta0.0"),
    (functools.partial(dj.ddim_step, eta=0.5), "ddim_eta0.5"),
    (functools.partial(dj.ddim_step, eta=1.0), "ddim_eta1.0"),
  ],
)
def test_one_step_is_the_published_one(name, step, published):
  data = load("process")
  with jax.enable_x64(True):
    t = jnp.asarray(data[f"{name}_t"] + 1)
    schedule = getattr(schedules, name)(1000)
    network = predict(data["coefs"], schedule, variance="learned_range")
    x_s, _ = step(
      dj.clipped(network, schedule),
      schedule,
      jnp.asarray(data[f"{name}_x_t"]),
      t,
      t - 1,
      jnp.asarray(data["noise"]),
    )
  np.testing.assert_allclose(
    x_s, data[f"{name}_{published}"], rtol=1e-6, atol=1e-9
  )


@pytest.mark.parametrize(
  ("name", "pairs", "published"),
  [
    ("linear", timesteps.walk(range(1, 1001, 40)), "1000|ddim25"),
    ("cosine", timesteps.spaced(1000, 20), "1000|20"),
  ],
)
def test_a_ddim_loop_is_the_published_one(name, pairs, published):
  data = load("process")
  with jax.enable_x64(True):
    schedule = getattr(schedules, name)(1000)
    x0, _ = dj.sample(
      dj.ddim_step,
      dj.clipped(predict(data["coefs"], schedule), schedule),
      schedule,
      data["noise"].shape,
      jax.random.key(0),
      pairs=pairs,
      x_T=jnp.asarray(data["noise"]),
    )
  want = data[f"{name}|{published}|ddim_loop"]
  # The published code rounds each coefficient to float32: 6e-8 per step.
  np.testing.assert_allclose(x0, want, rtol=1e-6, atol=1e-7)


def in_standard_errors(x, mean, var, fourth=3.0):
  """How far sample mean and variance are from the truth."""
  n = x.size
  mean_error = abs(x.mean() - mean) / np.sqrt(var / n)
  var_error = abs(x.var() - var) / (var * np.sqrt((fourth - 1) / n))
  return float(mean_error), float(var_error)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_recovers_a_gaussian(target, variance):
  schedule, target = schedules.linear(250), TARGETS[target]
  exact = GAUSSIAN.predictor(schedule, target)
  predict = dj.predictor(
    lambda x_t, t: exact(x_t, t).output, schedule, target=target,
    variance=variance,
  )  # fmt: skip
  x, _ = jax.jit(
    lambda key: dj.sample(
      dj.ancestral_step,
      predict,
      schedule,
      (2000, 1, 1, 1),
      key,
    )
  )(jax.random.key(0))
  # abar_T = 4e-5 of the data's variance is what x_T = noise leaves out.
  mean_error, var_error = in_standard_errors(x, GAUSSIAN.mean, GAUSSIAN.var)
  assert mean_error < 5 and var_error < 5


@pytest.mark.parametrize("step", STEPS)
def test_samplers_recover_a_mixture(step):
  schedule = schedules.cosine(1000)
  x, _ = jax.jit(
    lambda key: dj.sample(
      STEPS[step],
      TWO_PEAKS.predictor(schedule),
      schedule,
      (2000, 1, 1, 1),
      key,
    )
  )(jax.random.key(1))
  high = np.asarray(x) > 0
  share, want = high.mean(), TWO_PEAKS.weights[1]
  assert abs(share - want) < 5 * np.sqrt(want * (1 - want) / x.size)
  for part, mean in zip((~high, high), TWO_PEAKS.means, strict=True):
    errors = in_standard_errors(np.asarray(x)[part], mean, TWO_PEAKS.std**2)
    assert max(errors) < 5


def gaussian_walk(schedule, pairs, eta):
  """Exact mean and std that DDIM gives Gaussian data: its step is affine."""
  m, s_data = GAUSSIAN.mean, GAUSSIAN.std
  mean, var = 0.0, 1.0
  table = lambda x: np.asarray(x, np.float64)
  alpha, sigma = table(schedule.alpha), table(schedule.sigma)
  for t, s in pairs:
    gain = alpha[t] * s_data**2 / (alpha[t] ** 2 * s_data**2 + sigma[t] ** 2)
    x0 = np.array([gain, m - gain * alpha[t] * m])  # slope, offset in x_t
    eps = (np.array([1, 0]) - alpha[t] * x0) / sigma[t]
    ratio = (alpha[t] / alpha[s]) ** 2 * (sigma[s] / sigma[t]) ** 2
    noise = eta**2 * sigma[s] ** 2 * (1 - ratio)
    slope, offset = alpha[s] * x0 + np.sqrt(sigma[s] ** 2 - noise) * eps
    mean, var = slope * mean + offset, slope**2 * var + noise
  return mean, np.sqrt(var)


def test_ddim_is_first_order():
  # Error of the final std against the exact answer halves as steps double.
  with jax.enable_x64(True):
    schedule = schedules.linear(4096)
    x_T = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    nums = [16, 32, 64, 128, 256]
    errors = []
    for num in nums:
      pairs = timesteps.spaced(4096, num)
      x, _ = dj.sample(
        dj.ddim_step,
        GAUSSIAN.predictor(schedule),
        schedule,
        x_T.shape,
        jax.random.key(0),
        pairs=pairs,
        x_T=x_T,
      )
      std = float(x[1, 0, 0, 0] - x[0, 0, 0, 0]) / 2
      _, exact = gaussian_walk(schedule, pairs, eta=0.0)
      np.testing.assert_allclose(std, exact, rtol=1e-9)
      errors.append(abs(std - GAUSSIAN.std))
  order = -np.polyfit(np.log(nums), np.log(errors), 1)[0]
  assert 0.9 < order < 1.2


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_has_the_law_of_its_recursion(eta):
  schedule = schedules.cosine(1000)
  pairs = timesteps.spaced(1000, 20)
  x, _ = dj.sample(
    functools.partial(dj.ddim_step, eta=eta),
    GAUSSIAN.predictor(schedule),
    schedule,
    (20_000, 1, 1, 1),
    jax.random.key(2),
    pairs=pairs,
  )
  mean, std = gaussian_walk(schedule, pairs, eta)
  assert max(in_standard_errors(x, mean, std**2)) < 5


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("t", "s"), [(1, 0), (40, 39), (1000, 400)])
def test_ddim_with_eta_one_is_the_ancestral_step(clip, t, s):
  schedule = schedules.linear(1000)
  x_t, eps = jax.random.normal(jax.random.key(3), (2, 8, 4, 4, 3))
  predict = dj.predictor(lambda x, t: jnp.sin(2 * x), schedule)
  if clip:
    predict = dj.clipped(predict, schedule)
  args = (predict, schedule, x_t, t, s, eps)
  ancestral, _ = dj.ancestral_step(*args)
  ddim, _ = dj.ddim_step(*args, eta=1.0)
  np.testing.assert_allclose(ddim, ancestral, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("t", [1, 70])
def test_the_last_step_adds_no_noise(variance, t):
  schedule = schedules.cosine(100)
  x_t = jnp.ones((2, 3, 3, 1))
  predict = dj.predictor(lambda x, t: 0.1 * x, schedule, variance=variance)
  for step in (dj.ancestral_step, functools.partial(dj.ddim_step, eta=1.0)):
    quiet, x0_hat = step(predict, schedule, x_t, t, 0, jnp.zeros_like(x_t))
    loud, _ = step(predict, schedule, x_t, t, 0, jnp.full_like(x_t, 1e6))
    np.testing.assert_array_equal(quiet, loud)
    np.testing.assert_array_equal(quiet, x0_hat)


def run(key=0, shape=(4, 3, 2, 1), T=20, step=dj.ancestral_step, **options):
  schedule = schedules.cosine(T)
  return dj.sample(
    step,
    dj.clipped(TWO_PEAKS.predictor(schedule), schedule),
    schedule,
    shape,
    jax.random.key(key),
    **options,
  )


def test_an_image_does_not_depend_on_its_batch():
  x, _ = run(shape=(6, 3, 2, 1))
  for first, size in [(0, 1), (2, 3), (5, 1)]:
    part, _ = run(shape=(size, 3, 2, 1), first=first)
    np.testing.assert_allclose(part, x[first : first + size], rtol=1e-5)


def test_everything_comes_from_one_key():
  x, _ = run(key=0)
  again, _ = run(key=0)
  other, _ = run(key=1)
  np.testing.assert_array_equal(x, again)
  assert np.abs(x - other).min() > 0


def test_jit_gives_the_same_sample():
  schedule = schedules.cosine(20)
  f = lambda key: dj.sample(
    dj.ancestral_step,
    TWO_PEAKS.predictor(schedule),
    schedule,
    (4, 3, 2, 1),
    key,
  )[0]
  np.testing.assert_allclose(
    jax.jit(f)(jax.random.key(0)), f(jax.random.key(0)), rtol=1e-5, atol=1e-6
  )


def test_noise_differs_between_images_steps_and_keys():
  shape = (2, 2, 1)
  draws = [
    samplers.noise(jax.random.key(k), s, jnp.arange(3), shape)
    for k, s in [(0, 1), (0, 2), (1, 1)]
  ]
  stacked = np.stack(draws).reshape(9, -1)
  distances = np.abs(stacked[:, None] - stacked[None]).min(axis=-1)
  assert (distances[~np.eye(9, dtype=bool)] > 0).all()


def test_a_walk_in_pieces_is_the_same_walk():
  pairs = timesteps.every(20)
  whole, _ = run(pairs=pairs)
  half, _ = run(pairs=pairs[:9])
  rest, _ = run(pairs=pairs[9:], x_T=half)
  np.testing.assert_allclose(rest, whole, rtol=1e-6)


def test_trajectory_holds_the_steps_asked_for():
  keep = (15, 0, 7)
  x, trajectory = run(keep=keep)
  chex.assert_shape([trajectory.x, trajectory.x0_hat], (3, *x.shape))
  np.testing.assert_array_equal(trajectory.s, keep)
  np.testing.assert_array_equal(trajectory.x[1], x)
  half, _ = run(pairs=timesteps.every(20)[:5])  # stops at s = 15
  np.testing.assert_allclose(trajectory.x[0], half, rtol=1e-6)
  np.testing.assert_allclose(trajectory.x0_hat[1], x, rtol=1e-6)


def test_memory_holds_only_the_steps_asked_for():
  def peak(keep):
    f = jax.jit(lambda key: run_traced(key, keep))
    stats = f.lower(jax.random.key(0)).compile().memory_analysis()
    return stats.temp_size_in_bytes + stats.output_size_in_bytes

  def run_traced(key, keep):
    schedule = schedules.cosine(500)
    return dj.sample(
      dj.ddim_step,
      dj.predictor(lambda x, t: x, schedule),
      schedule,
      (16, 16, 16, 3),
      key,
      keep=keep,
    )

  image_bytes = 16 * 16 * 16 * 3 * 4
  assert peak((0, 100, 200)) - peak(()) < 20 * image_bytes


def test_more_steps_or_other_keys_do_not_trace_again():
  schedule = schedules.cosine(100)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def f(key, pairs, eta):
    return dj.sample(
      functools.partial(dj.ddim_step, eta=eta),
      dj.predictor(lambda x, t: 0.1 * x, schedule),
      schedule,
      (2, 2, 2, 1),
      key,
      pairs=pairs,
    )[0]

  f(jax.random.key(0), timesteps.spaced(100, 10), 0.0)
  f(jax.random.key(1), timesteps.walk([3, 9, 4, 80, 1, 2, 7, 8, 90, 99]), 1.0)


def test_the_network_is_traced_once():
  calls = []

  def denoise(x, t):
    calls.append(t.shape)
    return 0.1 * x

  schedule = schedules.cosine(50)
  dj.sample(
    dj.ancestral_step,
    dj.predictor(denoise, schedule),
    schedule,
    (3, 2, 2, 1),
    jax.random.key(0),
  )
  assert calls == [(3,)]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pairs": np.array([[30, 0]])}, r"pair \(t=30, s=0\).* T = 20"),
    ({"pairs": np.array([[3, 3]])}, r"pair \(t=3, s=3\) must have 0 <= s < t"),
    ({"pairs": np.zeros((0, 2), int)}, r"shape \(0, 2\)"),
    ({"pairs": np.array([5, 4, 3])}, r"shape \(3,\)"),
    ({"keep": (20,)}, "keep=20 is not a step that the walk reaches"),
    ({"keep": (5, 3, 5)}, r"keep=\(5, 3, 5\) names a step twice"),
    (
      {"pairs": np.array([[9, 7], [5, 0]])},
      "pair after s=7 begins at t=5; each must begin where",
    ),
    ({"pairs": np.array([[9.5, 0]])}, "pairs are float64; steps are whole"),
    ({"x_T": np.zeros((3, 1, 1, 1))}, r"x_T has shape \(3, 1, 1, 1\), and"),
  ],
)
def test_impossible_walks_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)


def test_a_time_that_is_no_number_is_refused():
  with pytest.raises(ValueError, match=r"pair \(t=0.5, s=nan\) must have"):
    samplers.check_walk(np.array([[1, 0.5], [0.5, np.nan]]), 1.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_a_walk_starts_from_numbers_of_any_precision(dtype):
  x_T = jnp.ones((1, 2, 2, 1))
  x, _ = run(shape=x_T.shape, x_T=np.ones(x_T.shape).astype(dtype))
  np.testing.assert_array_equal(x, run(shape=x_T.shape, x_T=x_T)[0])


STOCHASTIC = {
  "ddim": functools.partial(dj.ddim_step, eta=0.5), "sde": dj.flow.sde_step,
  "dpm": dj.solvers.dpm(2, eta=1.0), "ancestral": dj.ancestral_step,
}  # fmt: skip


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_step_upwards_is_refused(name):
  schedule, x = schedules.cosine(100), jnp.ones((2, 3))
  solver = samplers.as_solver(STOCHASTIC[name])
  predict = GAUSSIAN.predictor(schedule)
  with pytest.raises(ValueError, match="s=50 is above t=20; s must be the cl"):
    solver.step(predict, schedule, x, 20, 50, x, solver.init(x, 20))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_etas_that_mean_nothing_are_refused(eta):
  step = functools.partial(dj.ddim_step, eta=eta)
  with pytest.raises(ValueError, match=f"eta={eta} must be in"):
    run(step=step)
