"""Draws steps where the loss is large (Improved DDPM, section 3.3).

The bound's terms differ by orders of magnitude. Drawing t with probability
proportional to sqrt(E[L_t^2]) and dividing the loss by T p_t keeps its mean
and removes most of its variance. The history is a pytree of arrays in the
training state, and is saved with it.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

PER_TERM = 10  # losses remembered for each step
UNIFORM_PROB = 1e-3  # probability of drawing uniformly instead


class LossHistory(flax.struct.PyTreeNode):
  """The last losses seen at each step.

  Attributes:
    losses: The last ``PER_TERM`` of each step t = 1..T, in row t - 1 (a ring
      buffer: their order has no meaning).
    counts: How many were seen in total.
  """

  losses: Float[Array, "T 10"]
  counts: Int[Array, " T"]


def history(T: int) -> LossHistory:
  """An empty history."""
  return LossHistory(jnp.zeros((T, PER_TERM)), jnp.zeros(T, jnp.int32))


def warmed_up(history: LossHistory) -> Bool[Array, ""]:
  """Whether each step has ``PER_TERM`` losses; if not, draws are uniform."""
  return (history.counts >= PER_TERM).all()


def probabilities(history: LossHistory) -> Float[Array, " T"]:
  """p_t: proportional to the root mean square loss, and never zero."""
  T = history.counts.shape[0]
  rms = jnp.sqrt((history.losses**2).mean(axis=1))
  # The losses may all be zero.
  share = rms / jnp.maximum(rms.sum(), jnp.finfo(rms.dtype).tiny)
  p = (1 - UNIFORM_PROB) * share + UNIFORM_PROB / T
  return jnp.where(warmed_up(history), p / p.sum(), 1 / T)


def draw(
  key: Key[Array, ""], batch: int, history: LossHistory
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Draws steps, and the weights that keep the loss's mean.

  Args:
    key: For the draw.
    batch: How many.
    history: The losses so far.

  Returns:
    t in 1..T, and 1 / (T p_t) to multiply each loss with.
  """
  p = probabilities(history)
  index = jax.random.choice(key, len(p), (batch,), p=p)
  return index + 1, 1 / (len(p) * p[index])


def update(
  history: LossHistory, index: Int[Array, " B"], losses: Float[Array, " B"]
) -> LossHistory:
  """Records a batch's losses, without their weights, in batch order.

  Args:
    history: The losses so far.
    index: The bin of each example: t - 1, if time is discrete.
    losses: The loss of each example.

  Returns:
    The new history.
  """
  same = index[:, None] == index[None, :]
  earlier = jnp.tril(same, -1).sum(axis=1)
  later = jnp.triu(same, 1).sum(axis=1)
  slot = (history.counts[index] + earlier) % PER_TERM
  # If one step has more losses than the ring holds, the last ones stay.
  slot = jnp.where(later < PER_TERM, slot, PER_TERM)
  return LossHistory(
    losses=history.losses.at[index, slot].set(losses, mode="drop"),
    counts=history.counts.at[index].add(1),
  )
