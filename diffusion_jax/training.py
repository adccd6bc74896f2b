"""One step of training, a pure function (DDPM, algorithm 1)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from diffusion_jax import importance
from diffusion_jax.clipping import clip_by_global_norm, global_norm
from diffusion_jax.objectives import Objective
from diffusion_jax.state import TrainState, update_ema

# What is left of the learning rate when a part of the decay is done.
DECAYS = {
  "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
  "linear": lambda done: 1 - done,
}


class Metrics(NamedTuple):
  """What a step reports, on the device.

  Attributes:
    loss: Mean over the batch; an unbiased estimate of that over uniform t,
      however t is drawn.
    quartile_loss: Summed over the examples whose time is in each quarter of
      all, the cleanest first.
    quartile_count: How many those are.
    grad_norm: Global norm of the gradient, before clipping.
    param_norm: Global norm of the parameters, after the update.
  """

  loss: Float[Array, ""]
  quartile_loss: Float[Array, "4"]
  quartile_count: Float[Array, "4"]
  grad_norm: Float[Array, ""]
  param_norm: Float[Array, ""]


def optimizer(
  *,
  lr: float,
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  decay: str = "cosine",
  clip: float | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Adam as the papers use it.

  Args:
    lr: Learning rate.
    warmup_steps: The rate grows linearly, lr * min(step / warmup_steps, 1);
      the first update has rate 0, as in the DDPM code.
    decay_steps: If set, the rate also falls to 0 at this step.
    decay: How it falls, along a "cosine" or "linear".
    clip: Largest global norm of the gradient; None does not clip.
    b1: Decay of Adam's first moment.
    b2: Decay of Adam's second moment.
    eps: Adam's epsilon.
    weight_decay: Decoupled weight decay (AdamW).

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of its range; names it.
  """
  for name, value, right, meaning in (
    ("lr", lr, 0 <= lr < math.inf, "finite and not negative"),
    ("warmup_steps", warmup_steps, warmup_steps >= 0, "not negative"),
    ("decay_steps", decay_steps, decay_steps is None or decay_steps >= 1,
     "at least 1, or None"),
    ("clip", clip, clip is None or clip > 0, "above 0, or None"),
    ("b1", b1, 0 <= b1 < 1, "in [0, 1)"),
    ("b2", b2, 0 <= b2 < 1, "in [0, 1)"),
    ("eps", eps, eps >= 0, "not negative"),
    ("weight_decay", weight_decay, weight_decay >= 0, "not negative"),
  ):  # fmt: skip
    if not right:
      raise ValueError(f"{name}={value} must be {meaning}")
  if decay not in DECAYS:
    raise ValueError(f"{decay=} is not one of {', '.join(DECAYS)}")

  def rate(step):
    warm = jnp.minimum(step / warmup_steps, 1) if warmup_steps else 1.0
    if decay_steps is None:
      return lr * warm
    return lr * warm * DECAYS[decay](jnp.minimum(step / decay_steps, 1))

  adam = optax.chain(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    # No decay leaves nothing to compute, and the same state.
    optax.add_decayed_weights(weight_decay)
    if weight_decay
    else optax.identity(),
    optax.scale_by_learning_rate(rate),
  )
  if clip is None:
    return adam
  return optax.chain(clip_by_global_norm(clip), adam)


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

  All randomness comes from fold_in(key, state.step), and what the objective
  draws is drawn for the whole batch: how often the batch is cut changes
  nothing but memory (and the draws of dropout).

  Args:
    state: The state so far.
    batch: What the objective learns from, such as "image", [B, H, W, C] in
      [-1, 1], and "label", [B].
    key: The run's training key, the same at every step.
    objective: What is made small, see ``objectives``.
    tx: The optimizer.
    micro_batches: Cut the batch into this many pieces, one at a time in
      memory; the gradient is the exact mean over the whole batch.
    ema_warmup: See ``state.update_ema``.

  Returns:
    The next state, and metrics.
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
    rate: update_ema(
      average, params, float(rate), state.step, warmup=ema_warmup
    )
    for rate, average in state.ema.items()
  }
  quartile = jax.nn.one_hot(drawn.bin * 4 // objective.bins, 4)
  metrics = Metrics(
    loss=(drawn.scale * loss).mean(),
    quartile_loss=loss @ quartile,
    quartile_count=quartile.sum(axis=0),
    grad_norm=global_norm(grads),
    param_norm=global_norm(params),
  )
  return TrainState(state.step + 1, params, ema, opt_state, history), metrics


def train_block(
  step: Callable[..., tuple[TrainState, Metrics]],
  state: TrainState,
  batches: Any,
  key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
  """Takes a step on each of K batches, in one program.

  Between two steps nothing waits for the host: what counts where a step is
  shorter than a dispatch.

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
  if count == 1:  # No second copy of the gradient where none is needed.
    grads, loss = gradient(params, jax.tree.map(lambda x: x[0], parts))
    return grads, loss[None]

  def body(total, part):
    grads, loss = gradient(params, part)
    return jax.tree.map(jnp.add, total, grads), loss

  total, loss = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), parts)
  return jax.tree.map(lambda g: g / count, total), loss


def _cut(x: Array, parts: int) -> Array:
  """[B, ...] -> [parts, B / parts, ...], taking every parts-th example.

  So each device's share of the batch gives an equal share to every part, and
  nothing moves between devices.
  """
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array) -> Array:
  """The inverse of ``_cut``."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def quartiles(
  loss: Float[np.ndarray, "4"],
  count: Float[np.ndarray, "4"],
  name: str = "loss",
) -> dict[str, float]:
  """Mean loss by quarter of t, for logs; quarters without examples drop."""
  return {
    f"{name}_q{i}": float(total / n)
    for i, (total, n) in enumerate(zip(loss, count, strict=True))
    if n > 0
  }
