"""Real time: every path is the same process in x / alpha and sigma / alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import CONTINUOUS as SCHEDULES, GAUSSIAN

import diffusion_jax as dj
from diffusion_jax import continuous, samplers, solvers, targets, timesteps

ORDERS = {
  "ddim": (dj.ddim_step, 1),
  "heun": (solvers.heun_step, 2),
  "dpm3": (solvers.dpm(3), 3),
  "unipc2": (solvers.unipc(2), 3),
  "deis3": (solvers.deis(3), 3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_path_has_its_log_snr_and_its_time_back(name):
  schedule = SCHEDULES[name]
  with jax.enable_x64(True):
    t = jnp.linspace(0.002, 0.998, 50) * schedule.T
    at = schedule.at(t)
    np.testing.assert_allclose(
      2 * jnp.log(at.alpha / at.sigma), at.log_snr, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(schedule.time(at.log_snr), t, rtol=1e-9)
    a = jnp.arcsinh(at.sigma / at.alpha)
    np.testing.assert_allclose(schedule.part(a), t / schedule.T, rtol=1e-9)
    assert (jnp.diff(at.log_snr) < 0).all()
    start = schedule.at(0.0)
    np.testing.assert_array_equal(start[:2], (1, 0))
    assert jnp.isposinf(start.log_snr)


def test_the_named_paths_are_the_papers():
  t = np.linspace(0.01, 0.99, 9)
  want = {
    "cosine": (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    "edm": (np.ones(9), t),
    "flow": (1 - t, t),
    # alpha = exp(-t^2 (20 - .1) / 4 - .1 t / 2) (Song et al. 2021, eq. 33).
    "linear": (np.exp(-19.9 * t**2 / 4 - 0.1 * t / 2), None),
    # Shifted, t is k t / (1 + (k - 1) t) (Esser et al. 2024, eq. 23).
    "shifted": (1 - 3 * t / (1 + 2 * t), 3 * t / (1 + 2 * t)),
  }
  for name, (alpha, sigma) in want.items():
    at = SCHEDULES[name].at(t)
    np.testing.assert_allclose(at.alpha, alpha, rtol=1e-5, err_msg=name)
    if sigma is not None:
      np.testing.assert_allclose(at.sigma, sigma, rtol=1e-5, err_msg=name)


def walk(solver, schedule, num):
  """y from u = 20 to 0.1 in steps even in log u, from the same y."""
  u = np.exp(np.linspace(np.log(20), np.log(0.1), num + 1))
  times = np.asarray(schedule.time(-2 * jnp.log(u)))
  y = 20 * jnp.array([-1.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
  x = oracles.walk(
    solver, GAUSSIAN, schedule, schedule.at(times[0]).alpha * y,
    np.stack([times[:-1], times[1:]], axis=1),
  )  # fmt: skip
  mean, std = GAUSSIAN.mean, GAUSSIAN.std
  spread = lambda u: np.sqrt(std**2 + u**2)
  exact = mean + (y - mean) * spread(0.1) / spread(20)
  return x / schedule.at(times[-1]).alpha, exact


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ORDERS)
def test_every_solver_has_its_order_on_every_path(method, name):
  solver, order = ORDERS[method]
  with jax.enable_x64(True):
    errors = []
    for num in (64, 128):
      y, exact = walk(solver, SCHEDULES[name], num)
      errors.append(float(jnp.abs(y - exact).max()))
  assert np.log2(errors[0] / errors[1]) > order - 0.4
  assert errors[1] < 0.05


@pytest.mark.parametrize("method", ["ddim", "dpm3", "unipc2"])
def test_all_paths_lead_to_the_same_picture(method):
  # These solve in log u, and do not see what path it is.
  with jax.enable_x64(True):
    ends = [walk(ORDERS[method][0], s, 16)[0] for s in SCHEDULES.values()]
  for end in ends[1:]:
    np.testing.assert_allclose(end, ends[0], rtol=1e-8)


SPACES = {k: t for k, t in targets.TARGETS.items() if k != "mean"}


@pytest.mark.parametrize("name", [*SCHEDULES, "table"])
def test_the_exact_loss_is_its_closed_form_in_every_space(name):
  # Var(eps | x_t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2); F's is (d / alpha)^2
  # of that.
  schedule = dj.schedules.cosine(100) if name == "table" else SCHEDULES[name]
  n = 4096
  x0 = GAUSSIAN.sample(jax.random.key(0), (n, 2, 2, 1))
  eps = jax.random.normal(jax.random.key(1), x0.shape)
  for part in (0.1, 0.5, 0.9):
    t = int(part * 100) if name == "table" else part * schedule.T
    times = jnp.full(n, t)
    at = schedule.at(t)
    signal = at.alpha**2 * GAUSSIAN.std**2
    known = signal / (signal + at.sigma**2)
    for k, target in enumerate(every := list(SPACES.values())):
      predict = GAUSSIAN.predictor(schedule, target)
      for space in (target, every[k - 1]):  # the ratio of two is of each alone
        loss = dj.losses.weighted_mse(
          predict, schedule, x0, times, eps, space=space
        )
        want = known * (space.det(schedule, t) / at.alpha) ** 2
        error = loss.std() / np.sqrt(n)
        assert abs(loss.mean() - want) < 5 * error + 1e-5 * want


def test_noise_is_keyed_by_the_bits_of_the_time():
  draw = lambda s: samplers.noise(jax.random.key(0), s, jnp.arange(2), (4,))
  np.testing.assert_array_equal(draw(0.25), draw(jnp.float32(0.25)))
  near = np.nextafter(np.float32(0.25), np.float32(1))
  assert (draw(0.25) != draw(near)).all()
  np.testing.assert_array_equal(draw(0.0), draw(0))


normal_cdf = jax.scipy.stats.norm.cdf
QUANTILES = {
  "everywhere": (timesteps.everywhere, lambda t, T: t / T),
  "logit": (
    timesteps.logit_normal(-0.4, 0.7),
    lambda t, T: normal_cdf(jax.scipy.special.logit(t / T), -0.4, 0.7),
  ),
  "log": (
    timesteps.log_normal(),
    lambda t, T: normal_cdf(jnp.log(t), -1.2, 1.2),
  ),
}  # fmt: skip


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("name", QUANTILES)
def test_times_have_their_distribution(name, even):
  quantile, cdf = QUANTILES[name]
  draw, n, T = timesteps.drawn_by(quantile, even=even), 4096, 2.0
  u = np.sort(np.asarray(cdf(draw(jax.random.key(0), n, T), T)))
  away = np.abs(u - (np.arange(n) + 0.5) / n).max()
  # Kolmogorov and Smirnov: 1.95 / sqrt(n) in one draw of a thousand.
  assert away < (1.1 / n + 1e-5 if even else 1.95 / np.sqrt(n))


@pytest.mark.parametrize("aware", [False, True])
def test_a_step_of_training_takes_continuous_time(aware):
  schedule = continuous.flow()
  objective = dj.objectives.diffusion(
    lambda params, x_t, t, cond, key: params["w"] * x_t,
    schedule,
    target=targets.flow,
    draw=timesteps.drawn_by(timesteps.logit_normal()),
  )
  tx = dj.training.optimizer(lr=0.1)
  history = dj.importance.history(objective.bins) if aware else None
  state = dj.state.create({"w": jnp.zeros(())}, tx, (), history)
  batch = {"image": jnp.zeros((512, 2, 2, 1))}
  new, metrics = dj.training.train_step(
    state, batch, jax.random.key(0), objective=objective, tx=tx
  )
  # F = eps where x_0 is 0, and nothing is known of it yet.
  assert abs(float(metrics.loss) - 1) < 5 * np.sqrt(2 / 2048)
  assert metrics.quartile_count.sum() == 512
  assert (metrics.quartile_count > 50).all()
  if aware:
    assert new.history.counts.sum() == 512


def test_continuous_times_are_refused_where_they_mean_nothing():
  with pytest.raises(ValueError, match="T=1.0 is of continuous time; pass"):
    samplers.sample(
      dj.ddim_step, GAUSSIAN.predictor(SCHEDULES["flow"]), SCHEDULES["flow"],
      (1, 2), jax.random.key(0),
    )  # fmt: skip
  for visited in ([], [0.5, 0.5], [0.0, 1.0]):
    with pytest.raises(ValueError, match="must be distinct, above 0"):
      timesteps.real(visited)
  with pytest.raises(ValueError, match="k=0 must be above 0"):
    continuous.flow().shifted(0)
  np.testing.assert_array_equal(
    timesteps.real([0.2, 0.9]), [[0.9, 0.2], [0.2, 0.0]]
  )


@pytest.mark.parametrize(
  "make",
  [
    lambda: continuous.edm(sigma_min=1, sigma_max=0.1),
    lambda: continuous.edm(sigma_min=0),
    lambda: continuous.linear(beta_min=-1),
    lambda: continuous.linear(beta_max=float("nan")),
  ],
)
def test_noise_that_does_not_grow_is_refused(make):
  with pytest.raises(ValueError, match="_min=.* must be above 0 and below"):
    make()


STEPS_ONLY = {
  "q_step": lambda s, x, t: dj.q_step(s, x, t, x),
  "mean": lambda s, x, t: targets.mean.of(s, x, t, x),
  "bound": lambda s, x, t: dj.weights.bound()(s, t),
  "vlb": lambda s, x, t: dj.losses.vlb_at(GAUSSIAN.predictor(s), s, x, t, x),
  "simple": lambda s, x, t: dj.losses.simple(
    GAUSSIAN.predictor(s), s, x, jax.random.key(0)
  ),
  "antithetic": lambda s, x, t: timesteps.antithetic(jax.random.key(0), 2, s.T),
  "augment": lambda s, x, t: dj.upsampling.augment(jax.random.key(0), s, x, 1),
}


@pytest.mark.parametrize("name", STEPS_ONLY)
def test_what_needs_discrete_time_refuses_continuous_time(name):
  # A time less 1 is another time, or NaN; a whole step of 0..1 is T alone.
  x = jnp.zeros((2, 4, 4, 1))
  with pytest.raises(ValueError, match="needs discrete time, and T=1.0 is"):
    STEPS_ONLY[name](continuous.linear(), x, jnp.full(2, 0.5))


def test_whole_ends_are_those_of_continuous_time():
  whole = continuous.edm(sigma_min=1, sigma_max=80)
  assert not dj.schedules.is_discrete(whole)
  assert (whole.T, whole.first) == (80.0, 1.0)
  with pytest.raises(ValueError, match="T=80.0 is continuous: use a schedule"):
    timesteps.spaced(whole.T, 10)


@pytest.mark.parametrize("t", [-0.1, 1.01, 500, np.nan, np.array([0.5, 500])])
@pytest.mark.parametrize("name", ["cosine", "linear", "flow"])
def test_times_outside_the_path_are_refused(name, t):
  with pytest.raises(ValueError, match=r"t=.* is not in 0\.\.T=1\.0$"):
    SCHEDULES[name].at(t)
  assert SCHEDULES["edm"].at(90.0).sigma > 89  # training draws some above T


TO_THE_END = {"heun": solvers.heun_step, **{
  f"dpm{order}": solvers.dpm(order) for order in (2, 3)
}, "unipc": solvers.unipc(), "deis": solvers.deis()}  # fmt: skip


@pytest.mark.parametrize("name", TO_THE_END)
def test_steps_below_the_cleanest_time_are_as_good_as_others(name):
  # Two of these times are below ``first``: their nodes once coincided.
  schedule = continuous.linear()
  pairs = dj.spacing.named(schedule, "scales", 40)
  assert (pairs[:, 0] < schedule.first).sum() == 2
  x_T = jnp.linspace(-2.0, 2.0, 4).reshape(4, 1)
  x, _ = samplers.sample(
    TO_THE_END[name], GAUSSIAN.predictor(schedule), schedule, (4, 1),
    jax.random.key(0), pairs=pairs, x_T=x_T,
  )  # fmt: skip
  exact = oracles.flow_map(schedule, 0.3, 0.5, x_T, schedule.T, 0.0)
  np.testing.assert_allclose(x, exact, atol=0.02)
