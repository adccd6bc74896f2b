"""Optimizers and learning-rate schedules, by name."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from diffusion_jax.clipping import clip_by_global_norm
from diffusion_jax.state import Params, TrainState

# Fraction of the learning rate at step / decay_steps.
DECAYS = {
  "cosine": lambda part: 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(part, 1))),
  "linear": lambda part: 1 - jnp.minimum(part, 1),
  # Constant, then to 0 in the last fifth (Hu et al. 2024, MiniCPM; Hagele et
  # al. 2024).
  "stable": lambda part: jnp.minimum(5 * (1 - jnp.minimum(part, 1)), 1),
  # EDM2 (Karras et al. 2024, eq. 67): constant up to decay_steps.
  "inverse_sqrt": lambda part: jax.lax.rsqrt(jnp.maximum(part, 1.0)),
}
# Decays after which the rate is 0, from decay_steps on.
ENDING = ("cosine", "linear", "stable")
NAMES = ("adam", "muon", "schedule_free")
# Gives Muon's updates the root mean square of Adam's, so that one rate works
# for both (Liu et al. 2025, section 2.2).
MUON_RMS = 0.2


def rate(
  lr: float,
  *,
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  decay: str = "cosine",
) -> optax.Schedule:
  """The learning rate at each step.

  Args:
    lr: The peak.
    warmup_steps: The rate grows linearly, lr * min(step / warmup_steps, 1);
      the first update has rate 0, as in the DDPM code.
    decay_steps: If set, the rate also falls: to 0 at this step or, with
      "inverse_sqrt", from it on. None keeps it constant.
    decay: How it falls, a name in ``DECAYS``.

  Returns:
    ``step -> rate``.

  Raises:
    ValueError: If there is no such decay.
  """
  if decay not in DECAYS:
    raise ValueError(f"{decay=} is not one of {', '.join(DECAYS)}")

  def at(step):
    warm = jnp.minimum(step / warmup_steps, 1) if warmup_steps else 1.0
    if decay_steps is None:
      return lr * warm
    return lr * warm * DECAYS[decay](step / decay_steps)

  return at


def optimizer(
  *,
  lr: float,
  name: str = "adam",
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  decay: str = "cosine",
  clip: float | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """The optimizer of this name.

  Args:
    lr: Learning rate.
    name: "adam" is Adam as in the papers, and AdamW with a weight decay; "muon"
      treats kernels as matrices of inputs x outputs and orthogonalises their
      momentum (Jordan et al. 2024), with Adam for the rest; "schedule_free" is
      AdamW with averaging instead of a decay (Defazio et al. 2024), see
      ``evaluated``.
    warmup_steps: See ``rate``.
    decay_steps: See ``rate``.
    decay: See ``rate``.
    clip: Largest global norm of the gradient; None does not clip.
    b1: Decay of Adam's first moment; for "schedule_free", the interpolation
      between parameters (0) and average (1) where gradients are taken.
    b2: Decay of Adam's second moment.
    eps: Adam's epsilon.
    weight_decay: Decoupled weight decay (AdamW).

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range; the message names it.
  """
  for key, value, right, meaning in (
    ("lr", lr, 0 < lr < math.inf, "above 0 and finite"),
    ("warmup_steps", warmup_steps, warmup_steps >= 0, "not negative"),
    ("decay_steps", decay_steps, decay_steps is None or decay_steps >= 1,
     "at least 1, or None"),
    ("clip", clip, clip is None or clip > 0, "above 0, or None"),
    ("b1", b1, 0 <= b1 < 1, "in [0, 1)"),
    ("b2", b2, 0 <= b2 < 1, "in [0, 1)"),
    ("eps", eps, 0 <= eps < math.inf, "not negative, and finite"),
    ("weight_decay", weight_decay, 0 <= weight_decay < math.inf,
     "not negative, and finite"),
  ):  # fmt: skip
    if not right:
      raise ValueError(f"{key}={value} must be {meaning}")
  if name not in NAMES:
    raise ValueError(f"optimizer={name!r} is not one of {', '.join(NAMES)}")
  if name == "schedule_free" and b1 == 0:
    raise ValueError("b1=0 must be above 0 for optimizer='schedule_free'")

  lr_at = rate(
    lr, warmup_steps=warmup_steps, decay_steps=decay_steps, decay=decay
  )
  if name == "muon":
    tx = contrib.muon(
      lr_at, eps=eps, weight_decay=weight_decay, adam_b1=b1, adam_b2=b2,
      adam_weight_decay=weight_decay, consistent_rms=MUON_RMS,
      muon_weight_dimension_numbers=as_matrices,
    )  # fmt: skip
  elif name == "schedule_free":
    tx = contrib.schedule_free(
      _adam(lr_at, 0.0, b2, eps, weight_decay), lr_at, b1
    )
  else:
    tx = _adam(lr_at, b1, b2, eps, weight_decay)
  if clip is not None:
    tx = optax.chain(clip_by_global_norm(clip), tx)
  return tx


def _adam(lr_at, b1, b2, eps, weight_decay) -> optax.GradientTransformation:
  return optax.chain(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    # Without a decay there is nothing to compute; the state is the same.
    optax.add_decayed_weights(weight_decay)
    if weight_decay
    else optax.identity(),
    optax.scale_by_learning_rate(lr_at),
  )


def as_matrices(params: Params) -> Any:
  """How Muon reads each parameter: a kernel's last axis is its outputs.

  None, which means Adam, for all others: biases, scales, class embeddings.
  """

  def of(path, x: Float[Array, "..."]):
    name = getattr(path[-1], "key", None) if path else None
    if name != "kernel" or x.ndim < 2:
      return None
    return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

  return jax.tree_util.tree_map_with_path(of, params)


def evaluated(state: TrainState) -> Params:
  """The parameters to sample with: schedule-free's average, or the trained."""
  free = [
    node
    for node in jax.tree.leaves(
      state.opt_state,
      is_leaf=lambda x: isinstance(x, contrib.ScheduleFreeState),
    )
    if isinstance(node, contrib.ScheduleFreeState)
  ]
  if not free:
    return state.params
  return contrib.schedule_free_eval_params(free[0], state.params)
