"""Twice and half the size."""

import jax.numpy as jnp
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


RESAMPLE = {None: lambda x: x, "up": upsample, "down": downsample}
