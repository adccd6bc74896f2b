"""Where to put few sampling steps: [S, 2] pairs (t, s) by name.

A spacing places S steps among the T of a schedule. Steps are whole numbers,
because the network was trained on those: times between them are rounded, and
moved apart where two would coincide. With u = sigma / alpha,

  ==========  =============================================================
  even        t even, both ends included: the published "S"
  leading     t even, 1 included: DDIM's strides
  trailing    t even, T included
  quadratic   sqrt(t) even (DDIM, appendix D.2, but starting at T)
  log_snr     log u even (DPM-Solver)
  karras      u^(1/7) even (Karras et al. 2022, eq. 5)
  scales      arcsinh(u / fine) - arcsinh(u / coarse) even, see ``scales``
  ==========  =============================================================

The strings of the published code work too: "250", "10,10,15,20", "ddim25". A
continuous schedule takes those in ``CONTINUOUS``, without rounding; they go to
0 from T, or from u = 1000 if no signal is left at T.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import timesteps
from diffusion_jax.schedules import Schedule, Table
from diffusion_jax.timesteps import Pairs, RealPairs

# The range of standard deviations expected in data: from the noise of a pixel
# to the brightness that all pixels share.
FINE, COARSE = 0.03, 20.0
# In continuous time, sampling starts at this u if that of T is infinite.
NOISIEST = 1000.0


def clock(u, *, fine: float = FINE, coarse: float = COARSE):
  """A function of u in which x0_hat changes evenly, for data of many scales.

  Along a direction in which data are Gaussian with standard deviation c,
  x0_hat changes while u = sigma / alpha passes c: it is c^2 / (c^2 + u^2) of
  the sample. Data have many such c. If they are spread evenly in log c from
  ``fine`` to ``coarse``, and u^2 / (u^2 + c^2) measures the progress of each,
  the best density of steps in log u is

    u / sqrt(u^2 + fine^2) - u / sqrt(u^2 + coarse^2),

  flat between the two and falling outside: like u below, so that u = 0 is at a
  finite distance, and like 1 / u^2 above, where there is only noise. This is
  its integral.

  Args:
    u: sigma / alpha, from 0 on.
    fine: Smallest standard deviation, in units of images in [-1, 1].
    coarse: Largest; grows with the number of pixels that vary together.

  Returns:
    arcsinh(u / fine) - arcsinh(u / coarse): from 0 to log(coarse / fine).
  """
  return np.arcsinh(u / fine) - np.arcsinh(u / coarse)


def clock_left(u, *, fine: float = FINE, coarse: float = COARSE, xp: Any = np):
  """log(coarse / fine) - ``clock``: the distance from u to pure noise.

  It falls like (coarse^2 - fine^2) / 4 u^2. In float32 ``clock`` is constant
  where that is below 1e-7, from u = 30,000 on; this is accurate to a few
  rounding errors of float32 at every u.

  Args:
    u: As for ``clock``.
    fine: As for ``clock``.
    coarse: As for ``clock``.
    xp: numpy, or jax.numpy inside a program.

  Returns:
    log (u + sqrt(u^2 + coarse^2)) / (u + sqrt(u^2 + fine^2)), as the log1p of
    a quotient in which nothing cancels.
  """
  to_fine, to_coarse = xp.hypot(u, fine), xp.hypot(u, coarse)
  apart = (coarse**2 - fine**2) / (to_coarse + to_fine)  # to_coarse - to_fine
  return xp.log1p(apart / (u + to_fine))


def named(
  schedule: Schedule, spec: str | int, num: int | None = None
) -> Pairs | RealPairs:
  """The pairs of a spacing: a name, a published string or a number.

  Args:
    schedule: The noise schedule.
    spec: A name in ``NAMES``, which needs ``num``; "250" or 250, that many
      even steps; "10,10,15,20", that many in each of four equal sections;
      "ddim25", every 40th of 1000 steps.
    num: How many steps; not needed where spec contains it.

  Returns:
    [S, 2] rows (t, s).

  Raises:
    ValueError: If spec is unknown, or does not have that many steps.

  >>> from diffusion_jax import schedules
  >>> named(schedules.linear(1000), "ddim2").tolist()
  [[501, 1], [1, 0]]
  """
  spec = str(spec)
  if not isinstance(schedule, Table):
    return _real(schedule, spec, num)
  T = schedule.T
  if spec in NAMES:
    if num is None:
      raise ValueError(f"spacing {spec!r} needs a number of steps")
    return NAMES[spec](schedule, num)
  pairs = _published(T, spec)
  if num is not None and num != len(pairs):
    raise ValueError(f"spacing {spec!r} has {len(pairs)} steps, not {num}")
  return pairs


def _real(
  schedule: Schedule, spec: str, num: int | None, **settings: Any
) -> RealPairs:
  """The pairs in continuous time of a name, or of a number of even steps."""
  if spec.isdecimal():
    if num not in (None, int(spec)):
      raise ValueError(f"spacing {spec!r} has {spec} steps, not {num}")
    spec, num = "even", int(spec)
  if spec not in CONTINUOUS:
    raise ValueError(
      f"spacing {spec!r} is not one of {', '.join(CONTINUOUS)}, those of "
      "continuous time"
    )
  if num is None:
    raise ValueError(f"spacing {spec!r} needs a number of steps")
  timesteps.check_count(num, np.inf)
  with jax.ensure_compile_time_eval():  # pairs are known before tracing
    return timesteps.real(CONTINUOUS[spec](schedule, num, **settings))


def _times(schedule: Schedule, axis, back, num: int, *, to_zero=False):
  """Times even in axis(u), from the noisiest to ``first``, or to 0."""
  fine, noisy = (
    float(np.exp(-0.5 * float(schedule.at(t).log_snr)))
    for t in (schedule.first, schedule.T)
  )
  top = min(noisy, NOISIEST)
  if to_zero:
    targets = np.linspace(axis(top), axis(0.0), num + 1)[:-1]
  else:
    targets = np.linspace(axis(top), axis(fine), num)
  u = np.asarray([top, *back(targets[1:])])
  times = np.array(schedule.time(-2 * jnp.log(u)), float)
  if num > 1 and not to_zero:  # in float32 ``time`` is no exact inverse
    times[-1] = schedule.first
  times[0] = schedule.T if top == noisy else times[0]
  return times


def _scale_times(schedule: Schedule, num: int):
  """As ``scales``; ``clock`` has no inverse in closed form."""
  fine = max(FINE, 0.7 / num)
  u = np.append(0, np.geomspace(1e-6, 1e6, 20_000))
  return _times(
    schedule,
    lambda x: clock(x, fine=fine),
    lambda a: np.interp(a, clock(u, fine=fine), u),
    num,
    to_zero=True,
  )


def _published(T: int, spec: str) -> Pairs:
  """The pairs of a respacing string of the published code."""
  stride = spec.removeprefix("ddim")
  if stride != spec and stride.isdecimal():
    return _strided(T, int(stride))
  counts = spec.split(",")
  if not all(count.strip().isdecimal() for count in counts):
    raise ValueError(
      f"spacing {spec!r} is not one of {', '.join(NAMES)}, nor like 250, "
      "10,10,15,20 or ddim25"
    )
  if len(counts) == 1:
    return timesteps.spaced(T, int(spec))
  return _sections(T, [int(count) for count in counts])


def _sections(T: int, counts: list[int]) -> Pairs:
  """``counts[i]`` even steps in the i-th of equal sections of 1..T."""
  size, longer = divmod(T, len(counts))
  visited, start = [], 1
  for i, count in enumerate(counts):
    length = size + (i < longer)
    if not 1 <= count <= length:
      raise ValueError(f"{count} steps do not fit a section of {length}")
    visited.extend(start + timesteps.strides(length, count))
    start += length
  return timesteps.walk(visited)


def _strided(T: int, num: int) -> Pairs:
  """Every i-th step from 1 on, if an integer i gives ``num`` of them.

  As in the published code, i = T does not count: it would take step 1 alone,
  which has almost no noise to start from.
  """
  legal = {-(-T // i): i for i in range(max(T - 1, 1), 0, -1)}
  if num not in legal:
    nearest = min(legal, key=lambda n: (abs(n - num), n))
    raise ValueError(
      f"no whole stride takes {num} of {T=} steps; the nearest is ddim{nearest}"
    )
  return timesteps.walk(np.arange(1, T + 1, legal[num]))


def _nearest(T: int, targets) -> Pairs:
  """The distinct steps nearest to falling targets, the first at T."""
  t = np.rint(np.asarray(targets)).astype(int)
  t[0] = T
  for i in range(1, len(t)):
    t[i] = min(t[i], t[i - 1] - 1)
  t[-1] = max(t[-1], 1)
  for i in range(len(t) - 2, -1, -1):
    t[i] = max(t[i], t[i + 1] + 1)
  return timesteps.walk(t)


def _of_any_time(place: Callable[..., Pairs]) -> Callable[..., Any]:
  """Checks the number; in continuous time, the spacing of the same name."""

  @functools.wraps(place)
  def placed(schedule: Schedule, num: int, **settings: Any):
    if isinstance(schedule, Table):
      timesteps.check_count(num, schedule.T)
      return place(schedule, num, **settings)
    return _real(schedule, place.__name__, num, **settings)

  return placed


@_of_any_time
def even(schedule: Table, num: int) -> Pairs:
  """Even in t, both ends included."""
  return timesteps.spaced(schedule.T, num)


@_of_any_time
def leading(schedule: Table, num: int) -> Pairs:
  """Every (T // num)-th step from 1 on; the noisiest are left out.

  Raises:
    ValueError: If num is 1 and T is not: that would be step 1, almost without
      noise.
  """
  if num == 1 < schedule.T:
    raise ValueError(
      "spacing 'leading' needs at least 2 steps, as one is t = 1, which has "
      "no noise to start from; for a single step use 'trailing'"
    )
  return timesteps.walk(1 + schedule.T // num * np.arange(num))


@_of_any_time
def trailing(schedule: Table, num: int) -> Pairs:
  """Every (T / num)-th step down from T; the last step is a full one."""
  T = schedule.T
  return _nearest(T, T - T / num * np.arange(num))


@_of_any_time
def quadratic(schedule: Table, num: int) -> Pairs:
  """sqrt(t) even from T to 1."""
  return _nearest(schedule.T, np.linspace(schedule.T**0.5, 1, num) ** 2)


def _ratios(schedule: Table):
  """sigma_t / alpha_t for t = 0..T, in float64; rising from 0.

  If no signal is left at T, its ratio is that of T - 1.
  """
  ratios = np.exp(-np.asarray(schedule.log_snr, np.float64) / 2)
  return np.where(np.isinf(ratios), ratios[-2], ratios)


@_of_any_time
def log_snr(schedule: Table, num: int) -> Pairs:
  """The log-SNR even from T to 1 (DPM-Solver, appendix D)."""
  table = np.log(_ratios(schedule)[1:])
  targets = np.linspace(table[-1], table[0], num)
  return _nearest(
    schedule.T, 1 + np.interp(targets, table, np.arange(len(table)))
  )


@_of_any_time
def karras(schedule: Table, num: int, *, rho: float = 7.0) -> Pairs:
  """(sigma / alpha)^(1/rho) even from T to 1 (Karras et al. 2022, eq. 5)."""
  table = _ratios(schedule)[1:] ** (1 / rho)
  targets = np.linspace(table[-1], table[0], num)
  return _nearest(
    schedule.T, 1 + np.interp(targets, table, np.arange(len(table)))
  )


@_of_any_time
def scales(schedule: Table, num: int) -> Pairs:
  """``clock`` even from T to 0; docs/solvers.md compares it with the others.

  With few steps there are none to spare for the finest scales: fine is
  0.7 / num where that is more than ``FINE``.
  """
  table = clock(_ratios(schedule), fine=max(FINE, 0.7 / num))
  # The num steps end at u = 0, from which no step starts.
  targets = np.linspace(table[-1], 0, num + 1)[:-1]
  return _nearest(schedule.T, np.interp(targets, table, np.arange(len(table))))


# (schedule, num) -> falling times, for continuous schedules.
CONTINUOUS = {
  "even": lambda schedule, num: schedule.T * (1 - np.arange(num) / num),
  "quadratic": lambda schedule, num: (
    schedule.T * (1 - np.arange(num) / num) ** 2
  ),
  "log_snr": lambda schedule, num: _times(schedule, np.log, np.exp, num),
  "karras": lambda schedule, num, rho=7.0: _times(
    schedule, lambda u: u ** (1 / rho), lambda a: a**rho, num
  ),
  "scales": _scale_times,
}

NAMES = {
  "even": even,
  "leading": leading,
  "trailing": trailing,
  "quadratic": quadratic,
  "log_snr": log_snr,
  "karras": karras,
  "scales": scales,
}
