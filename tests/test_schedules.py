import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import load

from diffusion_jax import process, schedules

# A maker of each kind, from the number of steps.
MAKERS = {
  "linear": schedules.linear,
  "linear_unscaled": lambda T, **kw: schedules.linear(T, scale=False, **kw),
  "quadratic": schedules.quadratic,
  "constant": schedules.constant,
  "warmup10": lambda T, **kw: schedules.warmup(T, fraction=0.1, **kw),
  "warmup50": lambda T, **kw: schedules.warmup(T, fraction=0.5, **kw),
  "jsd": schedules.jsd,
  "cosine": schedules.cosine,
  "sigmoid": schedules.sigmoid,
}


def betas(schedule):
  return np.asarray(1 - (schedule.alpha[1:] / schedule.alpha[:-1]) ** 2)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("T", [32, 100, 1000, 4000])
def test_tables_are_the_published_ones(name, T):
  published = load("schedules")

  def same(ours, table):
    want = published[f"{name}_{T}_{table}"]
    np.testing.assert_allclose(ours, want, rtol=1e-6, err_msg=table)

  with jax.enable_x64(True):
    schedule = MAKERS[name](T)
    t = jnp.arange(1, T + 1)
    same(process.beta(schedule, t, t - 1), "betas")
    same(schedule.alpha[1:] ** 2, "alphas_cumprod")
    same(schedule.alpha[1:], "sqrt_alphas_cumprod")
    same(schedule.sigma[1:], "sqrt_one_minus_alphas_cumprod")
    same(process.posterior_var(schedule, t, t - 1), "posterior_variance")
    log_var = process.posterior_log_var(schedule, t, t - 1)
    same(log_var, "posterior_log_variance_clipped")
    one, zero = jnp.ones((T, 1)), jnp.zeros((T, 1))
    mean_of = lambda x0, x_t: process.q_posterior(
      schedule, x0, x_t, t, t - 1
    ).mean[:, 0]
    same(mean_of(one, zero), "posterior_mean_coef1")
    same(mean_of(zero, one), "posterior_mean_coef2")


@pytest.mark.parametrize("spacing", ["linear|1000|ddim50", "cosine|4000|100"])
def test_skipping_steps_gives_the_published_respaced_betas(spacing):
  name, T, _ = spacing.split("|")
  want = load("schedules")[f"spaced|{spacing}|betas"]
  with jax.enable_x64(True):
    schedule = MAKERS[name](int(T))
    if spacing.endswith("ddim50"):
      t = np.arange(0, 1000, 20) + 1
    else:
      t = np.rint(np.arange(100) * 3999 / 99).astype(int) + 1
    s = np.append(0, t[:-1])
    got = process.beta(schedule, jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_every_schedule_runs_from_clean_to_noise(name):
  T = 200
  schedule = MAKERS[name](T)
  chex.assert_shape(
    [schedule.alpha, schedule.sigma, schedule.log_snr], (T + 1,)
  )
  chex.assert_tree_all_finite((schedule.alpha, schedule.sigma))
  assert schedule.T == T
  assert schedule.alpha[0] == 1 and schedule.sigma[0] == 0
  assert jnp.isposinf(schedule.log_snr[0])
  assert (jnp.diff(schedule.alpha) < 0).all()
  assert (jnp.diff(schedule.sigma) > 0).all()
  assert (jnp.diff(schedule.log_snr) < 0).all()
  power = schedule.alpha**2 + schedule.sigma**2
  np.testing.assert_allclose(power, 1.0, rtol=1e-6)


def test_each_formula_gives_its_betas():
  with jax.enable_x64(True):
    cases = {
      "linear_unscaled": np.linspace(1e-4, 0.02, 50),
      "linear": np.linspace(1e-4, 0.02, 50) * 20,
      "quadratic": np.linspace(1e-2, 0.02**0.5, 50) ** 2,
      "constant": np.full(50, 0.02),
      "warmup10": np.r_[np.linspace(1e-4, 0.02, 5), np.full(45, 0.02)],
      "warmup50": np.r_[np.linspace(1e-4, 0.02, 25), np.full(25, 0.02)],
      "jsd": np.r_[1 / np.arange(50.0, 1, -1), 0.999],
    }
    for name, want in cases.items():
      np.testing.assert_allclose(
        betas(MAKERS[name](50)), want, rtol=1e-9, err_msg=name
      )


def test_jsd_loses_signal_power_linearly():
  with jax.enable_x64(True):
    abar = schedules.jsd(100).alpha ** 2
    np.testing.assert_allclose(abar[:-1], np.linspace(1, 0.01, 100), rtol=1e-9)


def test_sigmoid_is_symmetric_in_signal_and_noise():
  # S(u) + S(1 - u) = 1 for start = -end, so abar(u) + abar(1 - u) = 1.
  with jax.enable_x64(True):
    abar = schedules.sigmoid(100).alpha[:-1] ** 2
    np.testing.assert_allclose(abar[1:] + abar[1:][::-1], 1, rtol=1e-9)


def test_only_the_last_cosine_beta_is_clipped():
  with jax.enable_x64(True):
    b = betas(schedules.cosine(1000))
  assert (b[:-1] < 0.999).all()
  np.testing.assert_allclose(b[-1], 0.999, rtol=1e-9)


def test_float32_tables_are_rounded_once():
  with jax.enable_x64(True):
    exact = schedules.cosine(4000)
  rounded = schedules.cosine(4000)
  chex.assert_type([rounded.alpha, rounded.sigma, rounded.log_snr], jnp.float32)
  half_ulp = 2.0**-24
  for name in ("alpha", "sigma", "log_snr"):
    want = np.asarray(getattr(exact, name))[1:]
    got = np.asarray(getattr(rounded, name), np.float64)[1:]
    np.testing.assert_allclose(got, want, rtol=1.01 * half_ulp, err_msg=name)


def test_beta_from_float32_log_snr_keeps_three_digits():
  # The price of one formula for all pairs: neighbouring log-SNRs cancel.
  with jax.enable_x64(True):
    schedule = schedules.cosine(4000)
    t = jnp.arange(1, 4001)
    exact = np.asarray(process.beta(schedule, t, t - 1))
  t = jnp.arange(1, 4001)
  got = process.beta(schedules.cosine(4000), t, t - 1)
  np.testing.assert_allclose(got, exact, rtol=1e-3)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_multiplies_sigma_by_alpha(shift):
  with jax.enable_x64(True):
    plain, moved = schedules.cosine(100), schedules.cosine(100, shift=shift)
    np.testing.assert_allclose(
      moved.log_snr[1:], plain.log_snr[1:] - 2 * np.log(shift), rtol=1e-12
    )
    np.testing.assert_allclose(moved.alpha**2 + moved.sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(
      moved.sigma[1:] / moved.alpha[1:],
      shift * plain.sigma[1:] / plain.alpha[1:],
      rtol=1e-12,
    )
    assert (moved.alpha[0], moved.sigma[0]) == (1, 0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_is_none_is_refused(shift):
  with pytest.raises(ValueError, match=f"shift={shift}"):
    schedules.cosine(100, shift=shift)


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ([0.1, 1.5], r"betas\[1\] = 1.5 \(step t = 2\) is outside \(0, 1\)"),
    ([0.0, 0.1], r"betas\[0\] = 0.0"),
    ([0.1, -0.2, 3.0], r"betas\[1\] = -0.2"),
    ([0.1, float("nan")], r"betas\[1\] = nan"),
    ([0.1, 1.0], r"betas\[1\] = 1.0"),
    ([], r"shape \(0,\)"),
    ([[0.1]], r"shape \(1, 1\)"),
  ],
)
def test_bad_betas_are_refused_by_value(bad, message):
  with pytest.raises(ValueError, match=message):
    schedules.from_betas(bad)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("T", [0, -3, 2.5, 10.0, "10"])
def test_bad_lengths_are_refused(name, T):
  with pytest.raises(ValueError, match=f"{T=}"):
    MAKERS[name](T)


@pytest.mark.parametrize(
  "t", [-1, 101, np.array([0, 101]), jnp.array([0, 101])]
)
def test_a_step_that_is_none_is_refused(t):
  with pytest.raises(ValueError, match=r"t=-?\d+ is not in 0\.\.100"):
    schedules.cosine(100).at(t)


@pytest.mark.parametrize("t", [2.5, 2.0, np.ones(3), jnp.ones(3)])
def test_a_step_that_is_not_whole_is_refused(t):
  with pytest.raises(ValueError, match="t is float.*; steps are whole numbers"):
    schedules.cosine(100).at(t)


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: schedules.cosine(10, offset=-1), "offset=-1 must be"),
    (lambda: schedules.sigmoid(10, tau=0), "tau=0 must be above 0"),
    (lambda: schedules.sigmoid(10, start=1, end=1), "start=1 other than end=1"),
  ],
)
def test_a_curve_that_is_none_is_refused(make, named):
  with pytest.raises(ValueError, match=named):
    make()


def test_a_scaled_linear_schedule_too_short_is_refused():
  with pytest.raises(ValueError, match=r"betas\[0\] = 20"):
    schedules.linear(1)  # its one step is the last, not the cleanest
  with pytest.raises(ValueError, match=r"betas\[5\] = 1.1"):
    schedules.linear(10)


def test_a_schedule_is_a_pytree():
  schedule = schedules.linear(100)
  doubled = jax.tree.map(lambda x: 2 * x, schedule)
  assert isinstance(doubled, schedules.Schedule)
  chex.assert_max_traces(lambda s: s.alpha[3], n=1)
  f = jax.jit(chex.assert_max_traces(lambda s: s.alpha[3], n=1))
  f(schedule), f(schedules.cosine(100))


@pytest.mark.parametrize("dtype", [int, jnp.bfloat16, np.float16])
def test_tables_that_round_steps_together_are_refused(dtype):
  with pytest.raises(ValueError, match="dtype=.* must be float32 or float64"):
    schedules.linear(100, dtype=dtype)
