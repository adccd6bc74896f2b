"""The norm of a gradient, and clipping by it.

They equal optax's up to rounding, but need fewer operations: a network has
hundreds of arrays of a few dozen shapes, and compiling a sum for each of them
(on a GPU, launching it) takes longer than the sums themselves.
"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def global_norm(tree: Any) -> Float[Array, ""]:
  """Root of the sum of all squares, ||tree||.

  The squares of arrays of one shape are added before they are summed, so that
  there are as many sums as shapes.

  Args:
    tree: Arrays, at least one.

  Returns:
    The norm.
  """
  squares = collections.defaultdict(list)
  for x in jax.tree.leaves(tree):
    squares[x.shape].append(jnp.square(x))
  sums = [functools.reduce(jnp.add, alike).sum() for alike in squares.values()]
  return jnp.sqrt(sum(sums))


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
  """Clips a gradient: g <- g min(1, most / ||g||) (Pascanu et al. 2013).

  Args:
    most: The largest norm, above 0.

  Returns:
    The transformation, without a state.
  """

  def update(updates, state, params=None):
    del params
    scale = jnp.minimum(1, most / global_norm(updates))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)
