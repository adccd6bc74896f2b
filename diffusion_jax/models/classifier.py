"""A classifier of noisy images (Dhariwal and Nichol 2021, section 4)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from diffusion_jax.models import backbone
from diffusion_jax.models.attention import QKV_INIT, num_heads, split_qkv
from diffusion_jax.models.layers import INIT, ZERO, Images
from diffusion_jax.models.unet import Encoder

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048  # of the spatial pools


class Classifier(Encoder):
  """The encoder and the middle of the U-Net, and a pooling layer.

  The attributes are those of ``Encoder`` and:

  Attributes:
    num_labels: The number of classes.
    pool: "attention" lets the mean of all positions attend to them (the
      published classifiers), "adaptive" averages over positions, "spatial"
      and "spatial_v2" average every activation of the encoder and put two
      layers on top, "spatial_v2" with a normalisation between them.
  """

  num_labels: int = 1000
  pool: str = "attention"

  takes: ClassVar[Sequence[str]] = ()

  @nn.compact
  def __call__(
    self,
    x_t: Images,
    t: Num[Array, " B"],
    cond: None = None,
    *,
    train: bool = False,
  ) -> Float[Array, "B num_labels"]:
    """Runs the network.

    Args:
      x_t: Noisy images.
      t: Their steps, 1..T.
      cond: None; a classifier takes no condition.
      train: Whether to apply dropout (needs the rng "dropout").

    Returns:
      Logits of p(y | x_t), float32.

    Raises:
      ValueError: If the size cannot be halved often enough, a setting is
        unknown, or there is a condition.
    """
    backbone.parts(cond, self.takes)
    if self.pool not in POOLS:
      raise ValueError(f"pool={self.pool!r} is not one of {POOLS}")
    emb = self.embed(t, None)
    outputs = self.down(x_t, emb, train)
    outputs.append(self.middle(outputs[-1], emb, train))
    if self.pool.startswith("spatial"):
      means = [_mean(h.astype(jnp.float32)) for h in outputs]
      h = nn.Dense(HIDDEN, name="hidden")(jnp.concatenate(means, axis=-1))
      h = nn.relu(h) if self.pool == "spatial" else nn.silu(self.norm()(h))
      return nn.Dense(self.num_labels, name="out")(h)
    h = nn.silu(self.norm()(outputs[-1])).astype(jnp.float32)
    if self.pool == "adaptive":
      return nn.Dense(self.num_labels, kernel_init=ZERO, name="out")(_mean(h))
    return AttentionPool(
      self.num_labels, self.heads, self.head_channels, name="pool"
    )(h)


def _mean(h: Images) -> Float[Array, "B C"]:
  """Over all pixels."""
  return h.mean(axis=tuple(range(1, h.ndim - 1)))


class AttentionPool(nn.Module):
  """The mean of all positions attends to itself and to them (CLIP's pool).

  Attributes:
    features: Output features.
    heads: Attention heads.
    head_channels: Channels per head, instead of ``heads``.
    dtype: Dtype of the activations.
  """

  features: int
  heads: int = 1
  head_channels: int | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Images) -> Float[Array, "B features"]:
    """Pools."""
    b, *size, c = x.shape
    x = x.reshape(b, math.prod(size), c)
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    positions = nn.initializers.normal(c**-0.5, jnp.float32)
    x += self.param("positions", positions, x.shape[1:])[None]
    qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=QKV_INIT, name="qkv")(x)
    heads = num_heads(c, self.heads, self.head_channels)
    q, k, v = split_qkv(qkv, heads, "qkv")
    pooled = jax.nn.dot_product_attention(q[:, :1], k, v).reshape(b, c)
    return nn.Dense(
      self.features, dtype=self.dtype, kernel_init=INIT, name="out"
    )(pooled)
