"""The parts of a U-Net."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models import convolution
from diffusion_jax.models.resampling import filtered

# Signals [B, L, C], images [B, H, W, C], volumes [B, D, H, W, C].
Images = Float[Array, "B *size C"]

# Ho et al.'s initialisation; the last layer of every residual branch starts
# at zero, so that the network starts as (almost) the identity.
INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
ZERO = nn.initializers.zeros_init()

EMBEDDINGS = ("sin_cos", "cos_sin", "fourier")


def sinusoid(
  t: Float[Array, " B"], dim: int, order: str = "sin_cos"
) -> Float[Array, "B dim"]:
  """Sinusoidal embedding of times.

  "sin_cos" is Ho et al.'s: sines first, and column i of each half has
  frequency 10000^(-i / (dim / 2 - 1)). "cos_sin" is OpenAI's: cosines first,
  frequency 10000^(-i / (dim / 2)). An odd dim ends with a column of zeros.

  Args:
    t: Times, in the network's units.
    dim: Number of columns, at least 4.
    order: "sin_cos" or "cos_sin".

  Returns:
    The embedding, float32.

  Raises:
    ValueError: If order is neither.
  """
  if order not in EMBEDDINGS[:2]:
    raise ValueError(f"embedding={order!r} is not one of {EMBEDDINGS}")
  half = dim // 2
  span = half - 1 if order == "sin_cos" else half
  freqs = np.exp(-np.log(10000) * np.arange(half) / span)
  angles = jnp.outer(t.astype(jnp.float32), jnp.asarray(freqs, jnp.float32))
  columns = [jnp.sin(angles), jnp.cos(angles)]
  if order == "cos_sin":
    columns.reverse()
  return jnp.pad(jnp.concatenate(columns, axis=1), ((0, 0), (0, dim % 2)))


def num_groups(channels: int, most: int = 32, least_size: int = 4) -> int:
  """The number of groups in which to normalise channels.

  The largest divisor up to ``most`` that leaves ``least_size`` channels in a
  group. From 128 channels on this is the published 32. Narrow networks need
  the second rule: a group of one channel would remove the constant that a
  residual block adds for the time, and the network would not see t.

  >>> num_groups(128), num_groups(64), num_groups(100), num_groups(6)
  (32, 16, 25, 1)
  """
  limit = max(min(most, channels // least_size), 1)
  return max(g for g in range(1, limit + 1) if channels % g == 0)


# jit makes it one function, so that it is differentiated once for each shape
# and not for each layer.
@functools.partial(jax.jit, static_argnames=("groups", "epsilon"))
def group_norm(
  x: Images,
  scale: Float[Array, " C"],
  bias: Float[Array, " C"],
  *,
  groups: int,
  epsilon: float,
) -> Float[Array, "B *size C"]:
  """Group normalisation as one multiplication and one addition, y = a x + b.

  a = scale / std and b = bias - mean a, with mean and std over the pixels and
  channels of a group (Wu and He 2018). Both have one number for each example
  and channel, so that the gradient, too, is two sums over pixels and one pass
  over x. Sums go over pixels first, channel by channel, and then over the
  channels of a group: the wide sums then run along contiguous memory.

  The variance is E[d^2] - E[d]^2, where d is x minus the group's mean in one
  pixel: without that, the difference would cancel if the mean is large.

  Args:
    x: Activations.
    scale: The scale of each channel.
    bias: The bias of each channel.
    groups: Number of groups; must divide the channels.
    epsilon: Added to the variance.

  Returns:
    The normalised activations, float32.
  """
  batch, *size, channels = x.shape
  each = (groups, channels // groups)
  count = math.prod(size) * each[1]
  wide = (batch, *(1 for _ in size), channels)

  def mean_of_group(x):
    pixels = tuple(range(1, x.ndim - 1))
    return x.sum(axis=pixels).reshape(batch, *each).sum(axis=-1) / count

  x = x.astype(jnp.float32)
  # In the middle, away from padding. Any pixel gives the same result, so no
  # gradient needs to flow through it. One of its numbers would do, too, but XLA
  # would then pick it anew for each activation: a quarter of the time on a CPU.
  middle = x[(slice(None), *(slice(n // 2, n // 2 + 1) for n in size))]
  shift = middle.reshape(batch, *each).mean(axis=-1, keepdims=True)
  shift = jnp.broadcast_to(jax.lax.stop_gradient(shift), (batch, *each))
  d = x - shift.reshape(wide)
  mean = mean_of_group(d)
  var = jnp.maximum(mean_of_group(jnp.square(d)) - jnp.square(mean), 0)
  a = jax.lax.rsqrt(var + epsilon)[:, :, None] * scale.reshape(1, *each)
  b = bias.reshape(1, *each) - mean[:, :, None] * a
  return d * a.reshape(wide) + b.reshape(wide)


class GroupNorm(nn.Module):
  """``group_norm`` with its parameters.

  Attributes:
    groups: Number of groups.
    epsilon: Added to the variance.
  """

  groups: int
  epsilon: float

  @nn.compact
  def __call__(self, x: Images) -> Float[Array, "B *size C"]:
    """Normalises; the result is float32."""
    channels = x.shape[-1:]
    scale = self.param(
      "scale", nn.initializers.ones_init(), channels, jnp.float32
    )
    bias = self.param(
      "bias", nn.initializers.zeros_init(), channels, jnp.float32
    )
    return group_norm(x, scale, bias, groups=self.groups, epsilon=self.epsilon)


class Norm(nn.Module):
  """Group normalisation, computed in float32 for inputs of any dtype.

  Attributes:
    groups: Number of groups; None chooses with ``num_groups``.
    epsilon: Added to the variance.
  """

  groups: int | None = None
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Images) -> Images:
    """Normalises; shape and dtype do not change."""
    groups = self.groups or num_groups(x.shape[-1])
    if groups < 1 or x.shape[-1] % groups:
      raise ValueError(
        f"{x.shape[-1]} channels cannot be normalised in groups={groups}"
      )
    return GroupNorm(groups, self.epsilon)(x).astype(x.dtype)


# Makes a normalisation layer with the settings of a network.
MakeNorm = Callable[[], nn.Module]


def conv(
  x: Images,
  features: int,
  dtype: DTypeLike,
  *,
  stride: int = 1,
  padding: str | tuple[int, int] = "SAME",
  upsampled: bool = False,
  init=INIT,
  name: str | None = None,
) -> Float[Array, "B ... C_out"]:
  """A convolution of 3 taps an axis, of the doubled image if ``upsampled``."""
  rank = x.ndim - 2
  return nn.Conv(
    features,
    (3,) * rank,
    (stride,) * rank,
    padding if isinstance(padding, str) else (padding,) * rank,
    dtype=dtype,
    kernel_init=init,
    conv_general_dilated=(
      convolution.conv_of_upsampled
      if upsampled
      else convolution.conv_general_dilated
    ),
    name=name,
  )(x)


def everywhere(
  emb: Float[Array, "B D"], like: Images
) -> Float[Array, "B ... D"]:
  """A vector of each example, broadcast to its pixels."""
  return jnp.expand_dims(emb, tuple(range(1, like.ndim - 1)))


def scaled(x: Images, scale: float) -> Images:
  """``scale * x``; a scale of 1 adds no operation."""
  return x if scale == 1 else x * scale


class ResBlock(nn.Module):
  """GN-SiLU-conv, time, GN-SiLU-dropout-conv, plus the input.

  Attributes:
    features: Output channels.
    dropout: Rate, between the second norm and its convolution.
    scale_shift: How time enters. False adds it after the first convolution
      (DDPM); True makes it scale and shift the second norm, GN(h) (1 + scale)
      + shift (adaptive group normalisation, Improved DDPM and ADM).
    resample: "up" or "down" doubles or halves the size between the first
      SiLU and its convolution, and the input alike (ADM).
    norm: Makes a normalisation.
    dtype: Dtype of the activations.
    taps: Taps of the filter that resamples, see ``resampling.filtered``.
    project: Whether a resampled input goes through a layer, as it does if its
      channels change (NCSN++).
    skip_scale: Factor of the sum with the input.
  """

  features: int
  dropout: float = 0.0
  scale_shift: bool = False
  resample: str | None = None
  norm: MakeNorm = Norm
  dtype: DTypeLike = jnp.float32
  taps: Sequence[float] = (1, 1)
  project: bool = False
  skip_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Images, emb: Float[Array, "B D"], train: bool
  ) -> Float[Array, "B ... features"]:
    """Runs the block; ``emb`` is the activated time embedding."""

    def dense(features, name):
      return nn.Dense(features, dtype=self.dtype, kernel_init=INIT, name=name)

    h = nn.silu(self.norm()(x))
    up = self.resample == "up" and tuple(self.taps) == (1, 1)
    if not up:  # The convolution doubles the size, by repeating pixels.
      h = filtered(h, self.taps, self.resample)
    h = conv(h, self.features, self.dtype, upsampled=up, name="conv1")
    x = filtered(x, self.taps, self.resample)
    if self.scale_shift:
      time = everywhere(dense(2 * self.features, "time")(emb), h)
      scale, shift = jnp.split(time, 2, axis=-1)
      h = self.norm()(h) * (1 + scale) + shift
    else:
      h += everywhere(dense(self.features, "time")(emb), h)
      h = self.norm()(h)
    h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
    h = conv(h, self.features, self.dtype, init=ZERO, name="conv2")
    project = self.project and self.resample is not None
    if x.shape[-1] != self.features or project:
      x = dense(self.features, "skip")(x)
    return scaled(x + h, self.skip_scale)
