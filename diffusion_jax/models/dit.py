"""Transformers in pixel space: DiT and JiT, one network by settings.

Peebles and Xie 2023, "Scalable diffusion models with transformers"; Li and He
2025, "Back to basics: let denoising generative models denoise".
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from diffusion_jax import shapes
from diffusion_jax.models import backbone, transformer
from diffusion_jax.models.layers import INIT, ZERO, Images, sinusoid
from diffusion_jax.models.settings import check_common

SINES = 256  # of the time
SMALL = nn.initializers.normal(0.02, jnp.float32)


class DiT(nn.Module):
  """Patches of an image as tokens; the defaults are DiT-S/2.

  Patches of signals have ``patch`` positions, those of volumes are cubes; the
  axes share the channels of the position embedding, see ``transformer.angles``.

  The blocks are equal and run as one loop: neither the program nor the time to
  compile it grows with ``depth``. A new network predicts zero.

  Attributes:
    patch: Side of a patch, along every axis.
    width: Channels of a token.
    depth: Number of blocks.
    heads: Attention heads.
    mlp_ratio: Channels inside an MLP for each channel of a token; "swiglu" has
      two thirds of them, twice.
    mlp: "gelu" or "swiglu".
    norm: "layer" without parameters, or "rms".
    qk_norm: Normalise each head's queries and keys.
    rope: Rotate queries and keys by their position (RoPE), besides adding
      position embeddings.
    bottleneck: Channels through which patches are projected; None projects
      them directly.
    class_tokens: Number of class tokens before those of the image, if there
      are classes.
    class_start: The block before which class tokens are added, 0 is the first.
    dropout: Rate inside the blocks of the middle half, as in JiT.
    out_channels: Channels of the output; by default those of the input.
    num_classes: Condition on classes 0..num_classes-1; None is unconditional.
    time_scale: The network gets (t - time_origin) * time_scale: 0..T-1 for
      steps 1..T; -1 is JiT's 1 - t, in which 1 is clean.
    time_origin: 1 for discrete time.
    augment_labels: How many numbers describe an image's augmentation.
    vector: How many numbers describe each example; 0 is none.
    noisy_low_res: Whether the small images have noise (if it upsamples any);
      its step is then an input.
    spans: Whether the time s that a step moves to is an input, as t - s; if it
      is missing, s is t.
    dtype: Dtype of the activations. Parameters, statistics of normalisation,
      softmax and output are float32.
    remat: Recompute a block's activations for the gradient, to save memory.
    attention_kernel: See ``attention.attend``.
  """

  patch: int = 2
  width: int = 384
  depth: int = 12
  heads: int = 6
  mlp_ratio: float = 4.0
  mlp: str = "gelu"
  norm: str = "layer"
  qk_norm: bool = False
  rope: bool = False
  bottleneck: int | None = None
  class_tokens: int = 0
  class_start: int = 0
  dropout: float = 0.0
  out_channels: int | None = None
  num_classes: int | None = None
  time_scale: float = 1.0
  time_origin: float = 1.0
  augment_labels: int = 0
  vector: int = 0
  noisy_low_res: bool = False
  spans: bool = False
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  attention_kernel: str = "xla"

  takes: ClassVar[Sequence[str]] = backbone.PARTS

  def check_size(self, size: Sequence[int], /) -> None:
    """Checks that patches fill images of this size, and checks the settings.

    Raises:
      ValueError: If not; the message has the nearest size that works.
    """
    self._check_settings()
    sides = shapes.by(self.patch for _ in size)
    backbone.check_multiple(size, self.patch, f"patches are of {sides}")
    pairs = (self.width // self.heads if self.rope else self.width) // 2
    if pairs < len(size):
      raise ValueError(
        f"width={self.width} has {pairs} pairs of channels for positions"
        f"{' in each head' if self.rope else ''}: must be one for each of the "
        f"{len(size)} axes"
      )

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
      t: Their times.
      cond: "y", their classes, if it has any; "low_res", small images to
        upsample, which are enlarged linearly and joined to x_t's channels;
        "low_res_t", their steps, with ``noisy_low_res``; "augment",
        [B, augment_labels]; "s", the time that a step moves to, with ``spans``;
        "vector", [B, vector]; "planes", images [B, H, W, k], which are joined
        to x_t's channels.
      train: Whether to apply dropout (needs the rng "dropout").

    Returns:
      The prediction, float32.

    Raises:
      ValueError: If patches do not fill the images, classes are missing or not
        expected, or a setting is wrong.
    """
    size = x_t.shape[1:-1]
    self.check_size(size)
    given = backbone.parts(cond, x_t=x_t)
    y, low_res, low_res_t, augment, s, vector, planes = given
    backbone.check_classes(self, y)
    backbone.check_low_res(self, low_res_t)
    backbone.check_vector(self, vector)
    span = backbone.span(self, t, s)
    c, classes = self._embed(t, y, low_res_t, augment, span, vector)
    grid = tuple(side // self.patch for side in size)
    h = self._tokens(backbone.beside(x_t, low_res, planes), grid)
    h = self._through(h, c, self._class_tokens(classes), grid, train)
    channels = self.out_channels or x_t.shape[-1]
    out = self._patches(h, c, self.patch ** len(size) * channels)
    out = transformer.unpatchify(out, self.patch, size)
    return out.astype(jnp.float32)

  def _dense(self, features: int, name: str, init=INIT) -> nn.Dense:
    return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

  def _embed(self, t, y, low_res_t, augment, span, vector):
    """The activated sum of all embeddings, and that of the class alone."""

    def mapped(h, name, last=SMALL):
      h = nn.silu(self._dense(self.width, f"{name}1", SMALL)(h))
      return self._dense(self.width, f"{name}2", last)(h)

    def of_time(time, name, last=SMALL):
      h = sinusoid(time * self.time_scale, SINES, "cos_sin")
      return mapped(h, name, last)

    c, classes = of_time(t - self.time_origin, "time"), None
    if self.num_classes is not None:
      classes = nn.Embed(
        self.num_classes, self.width, dtype=self.dtype, embedding_init=SMALL,
        name="classes",
      )(y)  # fmt: skip
      c += classes
    if low_res_t is not None:
      c += of_time(low_res_t, "low_res")
    if span is not None:  # starts as a network without spans
      c += of_time(span, "span", ZERO)
    if self.augment_labels:
      labels = jnp.zeros((len(t), self.augment_labels))
      c += mapped(labels if augment is None else augment, "augment")
    if vector is not None:
      c += mapped(vector, "vector")
    return nn.silu(c), classes

  def _tokens(self, x, grid: Sequence[int]):
    """Projected patches, plus their position embeddings."""
    h = transformer.patchify(x.astype(self.dtype), self.patch)
    if self.bottleneck is not None:
      h = nn.Dense(
        self.bottleneck, use_bias=False, dtype=self.dtype, kernel_init=INIT,
        name="bottleneck",
      )(h)  # fmt: skip
    where = jnp.asarray(transformer.sin_cos(grid, self.width), self.dtype)
    return self._dense(self.width, "patches")(h) + where[None]

  def _class_tokens(self, classes):
    """The class as tokens with learned position embeddings."""
    if classes is None or not self.class_tokens:
      return None
    shape = (self.class_tokens, self.width)
    where = self.param("class_positions", SMALL, shape)
    return classes[:, None] + where.astype(self.dtype)[None]

  def _through(self, h, c, classes, grid: Sequence[int], train):
    """All blocks; the class tokens join at ``class_start``."""
    head = self.width // self.heads
    rates = None
    if train and self.dropout:
      rates = jnp.asarray(dropout_rates(self.depth, self.dropout))
    start = self.depth if classes is None else self.class_start

    def run(h, name, first, last, ahead):
      if first == last:
        return h
      by = None
      if self.rope:
        by = transformer.turn(grid, head, ahead)
      some = None if rates is None else rates[first:last]
      return self._blocks(name, last - first)(h, c, by, some)[0]

    h = run(h, "blocks", 0, start, 0)
    if classes is None:
      return h
    ahead = self.class_tokens
    h = jnp.concatenate([classes, h], axis=1)
    return run(h, "blocks_with_class", start, self.depth, ahead)[:, ahead:]

  def _blocks(self, name: str, length: int) -> nn.Module:
    return transformer.stack(transformer.Block, length, remat=self.remat)(
      self.heads, self._hidden(), self.mlp, self.norm, self.qk_norm, self.dtype,
      self.attention_kernel, name=name,
    )  # fmt: skip

  def _hidden(self) -> int:
    """Channels inside an MLP."""
    hidden = int(self.width * self.mlp_ratio)
    return int(hidden * 2 / 3) if self.mlp == "swiglu" else hidden

  def _patches(self, h, c, features: int):
    """The last normalisation, modulated, and the layer that predicts."""
    two = self._dense(2 * self.width, "modulation", ZERO)(c)[:, None]
    shift, scale = jnp.split(two, 2, axis=-1)
    h = transformer.norm(self.norm, self.dtype, "norm_out")(h)
    h = transformer.modulated(h, shift, scale)
    return self._dense(features, "out", ZERO)(h)

  def _check_settings(self) -> None:
    """Checks settings that would fail only later.

    Raises:
      ValueError: With the setting, its value and what is allowed.
    """
    for name, allowed in {
      "mlp": transformer.MLPS, "norm": transformer.NORMS,
    }.items():  # fmt: skip
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}"
        )
    for name in ("patch", "width", "depth", "heads", "bottleneck"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    # Sines and cosines, of rows and columns: of a token, and of a head.
    unit = self.heads * 4 if self.rope else self.heads
    if self.width % unit or self.width % 4:
      raise ValueError(
        f"width={self.width} must be a multiple of 4 and of {unit}, for "
        f"heads={self.heads}{' with rope' if self.rope else ''}"
      )
    if self._hidden() < 1:
      raise ValueError(
        f"mlp_ratio={self.mlp_ratio} must be larger: the MLP has no channels"
      )
    if self.class_tokens < 0:
      raise ValueError(f"class_tokens={self.class_tokens} must be at least 0")
    if not 0 <= self.class_start < self.depth:
      raise ValueError(
        f"class_start={self.class_start} must be a block, 0..{self.depth - 1}"
      )
    check_common(self)


def dropout_rates(depth: int, rate: float) -> np.ndarray:
  """The rate of each block: 0 in the first and last quarter (JiT's code)."""
  block, quarter = np.arange(depth), depth // 4
  middle = (block >= quarter) & (block < 3 * quarter)
  return np.where(middle, rate, 0.0).astype(np.float32)


class JiT(DiT):
  """JiT, a DiT for large patches; the defaults are JiT-B/16.

  RMS norms, also of queries and keys, RoPE, SwiGLU, a bottleneck for the
  pixels of a patch, and class tokens. It should predict x_0 (``targets.x0``)
  and minimise the error of the velocity (``targets.jit``). The attributes are
  those of ``DiT``.
  """

  patch: int = 16
  width: int = 768
  heads: int = 12
  mlp: str = "swiglu"
  norm: str = "rms"
  qk_norm: bool = True
  rope: bool = True
  bottleneck: int | None = 128
  class_tokens: int = 32
  class_start: int = 4
  time_scale: float = -1.0


# Sizes by the papers' names; with patches of n x n, "S" is DiT-S/n.
DIT: dict[str, dict[str, int]] = {
  "S": {"width": 384, "depth": 12, "heads": 6},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "XL": {"width": 1152, "depth": 28, "heads": 16},
}
JIT: dict[str, dict[str, int]] = {
  "B": {**DIT["B"], "bottleneck": 128, "class_start": 4},
  "L": {**DIT["L"], "bottleneck": 128, "class_start": 8},
  "H": {
    "width": 1280, "depth": 32, "heads": 16, "bottleneck": 256,
    "class_start": 10,
  },
  "G": {
    "width": 1664, "depth": 40, "heads": 16, "bottleneck": 256,
    "class_start": 10,
  },
}  # fmt: skip
