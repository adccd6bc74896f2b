"""The parts of a U-Net."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Images = Float[Array, "B H W C"]

# Ho et al.'s initialisation; the last layer of every residual branch starts
# at zero, so that the network starts as (almost) the identity.
INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# One Dense layer for q, k and v has three times the fan-out of each; twice
# the scale gives each the variance that it would have had on its own.
QKV_INIT = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
ZERO = nn.initializers.zeros_init()


def sinusoid(t: Float[Array, " B"], dim: int) -> Float[Array, "B dim"]:
  """Sinusoidal embedding of times, sines first (Ho et al.'s order).

  Column i of each half has frequency 10000^(-i / (dim / 2 - 1)); an odd dim
  ends with a column of zeros.

  Args:
    t: Times, counted as the network counts them.
    dim: Number of columns, at least 4.

  Returns:
    The embedding, float32.
  """
  half = dim // 2
  freqs = np.exp(-np.log(10000) * np.arange(half) / (half - 1))
  angles = jnp.outer(t.astype(jnp.float32), jnp.asarray(freqs, jnp.float32))
  columns = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
  return jnp.pad(columns, ((0, 0), (0, dim % 2)))


def num_groups(channels: int, most: int = 32, least_size: int = 4) -> int:
  """How many equal groups to normalise channels in.

  The largest divisor up to ``most`` that leaves ``least_size`` channels in a
  group. From 128 channels on this is the published 32. Narrow networks need
  the second rule: a group of one channel would take out again the constant
  that a residual block adds for the time, and the network would not know t.

  >>> num_groups(128), num_groups(64), num_groups(100), num_groups(6)
  (32, 16, 25, 1)
  """
  limit = max(min(most, channels // least_size), 1)
  return max(g for g in range(1, limit + 1) if channels % g == 0)


class Norm(nn.Module):
  """Group normalisation, computed in float32 whatever comes in."""

  @nn.compact
  def __call__(self, x: Images) -> Images:
    """Normalises; the shape and dtype stay."""
    norm = nn.GroupNorm(
      num_groups(x.shape[-1]), epsilon=1e-6, dtype=jnp.float32
    )
    return norm(x).astype(x.dtype)


def conv(
  features: int,
  dtype: DTypeLike,
  *,
  stride: int = 1,
  init=INIT,
  name: str | None = None,
) -> nn.Conv:
  """A 3 x 3 convolution."""
  return nn.Conv(
    features, (3, 3), (stride, stride), dtype=dtype, kernel_init=init, name=name
  )


class ResBlock(nn.Module):
  """GN-SiLU-conv, plus time, GN-SiLU-dropout-conv, plus the input.

  Attributes:
    features: Channels that come out.
    dropout: Rate, between the second norm and its convolution.
    dtype: Of the activations.
  """

  features: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Images, emb: Float[Array, "B D"], train: bool
  ) -> Images:
    """Runs the block; ``emb`` is the activated time embedding."""
    h = conv(self.features, self.dtype, name="conv1")(nn.silu(Norm()(x)))
    h += nn.Dense(
      self.features, dtype=self.dtype, kernel_init=INIT, name="time"
    )(emb)[:, None, None]
    h = nn.silu(Norm()(h))
    h = nn.Dropout(self.dropout)(h, deterministic=not train)
    h = conv(self.features, self.dtype, init=ZERO, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = nn.Dense(
        self.features, dtype=self.dtype, kernel_init=INIT, name="skip"
      )(x)
    return x + h


class Attention(nn.Module):
  """Self-attention over all pixels, plus the input.

  Attributes:
    heads: Number of heads; must divide the channels.
    dtype: Of the activations; the softmax is float32.
  """

  heads: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Images) -> Images:
    """Attends; the shape stays."""
    b, h, w, c = x.shape
    tokens = Norm()(x).reshape(b, h * w, c)
    qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=QKV_INIT, name="qkv")(
      tokens
    )
    q, k, v = jnp.moveaxis(
      qkv.reshape(b, h * w, 3, self.heads, c // self.heads), 2, 0
    )
    out = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
    return x + nn.Dense(c, dtype=self.dtype, kernel_init=ZERO, name="out")(out)


def upsample(x: Images) -> Images:
  """Doubles height and width by repeating pixels."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)
