"""Doubling and halving the size, along each axis."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def upsample(x: Float[Array, "B *size C"]) -> Float[Array, "B ... C"]:
  """Doubles every axis of the size by repeating pixels."""
  b, *size, c = x.shape
  pairs = tuple(range(2, 2 * len(size) + 1, 2))
  two = [n for side in size for n in (side, 2)]
  x = jnp.broadcast_to(jnp.expand_dims(x, pairs), (b, *two, c))
  return x.reshape(b, *(2 * side for side in size), c)


def downsample(x: Float[Array, "B *size C"]) -> Float[Array, "B ... C"]:
  """Halves every axis of the size by averaging, 2 x 2 pixels of images."""
  b, *size, c = x.shape
  two = [n for side in size for n in (side // 2, 2)]
  pairs = tuple(range(2, 2 * len(size) + 1, 2))
  return x.reshape(b, *two, c).mean(axis=pairs)


def filtered(
  x: Float[Array, "B *size C"],
  taps: Sequence[float],
  resample: str | None,
  *,
  padded: bool = True,
) -> Float[Array, "B ... C"]:
  """Resamples with a symmetric filter of an even number of taps.

  (1, 1) is ``upsample`` and ``downsample``; (1, 3, 3, 1) is NCSN++'s.

  Args:
    x: Images.
    taps: The filter's taps along each axis; their sum does not matter.
    resample: "up", "down" or None.
    padded: Whether to pad the sides with zeros, for exactly twice or half the
      size.

  Returns:
    The images resampled.
  """
  if resample is None:
    return x
  if len(taps) == 2 and taps[0] == taps[1]:
    return RESAMPLE[resample](x)
  rank, up, channels = x.ndim - 2, resample == "up", x.shape[-1]
  one = np.asarray(taps, float) / np.sum(taps)
  kernel = functools.reduce(np.multiply.outer, [one] * rank)
  kernel = kernel * (2**rank if up else 1)
  side = (len(taps) - 1) // 2 if padded else 0
  if up:  # As the transpose of a strided convolution.
    side = len(taps) - 1 - side
  return lax.conv_general_dilated(
    x,
    jnp.tile(jnp.asarray(kernel, x.dtype)[..., None, None], channels),
    (1 if up else 2,) * rank,
    ((side, side),) * rank,
    lhs_dilation=(2,) * rank if up else None,
    dimension_numbers=layout(rank),
    feature_group_count=channels,
  )


def layout(rank: int, kernel: str = "IO") -> tuple[str, str, str]:
  """Dimension numbers: batch, size, channels; kernels: size, in, out.

  >>> layout(2)
  ('N01C', '01IO', 'N01C')
  """
  size = "".join(map(str, range(rank)))
  return f"N{size}C", f"{size}{kernel}", f"N{size}C"


RESAMPLE = {None: lambda x: x, "up": upsample, "down": downsample}
