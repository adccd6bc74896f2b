"""The interface of every noise schedule.

Discrete schedules are in ``schedules``, continuous ones in ``continuous``.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Steps of a table, or real numbers; a scalar or one per example.
Time = (
  Int[Array, " B"] | Int[Array, ""] | int | np.integer
  | Float[Array, " B"] | Float[Array, ""] | float
)  # fmt: skip


class Level(NamedTuple):
  """How noisy a time is: x_t = alpha x_0 + sigma eps.

  Attributes:
    alpha: The factor of the signal.
    sigma: The standard deviation of the noise.
    log_snr: log(alpha^2 / sigma^2), without the cancellation of a quotient.
  """

  alpha: Float[Array, "..."]
  sigma: Float[Array, "..."]
  log_snr: Float[Array, "..."]


@runtime_checkable
class Schedule(Protocol):
  """What the rest of the library needs from a noise schedule.

  Attributes:
    T: The noisiest time; 0 is clean data.
    first: The cleanest time at which a network is called.
  """

  @property
  def T(self) -> int | float: ...  # noqa: D102

  @property
  def first(self) -> int | float: ...  # noqa: D102

  def at(self, t: Time) -> Level:
    """Signal and noise at time t: steps, or real numbers."""
    ...

  def part(self, a: Float[Array, "..."], /) -> Float[Array, "..."]:
    """The t / T at which arcsinh(sigma / alpha) is a."""
    ...

  def time(self, log_snr: Float[Array, "..."], /) -> Float[Array, "..."]:
    """The time at which the log-SNR has this value."""
    ...

  def noise_scale(self, t: Time) -> Float[Array, ""] | float:
    """Standard deviation of the noise from which sampling starts at t."""
    ...


def is_discrete(schedule: Schedule) -> bool:
  """Whether the schedule is discrete: its times are steps of a table."""
  return isinstance(schedule.T, int)


def before(schedule: Schedule, t: Time) -> Time:
  """The step before, t - 1.

  Raises:
    ValueError: In continuous time, where t - 1 is any other time, or none.
  """
  check_discrete("t - 1", schedule.T)
  return t - 1


def first_if_clean(schedule: Schedule, t: Time) -> Array:
  """t, or ``first`` where t is 0, at which no network is called."""
  return jnp.where(t > 0, t, schedule.first)


def check_discrete(what: str, T: int | float) -> None:
  """Refuses a continuous schedule where only steps have a meaning.

  Raises:
    ValueError: With what it is that needs them.
  """
  if isinstance(T, float):
    raise ValueError(
      f"{what} needs discrete time, and {T=} is continuous: use a schedule of "
      "diffusion_jax.schedules"
    )
