"""Draws steps where the loss is large (Improved DDPM, section 3.3).

The bound's terms differ by orders of magnitude. Drawing t with probability
proportional to sqrt(E[L_t^2]) and dividing the loss by T p_t keeps its mean
and takes most of its variance away. The state is a pytree of arrays: it lives
in the training state, and is saved with it.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

PER_TERM = 10  # losses remembered for each step
UNIFORM_PROB = 1e-3  # of drawing uniformly all the same


class LossHistory(flax.struct.PyTreeNode):
  """The last losses seen at each step.

  Attributes:
    losses: The last ``PER_TERM`` of each step t = 1..T, in row t - 1 (in a
      ring: their order means nothing).
    counts: How many were ever seen.
  """

  losses: Float[Array, "T 10"]
  counts: Int[Array, " T"]


def history(T: int) -> LossHistory:
  """Nothing seen yet."""
  return LossHistory(jnp.zeros((T, PER_TERM)), jnp.zeros(T, jnp.int32))


def warmed_up(history: LossHistory) -> Bool[Array, ""]:
  """Whether every step has been seen often enough; until then, uniform."""
  return (history.counts >= PER_TERM).all()


def probabilities(history: LossHistory) -> Float[Array, " T"]:
  """p_t: proportional to the root mean square loss, and never zero."""
  T = history.counts.shape[0]
  rms = jnp.sqrt((history.losses**2).mean(axis=1))
  # All-zero losses are no reason to divide by zero.
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
    history: What was seen so far.

  Returns:
    t in 1..T, and 1 / (T p_t) to multiply each loss with.
  """
  p = probabilities(history)
  index = jax.random.choice(key, len(p), (batch,), p=p)
  return index + 1, 1 / (len(p) * p[index])


def update(
  history: LossHistory, index: Int[Array, " B"], losses: Float[Array, " B"]
) -> LossHistory:
  """Remembers a batch's losses, without their weights, in batch order.

  Args:
    history: What was seen so far.
    index: The bins drawn from, t - 1 of whole steps.
    losses: What they cost.

  Returns:
    The new history.
  """
  same = index[:, None] == index[None, :]
  earlier = jnp.tril(same, -1).sum(axis=1)
  later = jnp.triu(same, 1).sum(axis=1)
  slot = (history.counts[index] + earlier) % PER_TERM
  # More losses of one step than the ring holds: the last ones stay.
  slot = jnp.where(later < PER_TERM, slot, PER_TERM)
  return LossHistory(
    losses=history.losses.at[index, slot].set(losses, mode="drop"),
    counts=history.counts.at[index].add(1),
  )
