"""Spacings: the published ones exactly, the others by what defines them."""

import jax
import numpy as np
import pytest
from oracles import CONTINUOUS
from reference import notes

from diffusion_jax import continuous, schedules, spacing, timesteps

PUBLISHED = notes("schedules")["spaced_timesteps"]
LONG = schedules.linear(100_000)


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_strings_mean_what_they_did(case):
  T, _, spec = case.partition(":")
  pairs = spacing.named(schedules.linear(int(T)), spec)
  # The published code counts from 0.
  assert sorted(pairs[:, 0] - 1) == PUBLISHED[case]
  np.testing.assert_array_equal(pairs[1:, 0], pairs[:-1, 1])
  assert pairs[-1, 1] == 0


@pytest.mark.parametrize("name", spacing.NAMES)
@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_any_number_of_steps_is_a_walk(name, T):
  schedule = schedules.cosine(T)
  for num in range(2 if name == "leading" and T > 1 else 1, T + 1):
    pairs = spacing.named(schedule, name, num)
    assert pairs.shape == (num, 2)
    assert pairs[0, 0] == T or name == "leading"
    assert pairs[-1, 1] == 0
    assert (pairs[:, 0] > pairs[:, 1]).all()
    np.testing.assert_array_equal(pairs[1:, 0], pairs[:-1, 1])


def ratio(t):
  return np.exp(-np.asarray(LONG.log_snr, np.float64)[t] / 2)


@pytest.mark.parametrize(
  ("name", "variable"),
  [
    ("even", lambda t: t),
    ("leading", lambda t: t),
    ("trailing", lambda t: t),
    ("quadratic", np.sqrt),
    ("log_snr", lambda t: np.log(ratio(t))),
    ("karras", lambda t: ratio(t) ** (1 / 7)),
    ("scales", lambda t: spacing.clock(ratio(t), fine=0.07)),
  ],
)
def test_a_spacing_is_even_in_its_variable(name, variable):
  # Not at the ends: a whole step is a long way where the variable is steep.
  t = spacing.named(LONG, name, 10)[1:-2, 0]
  strides = np.diff(variable(t))
  np.testing.assert_allclose(strides, strides.mean(), rtol=0.02)


def test_the_clock_runs_where_data_have_scales():
  u = np.geomspace(1e-4, 1e4, 17)
  speed = np.gradient(spacing.clock(u), np.log(u))
  assert speed[(u > 0.1) & (u < 5)].min() > 0.75
  assert speed[[0, -1]].max() < 0.01


@pytest.mark.parametrize(
  ("spec", "num", "message"),
  [
    ("ddim400", None, "no whole stride takes 400 of T=1000.* is ddim334$"),
    ("ddim0", None, "no whole stride takes 0 of T=1000.* is ddim2$"),
    ("ddim1", None, "no whole stride takes 1 of T=1000.* is ddim2$"),
    ("leading", 1, "'leading' needs at least 2 steps"),
    ("nonsense", None, "'nonsense' is not one of even, .*scales, nor like 250"),
    ("scales", None, "needs a number of steps"),
    ("scales", 0, "0 sampling steps must be in 1..T=1000"),
    ("scales", 1001, "1001 sampling steps must be in 1..T=1000"),
    ("2000", None, "2000 sampling steps"),
    ("10,600", None, "600 steps do not fit a section of 500"),
    ("10,0", None, "0 steps do not fit a section of 500"),
    ("250", 100, "spacing '250' has 250 steps, not 100"),
    ("10,,10", None, "'10,,10' is not one of"),
  ],
)
def test_spacings_that_mean_nothing_are_refused(spec, num, message):
  with pytest.raises(ValueError, match=message):
    spacing.named(schedules.linear(1000), spec, num)


def test_the_nearest_legal_stride_is_named():
  schedule = schedules.linear(1000)
  legal = {len(range(0, 1000, i)) for i in range(1, 1000)}
  for num in range(1, 1001):
    if num in legal:
      assert len(spacing.named(schedule, f"ddim{num}")) == num
      continue
    nearest = min(legal, key=lambda n: (abs(n - num), n))
    with pytest.raises(ValueError, match=f"nearest is ddim{nearest}$"):
      spacing.named(schedule, f"ddim{num}")


def test_even_is_the_published_number():
  np.testing.assert_array_equal(
    spacing.named(schedules.linear(1000), 250), timesteps.spaced(1000, 250)
  )


def test_what_is_left_of_the_clock_does_not_stand_still():
  u = np.append(0, np.logspace(-4, 9, 200))
  exact = spacing.clock_left(u)
  np.testing.assert_allclose(
    exact, np.log(spacing.COARSE / spacing.FINE) - spacing.clock(u), atol=1e-14
  )
  single = spacing.clock_left(u.astype(np.float32))
  np.testing.assert_allclose(single, exact, rtol=5e-7)
  assert (np.diff(single[1:]) < 0).all()


def test_a_walk_in_continuous_time_is_known_inside_a_program():
  schedule, walks = continuous.edm(), []
  jax.eval_shape(lambda: walks.append(spacing.named(schedule, "scales", 3)))
  np.testing.assert_array_equal(walks[0], spacing.named(schedule, "scales", 3))
  with pytest.raises(ValueError, match="spacing '7' has 7 steps, not 3"):
    spacing.named(schedule, "7", 3)


OF_REAL_TIME = CONTINUOUS | {
  "noisy": continuous.flow(noise=2.0),
  "tiny": continuous.edm(sigma_min=1e-5, sigma_max=0.7),
}


@pytest.mark.parametrize("num", [1, 2, 5, 24, 100])
@pytest.mark.parametrize("name", spacing.CONTINUOUS)
@pytest.mark.parametrize("schedule", OF_REAL_TIME)
def test_a_walk_in_continuous_time_keeps_its_ends(schedule, name, num):
  schedule = OF_REAL_TIME[schedule]
  # These include ``first``; the others go on to 0.
  least = schedule.first if name in ("log_snr", "karras") else 0
  pairs = spacing.named(schedule, name, num)
  assert len(pairs) == num and pairs[-1, 1] == 0
  for times in (pairs[:, 0], np.float32(pairs[:, 0])):
    assert (np.diff(times) < 0).all()
    kind = times.dtype.type
    assert ((times >= kind(least)) & (times <= kind(schedule.T))).all()
    if least and num > 1:
      assert times[-1] == kind(least)
    if np.isfinite(schedule.at(schedule.T).log_snr) or name in (
      "even", "quadratic",
    ):  # fmt: skip
      assert times[0] == kind(schedule.T)


@pytest.mark.parametrize("name", spacing.NAMES)
def test_each_name_is_a_function_of_any_kind_of_time(name):
  for schedule in (continuous.cosine(), continuous.edm(), LONG):
    if not isinstance(schedule, schedules.Table) and name[-3:] == "ing":
      with pytest.raises(ValueError, match="not one of even, .* continuous"):
        getattr(spacing, name)(schedule, 5)
      continue
    np.testing.assert_array_equal(
      getattr(spacing, name)(schedule, 5), spacing.named(schedule, name, 5)
    )


def test_karras_takes_its_exponent_in_any_kind_of_time():
  # Eq. 5 of the paper, with its range of sigma.
  ends = 80 ** (1 / 3), 0.002 ** (1 / 3)
  want = np.linspace(*ends, 4) ** 3
  pairs = spacing.karras(continuous.edm(), 4, rho=3.0)
  np.testing.assert_allclose(pairs[:, 0], want, rtol=1e-5)


@pytest.mark.parametrize("spec", spacing.NAMES)
@pytest.mark.parametrize("num", [2.5, 7.0, True, 0, -3, 101])
def test_numbers_of_steps_that_there_are_not_are_refused(spec, num):
  for schedule in (schedules.linear(100), continuous.flow()):
    table = isinstance(schedule, schedules.Table)
    if not table and (spec not in spacing.CONTINUOUS or num == 101):
      continue
    with pytest.raises(ValueError, match=f"^{num} sampling steps must be"):
      spacing.named(schedule, spec, num)
    with pytest.raises(ValueError, match=f"^{num} sampling steps must be"):
      getattr(spacing, spec)(schedule, num)
