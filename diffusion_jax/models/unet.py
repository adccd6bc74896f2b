"""The U-Net of DDPM, Improved DDPM and ADM: one network, by settings.

Ho et al. 2020, appendix B; Nichol and Dhariwal 2021; Dhariwal and Nichol
2021, section 3.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from diffusion_jax.models import backbone
from diffusion_jax.models.attention import Attention
from diffusion_jax.models.layers import (
  INIT,
  ZERO,
  Images,
  Norm,
  ResBlock,
  conv,
  sinusoid,
)
from diffusion_jax.models.resampling import filtered
from diffusion_jax.models.settings import check_settings


class Encoder(nn.Module):
  """The embedding and the encoder, shared by the U-Net and the classifier.

  Every level has ``num_blocks`` residual blocks; time, and the class if there
  is one, enter each of them.

  Attributes:
    channels: The unit that ``multipliers`` multiply.
    multipliers: Channels of each level; each level but the first has half
      the size of the one before.
    num_blocks: Residual blocks per level.
    attention_levels: Levels with self-attention after each block, 0 is the
      full size.
    heads: Attention heads.
    head_channels: Channels per attention head, instead of ``heads``.
    qkv_order: See ``attention.Attention``.
    dropout: Rate inside the residual blocks; one number, or one per level.
    scale_shift: Time scales and shifts (adaptive group normalisation)
      instead of being added.
    resample: "conv" changes size with a convolution (DDPM), "block" with an
      extra residual block (ADM).
    out_channels: Channels of the output; by default those of the input.
    num_classes: Condition on classes 0..num_classes-1; None is
      unconditional.
    time_scale: The network gets (t - time_origin) * time_scale: published
      networks count steps from 0, and some expect them rescaled by 1000 / T.
    time_origin: 1 for discrete time, 0 for continuous time.
    embedding: Embedding of the time, see ``layers.sinusoid``.
    groups: Groups of every normalisation; None is ``layers.num_groups``.
    epsilon: Epsilon of every normalisation.
    padding: Padding of the convolutions that halve the size: "same" pads below
      and to the right (TensorFlow), "symmetric" all around (PyTorch).
    dtype: Dtype of the activations. Parameters, normalisation, softmax and
      output are float32.
    stem: Channels of the first convolution, by default those of its level.
    skip_scale: Factor of every sum of a block with its input: sqrt(1/2) keeps
      the variance (DDPM++, NCSN++; Song et al. 2021).
    taps: Taps of the filter with which "block" resamples, see
      ``resampling.filtered``.
    project: Whether resampled inputs go through a layer, see
      ``layers.ResBlock``.
    up_attention: Whether "every" block of a decoder level has attention, or
      only the "last".
    pyramid: Whether to add the downsampled image at each level (the "residual"
      encoder of NCSN++).
    early_classes: Whether classes are added to the time embedding before its
      layers (EDM), or after.
    augment_labels: How many numbers describe an image's augmentation.
    vector: How many numbers describe each example; 0 is none.
    remat: Recompute the activations of residual and attention blocks for the
      gradient: less memory for about a third more FLOPs.
    attention_kernel: See ``attention.attend``.
  """

  channels: int = 128
  multipliers: Sequence[int | float] = (1, 2, 2, 2)
  num_blocks: int = 2
  attention_levels: Sequence[int] = (1,)
  heads: int = 1
  head_channels: int | None = None
  qkv_order: str = "qkv"
  dropout: float | Sequence[float] = 0.0
  scale_shift: bool = False
  resample: str = "conv"
  out_channels: int | None = None
  num_classes: int | None = None
  time_scale: float = 1.0
  time_origin: float = 1.0
  embedding: str = "sin_cos"
  groups: int | None = None
  epsilon: float = 1e-6
  padding: str = "same"
  dtype: DTypeLike = jnp.float32
  stem: int | None = None
  skip_scale: float = 1.0
  taps: Sequence[float] = (1, 1)
  project: bool = False
  up_attention: str = "every"
  pyramid: bool = False
  early_classes: bool = False
  augment_labels: int = 0
  vector: int = 0
  remat: bool = False
  attention_kernel: str = "xla"

  def check_size(self, size: Sequence[int], /) -> None:
    """Checks that images of this size can be halved for every level.

    Raises:
      ValueError: If not; the message has the nearest size that works.
    """
    backbone.check_halvings(size, len(self.multipliers))

  @property
  def norm(self):
    """Makes a normalisation."""
    return functools.partial(Norm, self.groups, self.epsilon)

  def width(self, level: int) -> int:
    """Channels of a level."""
    return int(self.channels * self.multipliers[level])

  def _time(self, time):
    """The embedding of times; "fourier" has random frequencies (NCSN++)."""
    if self.embedding != "fourier":
      return sinusoid(time, self.channels, self.embedding)
    freqs = self.param(
      "frequencies", nn.initializers.normal(16.0, jnp.float32), (self.channels,)
    )
    angles = jnp.outer(time, 2 * jnp.pi * jax.lax.stop_gradient(freqs))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

  def embed(self, t, y, low_res_t=None, augment=None, span=None, vector=None):
    """The activated embedding of all inputs but x_t, [B, 4 * channels]."""
    check_settings(self)
    backbone.check_classes(self, y)
    backbone.check_vector(self, vector)
    dim = 4 * self.channels

    def mapped(name, h, init=INIT):
      dense = functools.partial(nn.Dense, dim, dtype=self.dtype)
      h = nn.silu(dense(kernel_init=INIT, name=f"{name}1")(h))
      return dense(kernel_init=init, name=f"{name}2")(h)

    emb = self._time((t - self.time_origin) * self.time_scale)
    if self.early_classes and y is not None:
      count = self.num_classes or 0
      one_hot = jax.nn.one_hot(y, count) * count**0.5
      emb += nn.Dense(
        emb.shape[-1], dtype=self.dtype, kernel_init=INIT, name="classes"
      )(one_hot)
    if self.augment_labels:
      labels = jnp.zeros((len(emb), self.augment_labels))
      emb += nn.Dense(
        emb.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=INIT,
        name="augment",
      )(labels if augment is None else augment)  # fmt: skip
    emb = mapped("time", emb)
    if self.num_classes is not None and not self.early_classes:
      emb += nn.Embed(
        self.num_classes,
        dim,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(1.0),
        name="classes",
      )(y)
    for name, time, init in (
      ("low_res", low_res_t, INIT),
      ("span", span, ZERO),  # Starts as a network without spans.
    ):
      if time is not None:
        h = sinusoid(time * self.time_scale, self.channels, self.embedding)
        emb += mapped(name, h, init)
    if vector is not None:
      emb += mapped("vector", vector)
    return nn.silu(emb)

  def res_block(self, h, emb, train, level, resample=None):
    """One residual block with a level's channels and dropout."""
    rates = self.dropout
    dropout = rates if isinstance(rates, int | float) else rates[level]

    def block(self, h, emb):
      return ResBlock(
        self.width(level),
        dropout,
        self.scale_shift,
        resample,
        self.norm,
        self.dtype,
        self.taps,
        self.project,
        self.skip_scale,
      )(h, emb, train)

    return self._saving(block)(self, h, emb)

  def attend(self, h):
    """Self-attention."""

    def block(self, h):
      return Attention(
        self.heads,
        self.head_channels,
        self.qkv_order,
        self.norm,
        self.dtype,
        self.skip_scale,
        self.attention_kernel,
      )(h)

    return self._saving(block)(self, h)

  def _saving(self, block):
    """The block, with its activations recomputed if ``remat``."""
    return nn.remat(block) if self.remat else block

  def block(self, h, emb, train, level):
    """A residual block, and attention if the level has it."""
    h = self.res_block(h, emb, train, level)
    return self.attend(h) if level in self.attention_levels else h

  def down(self, x, emb, train):
    """The encoder: all activations of the first convolution and the levels."""
    self.check_size(x.shape[1:-1])
    h = conv(x.astype(self.dtype), self.stem or self.width(0), self.dtype)
    outputs, image = [h], x
    for level in range(len(self.multipliers)):
      if level != 0:
        h = self._halve(h, emb, train, level - 1)
        if self.pyramid:
          h = image = self._joined(h, image, level)
        outputs.append(h)
      for _ in range(self.num_blocks):
        h = self.block(h, emb, train, level)
        outputs.append(h)
    return outputs

  def _joined(self, h, image, level):
    """An activation and the image at half of its size."""
    side = 1 + (len(self.taps) - 1) // 2  # So that the filter needs no zeros.
    image = conv(
      image.astype(self.dtype), h.shape[-1], self.dtype, padding=(side, side),
      name=f"image_{level}",
    )  # fmt: skip
    image = filtered(image, self.taps, "down", padded=False)
    return (h + image) * 0.5**0.5

  def middle(self, h, emb, train):
    """Block, attention, block at the smallest size."""
    last = len(self.multipliers) - 1
    h = self.res_block(h, emb, train, last)
    h = self.attend(h)
    return self.res_block(h, emb, train, last)

  def _halve(self, h, emb, train, level):
    if self.resample == "block":
      return self.res_block(h, emb, train, level, "down")
    padding = "SAME" if self.padding == "same" else (1, 1)
    return conv(h, h.shape[-1], self.dtype, stride=2, padding=padding)


class UNet(Encoder):
  """Predicts, from (x_t, t), an image of x_t's size.

  For images [B, H, W, C], signals [B, L, C] or volumes [B, D, H, W, C]:
  convolutions have 3 taps along each axis of the size, levels halve each, and
  attention and normalisation go over all pixels.

  The decoder has one more block per level than the encoder; each of its blocks
  also gets the encoder's activation of the same level. With a learned variance,
  ``out_channels`` is twice the image's. The attributes are those of ``Encoder``
  and:

  Attributes:
    noisy_low_res: Whether the small images have noise (if it upsamples any);
      its step is then an input.
    spans: Whether the time s that a step moves to is an input, as t - s; if it
      is missing, s is t.
  """

  noisy_low_res: bool = False
  spans: bool = False

  takes: ClassVar[Sequence[str]] = backbone.PARTS

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
      x_t: Noisy images.
      t: Their steps, 1..T.
      cond: The condition, see ``conditions``: "y", their classes, if it has
        any; "low_res", small images to upsample, which are enlarged linearly
        and joined to x_t's channels; "low_res_t", the steps to which these are
        noised, 0..T, with ``noisy_low_res``; "s", the time that a step moves
        to, with ``spans``; "vector", [B, vector]; "planes", images
        [B, H, W, k], which are joined to x_t's channels.
      train: Whether to apply dropout (needs the rng "dropout").

    Returns:
      The prediction, float32.

    Raises:
      ValueError: If the size cannot be halved often enough, classes are
        missing or not expected, or a setting is unknown.
    """
    given = backbone.parts(cond, x_t=x_t)
    y, low_res, low_res_t, augment, s, vector, planes = given
    backbone.check_low_res(self, low_res_t)
    span = backbone.span(self, t, s)
    out_channels = self.out_channels or x_t.shape[-1]
    emb = self.embed(t, y, low_res_t, augment, span, vector)
    skips = self.down(backbone.beside(x_t, low_res, planes), emb, train)
    h = self.middle(skips[-1], emb, train)
    for level in reversed(range(len(self.multipliers))):
      for number in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.res_block(h, emb, train, level)
        last = number == self.num_blocks or self.up_attention == "every"
        if last and level in self.attention_levels:
          h = self.attend(h)
      if level != 0:
        h = self._double(h, emb, train, level)
    h = nn.silu(self.norm()(h))
    return conv(h, out_channels, self.dtype, init=ZERO).astype(jnp.float32)

  def _double(self, h, emb, train, level):
    if self.resample == "block":
      return self.res_block(h, emb, train, level, "up")
    return conv(h, h.shape[-1], self.dtype, upsampled=True)
