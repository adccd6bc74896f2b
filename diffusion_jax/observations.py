"""Linear observations of images, for ``restoration`` to invert.

An observation is any linear function of a batch, ``observe(x) -> y``; its
transpose is JAX's.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax import upsampling
from diffusion_jax.process import Batch

Observed = Float[Array, "B ..."]
Observe = Callable[[Batch], Observed]


def inpainting(mask: np.ndarray) -> Observe:
  """The values where ``mask`` [H, W, C] is not 0, as a vector per image."""
  known = np.flatnonzero(mask)
  if not known.size:
    raise ValueError("the mask is 0 everywhere; 1 is where a value is known")

  def observe(x):
    # Indices beyond the image would be clamped without an error.
    _check_image("the mask is", np.shape(mask), x)
    return _flat(x)[:, known]

  return observe


def _flat(x: Batch) -> Float[Array, "B D"]:
  return x.reshape(len(x), math.prod(x.shape[1:]))


def _check_image(what: str, shape: Sequence[int], x: Batch) -> None:
  if tuple(shape) != x.shape[1:]:
    raise ValueError(
      f"{what} {list(shape)}, must be {list(x.shape[1:])} as the pictures are"
    )


def blurring(width: float) -> Observe:
  """A Gaussian blur along each axis of the size, reflected at the borders.

  As wide as the image or wider, too: pixels are then reflected more than once.

  Args:
    width: Standard deviation in pixels.

  Returns:
    The blur; it keeps the shape.

  Raises:
    ValueError: If the width is not above 0.
  """
  if not 0 < width < math.inf:
    raise ValueError(f"{width=} of the blur must be above 0, in pixels")

  def blur(x, axis):
    n = x.shape[axis]
    reach = math.ceil(3 * width)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    pad = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
    padded, blurred = jnp.pad(x, pad, mode="reflect"), 0 * x
    for k, weight in enumerate((weights / weights.sum()).tolist()):
      blurred += weight * jax.lax.slice_in_dim(padded, k, k + n, axis=axis)
    return blurred

  return lambda x: functools.reduce(blur, range(1, x.ndim - 1), x)


def downsampling(size: Sequence[int]) -> Observe:
  """Means of equal boxes, to this size; its inverse is upsampling."""
  return functools.partial(upsampling.shrink, size=size)


def measuring(key: Key[Array, ""], shape: Sequence[int], count: int) -> Observe:
  """Random sums of all values of an image: compressed sensing.

  Args:
    key: For the matrix, whose entries are N(0, 1 / count).
    shape: The shape of one image.
    count: The number of measurements of each.

  Returns:
    ``x -> [B, count]``.

  Raises:
    ValueError: If count is below 1, or images have another shape.
  """
  if not isinstance(count, int | np.integer) or count < 1:
    raise ValueError(f"{count=} must be a whole number, at least 1")
  A = jax.random.normal(key, (math.prod(shape), count)) / math.sqrt(count)

  def observe(x):
    _check_image("the matrix is of", shape, x)
    return _flat(x) @ A

  return observe


def transpose(observe: Observe, y: Observed, like: Batch) -> Batch:
  """A^T y, of the shape of ``like``."""
  return jax.linear_transpose(observe, like)(y)[0]
