"""The U-Net of DDPM (Ho et al. 2020, appendix B)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from diffusion_jax.models.layers import (
  INIT,
  ZERO,
  Attention,
  Norm,
  ResBlock,
  conv,
  sinusoid,
  upsample,
)

Images = Float[Array, "B H W C"]


class UNet(nn.Module):
  """Predicts, from (x_t, t), an image of x_t's height and width.

  Every level has ``num_blocks`` residual blocks on the way down and one more
  on the way up; each activation of the way down is handed across to its
  mirror image. Time enters every residual block.

  Attributes:
    channels: Of the first level.
    multipliers: Channels of each level, in units of ``channels``; each level
      but the first has half the size of the one before.
    num_blocks: Residual blocks per level.
    attention_levels: Levels with self-attention after each block, 0 is the
      full size.
    heads: Attention heads.
    dropout: Rate inside the residual blocks.
    out_channels: Of the output; by default those of the input.
    num_classes: Condition on classes 0..num_classes-1; None is
      unconditional.
    time_scale: The network is told (t - 1) * time_scale: published networks
      count steps from 0, and some expect them rescaled by 1000 / T.
    dtype: Of the activations. Parameters, normalisation, softmax and output
      are float32.
  """

  channels: int = 128
  multipliers: Sequence[int] = (1, 2, 2, 2)
  num_blocks: int = 2
  attention_levels: Sequence[int] = (1,)
  heads: int = 1
  dropout: float = 0.0
  out_channels: int | None = None
  num_classes: int | None = None
  time_scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_t: Images,
    t: Num[Array, " B"],
    y: Int[Array, " B"] | None = None,
    *,
    train: bool = False,
  ) -> Float[Array, "B H W C_out"]:
    """Runs the network.

    Args:
      x_t: Noisy images.
      t: Their steps, 1..T.
      y: Their classes, where the network is conditional.
      train: Whether to apply dropout (needs the rng "dropout").

    Returns:
      The prediction, float32.

    Raises:
      ValueError: If the size cannot be halved often enough, or classes are
        missing or not expected.
    """
    check_size(x_t.shape[1:3], len(self.multipliers))
    out_channels = self.out_channels or x_t.shape[-1]
    emb = self._embedding(t, y)

    def block(h, level):
      features = self.channels * self.multipliers[level]
      h = ResBlock(features, self.dropout, self.dtype)(h, emb, train)
      if level in self.attention_levels:
        h = Attention(self.heads, self.dtype)(h)
      return h

    levels = range(len(self.multipliers))
    h = conv(self.channels, self.dtype)(x_t.astype(self.dtype))
    skips = [h]
    for level in levels:
      for _ in range(self.num_blocks):
        h = block(h, level)
        skips.append(h)
      if level != levels[-1]:
        h = conv(h.shape[-1], self.dtype, stride=2)(h)
        skips.append(h)

    h = ResBlock(h.shape[-1], self.dropout, self.dtype)(h, emb, train)
    h = Attention(self.heads, self.dtype)(h)
    h = ResBlock(h.shape[-1], self.dropout, self.dtype)(h, emb, train)

    for level in reversed(levels):
      for _ in range(self.num_blocks + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), level)
      if level != 0:
        h = conv(h.shape[-1], self.dtype)(upsample(h))

    h = nn.silu(Norm()(h))
    return conv(out_channels, self.dtype, init=ZERO)(h).astype(jnp.float32)

  def _embedding(self, t, y):
    """The activated embedding of time and class, [B, 4 * channels]."""
    if (y is None) != (self.num_classes is None):
      raise ValueError(
        f"a network with num_classes={self.num_classes} was called with "
        f"{'no classes' if y is None else 'classes'}"
      )
    dim = 4 * self.channels
    emb = sinusoid((t - 1) * self.time_scale, self.channels)
    emb = nn.Dense(dim, dtype=self.dtype, kernel_init=INIT, name="time1")(emb)
    emb = nn.Dense(dim, dtype=self.dtype, kernel_init=INIT, name="time2")(
      nn.silu(emb)
    )
    if self.num_classes is not None:
      emb += nn.Embed(
        self.num_classes,
        dim,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(1.0),
        name="classes",
      )(y)
    return nn.silu(emb)


def check_size(size: Sequence[int], num_levels: int) -> None:
  """Refuses images that a U-Net of this depth cannot halve.

  >>> check_size((28, 32), 4)
  Traceback (most recent call last):
  ...
  ValueError: a U-Net of 4 levels halves its input 3 times; 28 x 32 \
must be multiples of 8: the nearest is 24 x 32 or 32 x 32
  """
  unit = 2 ** (num_levels - 1)
  if all(n % unit == 0 and n > 0 for n in size):
    return
  below = " x ".join(str(max(n // unit, 1) * unit) for n in size)
  above = " x ".join(str(-(-n // unit) * unit) for n in size)
  nearest = below if below == above else f"{below} or {above}"
  raise ValueError(
    f"a U-Net of {num_levels} levels halves its input {num_levels - 1} times; "
    f"{' x '.join(map(str, size))} must be multiples of {unit}: "
    f"the nearest is {nearest}"
  )
