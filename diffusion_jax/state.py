"""The state of training: what every step updates and a checkpoint saves."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffusion_jax import averages
from diffusion_jax.importance import LossHistory

Params = Any


class TrainState(flax.struct.PyTreeNode):
  """The state of training, a pytree.

  It has no random key: keys are derived from the run's seed and ``step``, so
  that a resumed run is the same run.

  Attributes:
    step: Number of updates so far.
    params: The network's parameters.
    ema: Moving averages of params, named by their rate ("0.9999") or, for
      those of ``averages``, their width ("std0.1").
    opt_state: The optimizer's state.
    history: An ``importance.LossHistory``, if past losses decide which times
      are drawn.
    teacher: Frozen parameters of the network to learn from.
  """

  # Any: libraries make trees of shapes or save options of the same structure.
  step: Any
  params: Params
  ema: dict[str, Params]
  opt_state: Any
  history: Any = None
  teacher: Any = None


def create(
  params: Params,
  tx,
  ema_rates,
  history: LossHistory | None = None,
  teacher: Params = None,
) -> TrainState:
  """The state before the first step; every EMA starts at the parameters.

  With another start, an EMA of rate 0.9999 would still consist of it by 37 %
  after 10,000 steps.

  Raises:
    ValueError: If a rate is neither a number in [0, 1) nor a width.
  """
  for rate in ema_rates:
    std = averages.std_in(rate) if isinstance(rate, str) else None
    if std is not None:
      averages.exponent(std)
    elif not isinstance(rate, int | float) or not 0 <= rate < 1:
      raise ValueError(
        f"EMA rate {rate!r} must be in [0, 1), a number, or a width as 'std0.1'"
      )
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # Copies: the step donates the state, and a buffer can be donated only once.
    ema={str(r): jax.tree.map(jnp.copy, params) for r in ema_rates},
    opt_state=tx.init(params),
    history=history,
    teacher=jax.tree.map(jnp.copy, teacher),
  )


def update_average(
  name: str, average: Params, params: Params, step, *, warmup: bool
) -> Params:
  """The average of this name after one more update; see ``update_ema``."""
  std = averages.std_in(name)
  if std is None:
    return update_ema(average, params, float(name), step, warmup=warmup)
  new = averages.weight(averages.exponent(std), step + 1)
  return jax.tree.map(lambda e, p: e + new * (p - e), average, params)


def update_ema(
  ema: Params, params: Params, rate: float, step, *, warmup: bool
) -> Params:
  """Updates an average: ema <- rate ema + (1 - rate) params.

  Args:
    ema: The average so far.
    params: The newest parameters.
    rate: In [0, 1).
    step: Number of updates before this one.
    warmup: Use min(rate, (1 + step) / (10 + step)) instead, so that a short
      run is not dominated by its first parameters.

  Returns:
    The new average.
  """
  now = jnp.minimum(rate, (1 + step) / (10 + step)) if warmup else rate
  return jax.tree.map(lambda e, p: e + (1 - now) * (p - e), ema, params)
