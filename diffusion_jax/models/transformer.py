"""The parts of a diffusion transformer."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models.attention import attend, split_qkv
from diffusion_jax.models.layers import INIT, ZERO, Images

Tokens = Float[Array, "B N D"]
OfAll = Float[Array, "B #N D"]  # one for all tokens, or one for each
# Cosines and sines of each token's angles, [N, head / 2] each.
Turn = tuple[Any, Any]

NORMS = ("layer", "rms")
MLPS = ("gelu", "swiglu")
EPSILON = 1e-6


# ------------------------------------------------------- images and tokens


def patchify(x: Images, patch: int) -> Tokens:
  """Splits images into patches, row by row; each is (row, column, channel)."""
  b, *size, c = x.shape
  rank = len(size)
  grid = [side // patch for side in size]
  x = x.reshape(b, *(n for side in grid for n in (side, patch)), c)
  where, within = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
  x = x.transpose(0, *where, *within, 2 * rank + 1)
  return x.reshape(b, math.prod(grid), patch**rank * c)


def unpatchify(tokens: Tokens, patch: int, size: Sequence[int]) -> Images:
  """Assembles patches into images of this size."""
  b, rank = len(tokens), len(size)
  c = tokens.shape[-1] // patch**rank
  grid = (side // patch for side in size)
  x = tokens.reshape(b, *grid, *(patch for _ in size), c)
  axes = (n for axis in range(1, rank + 1) for n in (axis, axis + rank))
  return x.transpose(0, *axes, 2 * rank + 1).reshape(b, *size, c)


# --------------------------------------------------------------- positions


def angles(grid: Sequence[int], pairs: int) -> list[np.ndarray]:
  """Position times frequency of every token, for each axis of the grid.

  The axes share the pairs of channels equally; in volumes, depth also gets the
  remainder. Frequency i of an axis with n of them is 10000^(-i / n).

  Args:
    grid: Tokens along each axis.
    pairs: Pairs of channels, at least one for each axis.

  Returns:
    [N, n] for each axis, in order.

  >>> [a.shape for a in angles((2, 4, 4), 16)]
  [(32, 6), (32, 5), (32, 5)]
  """
  share, left = divmod(pairs, len(grid))
  counts = [share + left, *(share for _ in grid[1:])]
  return [
    np.outer(place.ravel(), 10000.0 ** (-np.arange(n) / n))
    for place, n in zip(np.indices(grid), counts, strict=True)
  ]


def sin_cos(grid: Sequence[int], dim: int) -> np.ndarray:
  """Fixed position embeddings, [N, dim]: the last axis comes first.

  For images, sines and cosines of the column and then of the row (DiT's code;
  Vaswani et al. 2017, section 3.5, for each axis).
  """
  parts = [
    wave(angle)
    for angle in reversed(angles(grid, dim // 2))
    for wave in (np.sin, np.cos)
  ]
  return np.concatenate(parts, axis=1).astype(np.float32)


def turn(grid: Sequence[int], head: int, ahead: int = 0) -> Turn:
  """The rotation of each token's queries and keys (RoPE, along each axis).

  In images half of the pairs rotate with the row, half with the column (Su et
  al. 2021; JiT's code); see ``angles``.

  Args:
    grid: Tokens along each axis.
    head: Channels of a head, even.
    ahead: Tokens before those of the image, which are not rotated.

  Returns:
    Cosines and sines, [ahead + N, head / 2], float32.
  """
  by = np.concatenate(angles(grid, head // 2), axis=1)
  by = np.pad(by, ((ahead, 0), (0, 0)))
  return np.cos(by).astype(np.float32), np.sin(by).astype(np.float32)


def rotate(
  x: Float[Array, "B N heads C"], by: Turn
) -> Float[Array, "B N heads C"]:
  """Rotates channels 2 i and 2 i + 1 by angle i, in float32."""
  cos, sin = (jnp.asarray(part)[None, :, None] for part in by)
  a, b = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
  turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)


# ------------------------------------------------------------------- layers


def norm(kind: str, dtype: DTypeLike, name: str) -> nn.Module:
  """A normalisation over channels: "layer" has no parameters, "rms" a scale."""
  if kind == "rms":
    return nn.RMSNorm(epsilon=EPSILON, dtype=dtype, name=name)
  return nn.LayerNorm(
    epsilon=EPSILON, use_bias=False, use_scale=False, use_fast_variance=False,
    dtype=dtype, name=name,
  )  # fmt: skip


def modulated(x: Tokens, shift: OfAll, scale: OfAll) -> Tokens:
  """Adaptive normalisation, after the norm itself: x (1 + scale) + shift."""
  return x * (1 + scale) + shift


class Block(nn.Module):
  """Attention and an MLP, each modulated and gated by the condition.

  x += gate f(norm(x) (1 + scale) + shift), where a layer that starts at zero
  computes shift, scale and gate from the condition (adaLN-zero; Peebles and Xie
  2023, section 3.2): a new block is the identity.

  Attributes:
    heads: Attention heads.
    hidden: Channels inside the MLP.
    mlp: "gelu", or "swiglu": silu(a) b of two halves (Shazeer 2020).
    norm: "layer" or "rms".
    qk_norm: Whether each head's queries and keys are normalised.
    dtype: Dtype of the activations.
    kernel: See ``attention.attend``.
  """

  heads: int
  hidden: int
  mlp: str = "gelu"
  norm: str = "layer"
  qk_norm: bool = False
  dtype: DTypeLike = jnp.float32
  kernel: str = "xla"

  @nn.compact
  def __call__(
    self,
    x: Tokens,
    c: Float[Array, "B D"],
    by: Turn | None = None,
    rate: Any = None,
  ) -> tuple[Tokens, None]:
    """Runs the block, as a step of a scan.

    Args:
      x: Tokens.
      c: The activated condition.
      by: The rotation of queries and keys, if any.
      rate: Dropout rate, if any; it may differ from block to block.

    Returns:
      Tokens, and None.
    """
    six = self._dense(6 * x.shape[-1], "modulation", ZERO)(c)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(six, 6, axis=-1)
    h = modulated(norm(self.norm, self.dtype, "norm1")(x), shift1, scale1)
    x += gate1 * self._attention(h, by, rate)
    h = modulated(norm(self.norm, self.dtype, "norm2")(x), shift2, scale2)
    return x + gate2 * self._mlp(h, rate), None

  def _dense(self, features: int, name: str, init=INIT) -> nn.Dense:
    return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

  def _attention(self, h, by, rate):
    q, k, v = split_qkv(
      self._dense(3 * h.shape[-1], "qkv")(h), self.heads, "qkv"
    )
    if self.qk_norm:
      q = norm("rms", self.dtype, "norm_q")(q)
      k = norm("rms", self.dtype, "norm_k")(k)
    if by is not None:
      q, k = rotate(q, by), rotate(k, by)
    out = attend(q, k, v, self.kernel).reshape(h.shape)
    return self._dropped(self._dense(h.shape[-1], "out")(out), rate)

  def _mlp(self, h, rate):
    features = h.shape[-1]
    if self.mlp == "swiglu":
      a, b = jnp.split(self._dense(2 * self.hidden, "mlp1")(h), 2, axis=-1)
      h = self._dropped(nn.silu(a) * b, rate)
    else:
      h = nn.gelu(self._dense(self.hidden, "mlp1")(h), approximate=True)
      h = self._dropped(h, rate)
    return self._dense(features, "mlp2")(h)

  def _dropped(self, x, rate):
    """Dropout with a traced rate, which ``nn.Dropout`` does not take."""
    if rate is None:
      return x
    kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)


def stack(
  block: type[Block], length: int, *, remat: bool = False
) -> type[nn.Module]:
  """Equal blocks one after another, as one loop of ``length`` steps.

  Parameters have one more axis, the first, with an entry for each block. The
  compiled program does not grow with their number.

  Args:
    block: The class of the blocks.
    length: How many.
    remat: Whether to recompute a block's activations for the gradient.

  Returns:
    A module like ``Block``, which takes a dropout rate for each block.
  """
  once: Any = nn.remat(block, prevent_cse=False) if remat else block
  axes: Any = (nn.broadcast, nn.broadcast, 0)  # Flax's annotation: an int
  return nn.scan(
    once,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=axes,
    length=length,
  )
