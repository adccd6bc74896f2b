"""One step of training, a pure function (DDPM, algorithm 1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from diffusion_jax import importance
from diffusion_jax.clipping import global_norm
from diffusion_jax.deprecated import moved
from diffusion_jax.objectives import Objective
from diffusion_jax.optimizers import optimizer as optimizer
from diffusion_jax.state import TrainState, update_average


class Metrics(NamedTuple):
  """What a step reports, on the device.

  Attributes:
    loss: Mean over the batch; an unbiased estimate of that over uniform t,
      however t is drawn.
    quartile_loss: Sum over the examples in each quarter of time, the cleanest
      first.
    quartile_count: How many examples are in each.
    grad_norm: Global norm of the gradient, before clipping.
    param_norm: Global norm of the parameters, after the update.
  """

  loss: Float[Array, ""]
  quartile_loss: Float[Array, "4"]
  quartile_count: Float[Array, "4"]
  grad_norm: Float[Array, ""]
  param_norm: Float[Array, ""]


def train_step(
  state: TrainState,
  batch: Any,
  key: Key[Array, ""],
  *,
  objective: Objective,
  tx: optax.GradientTransformation,
  micro_batches: int = 1,
  ema_warmup: bool = False,
) -> tuple[TrainState, Metrics]:
  """Takes one gradient step.

  All randomness comes from fold_in(key, state.step), and the objective draws
  once for the whole batch: the number of micro-batches changes only the memory
  (and the draws of dropout).

  Args:
    state: The state so far.
    batch: The data of the objective, such as "image", [B, H, W, C] in [-1, 1],
      and "label", [B].
    key: The run's training key, the same at every step.
    objective: What to minimise, see ``objectives``.
    tx: The optimizer.
    micro_batches: Split the batch into this many pieces, processed one at a
      time; the gradient is the exact mean over the whole batch.
    ema_warmup: See ``state.update_ema``.

  Returns:
    The next state, and metrics.

  Raises:
    ValueError: If micro_batches does not divide the batch.
  """
  drawn = objective.draw(key, state, batch)
  key_dropout = jax.random.split(jax.random.fold_in(key, state.step), 3)[2]

  def loss_fn(params, part):
    number, examples, scale = part
    dropout_key = jax.random.fold_in(key_dropout, number)
    loss = objective.loss(params, examples, dropout_key)
    return (scale * loss).mean(), loss

  parts = jax.tree.map(
    lambda x: _cut(x, micro_batches), (drawn.examples, drawn.scale)
  )
  grads, loss = _mean_gradient(
    loss_fn, state.params, (jnp.arange(micro_batches), *parts)
  )
  loss = _join(loss)

  history = state.history
  if history is not None:
    history = importance.update(history, drawn.bin, loss)

  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = {
    name: update_average(name, average, params, state.step, warmup=ema_warmup)
    for name, average in state.ema.items()
  }
  quartile = jax.nn.one_hot(drawn.bin * 4 // objective.bins, 4)
  metrics = Metrics(
    loss=(drawn.scale * loss).mean(),
    quartile_loss=loss @ quartile,
    quartile_count=quartile.sum(axis=0),
    grad_norm=global_norm(grads),
    param_norm=global_norm(params),
  )
  new = state.replace(
    step=state.step + 1,
    params=params,
    ema=ema,
    opt_state=opt_state,
    history=history,
  )
  return new, metrics


def train_block(
  step: Callable[..., tuple[TrainState, Metrics]],
  state: TrainState,
  batches: Any,
  key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
  """Takes a step on each of K batches, in one program.

  No step waits for the host, which matters if a step is shorter than a
  dispatch.

  Args:
    step: ``(state, batch, key) -> (state, metrics)``.
    state: The state so far.
    batches: A batch whose arrays have one axis more, [K, B, ...].
    key: The run's training key.

  Returns:
    The state after K steps, and the metrics of each, [K, ...].
  """

  def body(state, batch):
    return step(state, batch, key)

  if len(jax.tree.leaves(batches)[0]) == 1:  # A loop of one is no loop.
    state, metrics = body(state, jax.tree.map(lambda x: x[0], batches))
    return state, jax.tree.map(lambda x: x[None], metrics)
  return jax.lax.scan(body, state, batches)


def _mean_gradient(loss_fn, params, parts):
  """Mean gradient, and all losses, over equal parts taken one at a time."""
  gradient = jax.grad(loss_fn, has_aux=True)
  count = len(parts[0])
  if count == 1:  # Avoids a second copy of the gradient.
    grads, loss = gradient(params, jax.tree.map(lambda x: x[0], parts))
    return grads, loss[None]

  def body(total, part):
    grads, loss = gradient(params, part)
    return jax.tree.map(jnp.add, total, grads), loss

  total, loss = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), parts)
  return jax.tree.map(lambda g: g / count, total), loss


def _cut(x: Array, parts: int) -> Array:
  """[B, ...] -> [parts, B / parts, ...], taking every parts-th example.

  So each part takes an equal share of every device's examples, and nothing
  moves between devices.
  """
  if parts < 1 or x.shape[0] % parts:
    raise ValueError(
      f"micro_batches={parts} must divide the batch of {x.shape[0]} examples"
    )
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array) -> Array:
  """The inverse of ``_cut``."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def quartiles(
  loss: Float[np.ndarray, "4"],
  count: Float[np.ndarray, "4"],
  name: str = "loss",
) -> dict[str, float]:
  """Mean loss by quarter of t, for logs; omits quarters without examples."""
  return {
    f"{name}_q{i}": float(total / n)
    for i, (total, n) in enumerate(zip(loss, count, strict=True))
    if n > 0
  }


__getattr__ = moved(
  __name__,
  {
    "Apply": "diffusion_jax.objectives:Apply",
    "DECAYS": "diffusion_jax.optimizers:DECAYS",
  },
)
