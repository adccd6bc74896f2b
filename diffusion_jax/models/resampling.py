"""Twice and half the size."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
  """Doubles height and width by repeating pixels."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


def downsample(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
  """Halves height and width by averaging 2 x 2 pixels."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def filtered(
  x: Float[Array, "B H W C"],
  taps: Sequence[float],
  resample: str | None,
  *,
  padded: bool = True,
) -> Float[Array, "B H_out W_out C"]:
  """Resamples with a symmetric filter of an even number of taps.

  (1, 1) is ``upsample`` and ``downsample``; (1, 3, 3, 1) is NCSN++'s.

  Args:
    x: Images.
    taps: Of each axis; their sum does not matter.
    resample: "up", "down" or None.
    padded: Whether the sides are padded with zeros, to exactly twice or half.

  Returns:
    The images resampled.
  """
  if resample is None:
    return x
  if len(taps) == 2 and taps[0] == taps[1]:
    return RESAMPLE[resample](x)
  one = np.asarray(taps, float) / np.sum(taps)
  kernel = np.outer(one, one) * (4 if resample == "up" else 1)
  side = (len(taps) - 1) // 2 if padded else 0
  up, channels = resample == "up", x.shape[-1]
  if up:  # As the transpose of a strided convolution.
    side = len(taps) - 1 - side
  return lax.conv_general_dilated(
    x,
    jnp.tile(jnp.asarray(kernel, x.dtype)[:, :, None, None], channels),
    (1, 1) if up else (2, 2),
    ((side, side), (side, side)),
    lhs_dilation=(2, 2) if up else None,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
  )


RESAMPLE = {None: lambda x: x, "up": upsample, "down": downsample}
