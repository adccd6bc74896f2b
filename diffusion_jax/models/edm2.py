"""EDM2's U-Net, whose layers preserve the magnitude of their inputs.

Karras et al. 2024, appendix B. Activations, weights and updates have unit
expected magnitude by construction: no normalisation of groups, no biases.

- A ``unit_weight`` is divided by its magnitude where it is used, and also after
  each update, see ``forced``: an update rotates it, and cannot make it longer.
- Sums, concatenations, SiLU and Fourier features are scaled such that unit
  variance in is unit variance out.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from diffusion_jax.models import backbone
from diffusion_jax.models.attention import attend, num_heads, split_qkv
from diffusion_jax.models.convolution import conv_general_dilated
from diffusion_jax.models.layers import Images, everywhere
from diffusion_jax.models.resampling import RESAMPLE
from diffusion_jax.models.settings import check_levels

WEIGHT = "unit_weight"  # the name of every parameter of unit magnitude
Real = Float[Array, "..."]


def normalised(x: Real, axis: int | Sequence[int], eps: float = 1e-4) -> Real:
  """Divides by eps + the root mean square over these axes (eq. 47)."""
  x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.square(x32).mean(axis=axis, keepdims=True)
  # The slope of the root at 0 is infinite; zeros stay 0.
  rms = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (eps + rms).astype(x.dtype)


def unit(weight: Real) -> Real:
  """A weight, scaled to unit magnitude for each output."""
  return normalised(weight, tuple(range(weight.ndim - 1)))


def forced(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """Keeps every ``unit_weight`` at unit magnitude; changes nothing else.

  Forced weight normalization (eq. 66): an update rotates a weight and cannot
  lengthen it, which would act as a decay of the learning rate.

  Args:
    tx: An optimizer.

  Returns:
    The optimizer with that, and with the same state.
  """

  def update(updates, state, params=None):
    updates, state = tx.update(updates, state, params)

    def turned(path, step, weight):
      if not path or getattr(path[-1], "key", None) != WEIGHT:
        return step
      return unit(weight + step) - weight

    return jax.tree_util.tree_map_with_path(turned, updates, params), state

  return optax.GradientTransformation(tx.init, update)


def mp_silu(x: Real) -> Real:
  """SiLU, whose square has mean 1 where x is a standard normal (eq. 81)."""
  return nn.silu(x) / 0.596


def mp_sum(a: Real, b: Real, t: float) -> Real:
  """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (eq. 88)."""
  return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Real, b: Real, t: float = 0.5) -> Real:
  """Concatenates channels; b has weight t in the next layer, whatever its size.

  Eq. 103: a and b are scaled by C (1 - t) / sqrt(N_a) and C t / sqrt(N_b) with
  C^2 = (N_a + N_b) / ((1 - t)^2 + t^2).
  """
  n_a, n_b = a.shape[-1], b.shape[-1]
  C = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
  return jnp.concatenate(
    [C * (1 - t) / math.sqrt(n_a) * a, C * t / math.sqrt(n_b) * b], axis=-1
  )


def mp_fourier(
  x: Num[Array, " B"], freqs: Float[Array, " D"], phases: Float[Array, " D"]
) -> Float[Array, "B D"]:
  """sqrt(2) cos(2 pi (f x + phase)) (eq. 75)."""
  return math.sqrt(2) * jnp.cos(
    2 * jnp.pi * (jnp.outer(x, freqs) + phases[None])
  )


class Fourier(nn.Module):
  """``mp_fourier`` of random frequencies and phases, which are not trained."""

  channels: int

  @nn.compact
  def __call__(self, x: Num[Array, " B"]) -> Float[Array, "B D"]:
    """The features."""
    shape = (self.channels,)
    freqs = self.param("freqs", nn.initializers.normal(1.0, jnp.float32), shape)
    phases = self.param(
      "phases", nn.initializers.uniform(1.0, jnp.float32), shape
    )
    return mp_fourier(x, *jax.lax.stop_gradient((freqs, phases)))


class Conv(nn.Module):
  """A layer of unit weights, without bias (eq. 47).

  Attributes:
    features: Output channels.
    size: Size of the kernel; 1 is a matrix.
  """

  features: int
  size: int = 1

  @nn.compact
  def __call__(self, x: Real, gain: Any = 1.0) -> Real:
    """Runs the layer; ``gain`` multiplies the output."""
    rank = 0 if self.size == 1 else x.ndim - 2
    shape = (*(self.size,) * rank, x.shape[-1], self.features)
    weight = unit(
      self.param(WEIGHT, nn.initializers.normal(1.0, jnp.float32), shape)
    )
    fan_in = math.prod(shape[:-1])
    weight = (weight * (gain / math.sqrt(fan_in))).astype(x.dtype)
    if self.size == 1:
      return x @ weight
    return conv_general_dilated(x, weight, (1,) * rank, "SAME")


class Block(nn.Module):
  """A block of the encoder or the decoder (figure 21).

  Attributes:
    features: Output channels.
    decodes: Whether it is a decoder block. An encoder block first projects its
      input to ``features`` and normalises every pixel.
    resample: "up", "down" or None.
    head_channels: Channels per attention head; None is no attention.
    dropout: Rate before the second convolution.
    kernel: See ``attention.attend``.
    residual_balance: t of the sum with the convolutions' output.
    attention_balance: t of the sum with the attention's output.
    clip: The largest activation, for float16.
  """

  features: int
  decodes: bool
  resample: str | None = None
  head_channels: int | None = None
  dropout: float = 0.0
  kernel: str = "xla"
  residual_balance: float = 0.3
  attention_balance: float = 0.3
  clip: float = 256.0

  @nn.compact
  def __call__(self, x: Images, emb: Float[Array, "B D"], train: bool):
    """Runs the block."""
    x = RESAMPLE[self.resample](x)
    skip = functools.partial(Conv, self.features, name="skip")
    wider = x.shape[-1] != self.features
    if not self.decodes:
      x = normalised(skip()(x) if wider else x, axis=-1)
    h = Conv(self.features, 3, name="conv1")(mp_silu(x))
    gain = self.param("gain", nn.initializers.zeros_init(), (), jnp.float32)
    c = 1 + Conv(self.features, name="emb")(emb, gain)
    h = mp_silu(h * everywhere(c, h).astype(h.dtype))
    h = nn.Dropout(self.dropout)(h, deterministic=not train)
    h = Conv(self.features, 3, name="conv2")(h)
    if self.decodes and wider:
      x = skip()(x)
    x = mp_sum(x, h, self.residual_balance)
    if self.head_channels is not None:
      x = mp_sum(x, self.attend(x), self.attention_balance)
    return jnp.clip(x, -self.clip, self.clip)

  def attend(self, x: Images) -> Images:
    """Cosine attention: q, k and v have unit magnitude."""
    b, *size, c = x.shape
    heads = num_heads(c, 1, self.head_channels)
    qkv = Conv(3 * c, name="qkv")(x).reshape(b, math.prod(size), 3 * c)
    q, k, v = (normalised(y, axis=-1) for y in split_qkv(qkv, heads, "qkv"))
    out = attend(q, k, v, self.kernel).reshape(x.shape)
    return Conv(c, name="proj")(out)


class EDM2(nn.Module):
  """EDM2's network, for ``targets.edm`` with ``edm.c_in`` and ``c_noise``.

  Attributes:
    channels: The unit that ``multipliers`` multiply, see ``presets.EDM2``.
    multipliers: Channels of each level; each level but the first has half the
      size of the one before.
    num_blocks: Blocks per level; the decoder has one more.
    attention_levels: Levels with self-attention, 0 is the full size.
    head_channels: Channels per attention head.
    dropout: Rate inside the blocks.
    out_channels: Channels of the output; by default those of the input.
    num_classes: Condition on classes 0..num_classes-1; the next number means no
      class. None is unconditional.
    label_balance: t of the sum of time and class.
    skip_balance: t of the concatenation with the encoder's activations.
    dtype: Dtype of the activations; weights, embedding and output are float32.
    remat: Recompute activations for the gradient, see ``unet.Encoder``.
    attention_kernel: See ``attention.attend``.
  """

  channels: int = 192
  multipliers: Sequence[int] = (1, 2, 3, 4)
  num_blocks: int = 3
  attention_levels: Sequence[int] = (2, 3)
  head_channels: int = 64
  dropout: float = 0.0
  out_channels: int | None = None
  num_classes: int | None = None
  label_balance: float = 0.5
  skip_balance: float = 0.5
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  attention_kernel: str = "xla"

  takes: ClassVar[Sequence[str]] = ("y",)

  def check_size(self, size: Sequence[int], /) -> None:
    """Checks that images of this size can be halved for every level.

    Raises:
      ValueError: If not; the message has the nearest size that works.
    """
    backbone.check_halvings(size, len(self.multipliers))

  def width(self, level: int) -> int:
    """Channels of a level."""
    return int(self.channels * self.multipliers[level])

  def embed(self, t, y):
    """The activated embedding of time and class."""
    backbone.check_classes(self, y)
    dim = max(map(self.width, range(len(self.multipliers))))
    waves = Fourier(self.width(0), name="fourier")(t)
    emb = Conv(dim, name="time")(waves)
    if self.num_classes is not None:
      one_hot = jax.nn.one_hot(y, self.num_classes) * self.num_classes**0.5
      emb = mp_sum(emb, Conv(dim, name="classes")(one_hot), self.label_balance)
    return mp_silu(emb)

  def block(self, level, name, *, decodes, resample=None, attention=None):
    """A block with a level's channels, and attention if the level has it."""
    make = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
    attends = level in self.attention_levels if attention is None else attention
    return make(
      self.width(level), decodes, resample,
      self.head_channels if attends else None, self.dropout,
      self.attention_kernel, name=name,
    )  # fmt: skip

  @nn.compact
  def __call__(
    self,
    x_t: Images,
    t: Num[Array, " B"],
    cond: Mapping[str, Any] | None = None,
    *,
    train: bool = False,
  ) -> Float[Array, "B *size C_out"]:
    """Runs the network.

    Args:
      x_t: Noisy images of unit magnitude.
      t: Their noise level, ``edm.c_noise``, of order 1.
      cond: {"y": classes}, if it is class-conditional.
      train: Whether to apply dropout (needs the rng "dropout").

    Returns:
      The prediction, float32; 0 before training.

    Raises:
      ValueError: If the size cannot be halved often enough, classes are missing
        or not expected, there is another condition, or a setting is wrong.
    """
    (y,) = backbone.parts(cond, self.takes, x_t)
    check_levels(self)
    self.check_size(x_t.shape[1:-1])
    emb = self.embed(t, y)
    ones = jnp.ones_like(x_t[..., :1])  # instead of biases
    h = jnp.concatenate([x_t, ones], axis=-1).astype(self.dtype)
    h = Conv(self.width(0), 3, name="stem")(h)
    skips, last = [h], len(self.multipliers) - 1
    encode = functools.partial(self.block, decodes=False)
    decode = functools.partial(self.block, decodes=True)
    for level in range(last + 1):
      if level:
        down = encode(
          level - 1, f"down{level}", resample="down", attention=False
        )
        h = down(h, emb, train)
        skips.append(h)
      for k in range(self.num_blocks):
        h = encode(level, f"enc{level}_{k}")(h, emb, train)
        skips.append(h)
    h = decode(last, "mid0", attention=True)(h, emb, train)
    h = decode(last, "mid1", attention=False)(h, emb, train)
    for level in reversed(range(last + 1)):
      if level < last:
        up = decode(level + 1, f"up{level}", resample="up", attention=False)
        h = up(h, emb, train)
      for k in range(self.num_blocks + 1):
        h = mp_cat(h, skips.pop(), self.skip_balance)
        h = decode(level, f"dec{level}_{k}")(h, emb, train)
    gain = self.param("gain", nn.initializers.zeros_init(), (), jnp.float32)
    out = Conv(self.out_channels or x_t.shape[-1], 3, name="out")(h, gain)
    return out.astype(jnp.float32)


class Uncertainty(nn.Module):
  """u, the logarithm of the expected loss at a noise level.

  Attributes:
    channels: Fourier features of the noise level.
  """

  channels: int = 128

  @nn.compact
  def __call__(self, clock: Num[Array, " B"]) -> Float[Array, " B"]:
    """The value at the network's time, ``edm.c_noise``."""
    # The time is infinite if no data, or no noise, is left.
    clock = jnp.clip(clock, -10, 10)
    features = Fourier(self.channels, name="fourier")(clock)
    return Conv(1, name="linear")(features)[:, 0]
