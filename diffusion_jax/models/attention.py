"""Self-attention: its layer, its heads, and which kernel computes it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models.layers import ZERO, Images, MakeNorm, Norm, scaled

# One Dense layer for q, k and v has three times the fan-out of each; twice
# the scale gives each the variance of a layer of its own.
QKV_INIT = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")

QKV_ORDERS = ("qkv", "heads")
KERNELS = ("xla", "cudnn")
# A cuDNN kernel takes a third of XLA's time with 256 tokens, and a fifth more
# with 64 (4 heads of 64 channels, with gradients, on an H100).
LEAST_TOKENS = 128


def attend(
  q: Float[Array, "B N heads C"],
  k: Float[Array, "B N heads C"],
  v: Float[Array, "B N heads C"],
  kernel: str = "xla",
) -> Float[Array, "B N heads C"]:
  """softmax(q k^T / sqrt(C)) v, with the softmax in float32.

  Args:
    q: Queries.
    k: Keys.
    v: Values.
    kernel: "cudnn" never stores the weights [B, heads, N, N]: less memory
      traffic, on NVIDIA GPUs only, for 16-bit activations and without
      forward-mode derivatives. Elsewhere, and for few tokens, it is "xla".

  Returns:
    The attended values.
  """
  here = jax.default_backend() == "gpu" and q.dtype.itemsize == 2
  cudnn = kernel == "cudnn" and here and q.shape[1] >= LEAST_TOKENS
  return jax.nn.dot_product_attention(
    q, k, v, implementation="cudnn" if cudnn else "xla"
  )


class Attention(nn.Module):
  """Self-attention over all pixels, plus the input.

  Attributes:
    heads: Number of heads; must divide the channels.
    head_channels: Channels per head, instead of ``heads``.
    qkv_order: The order of the fused projection's channels: "qkv" has all of q
      first, "heads" has q, k and v of the first head first. The shapes are the
      same.
    norm: Makes a normalisation.
    dtype: Dtype of the activations; the softmax is float32.
    skip_scale: Factor of the sum with the input.
    kernel: See ``attend``.
  """

  heads: int = 1
  head_channels: int | None = None
  qkv_order: str = "qkv"
  norm: MakeNorm = Norm
  dtype: DTypeLike = jnp.float32
  skip_scale: float = 1.0
  kernel: str = "xla"

  @nn.compact
  def __call__(self, x: Images) -> Images:
    """Attends; the shape does not change."""
    b, *size, c = x.shape
    tokens = self.norm()(x).reshape(b, math.prod(size), c)
    qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=QKV_INIT, name="qkv")(
      tokens
    )
    heads = num_heads(c, self.heads, self.head_channels)
    q, k, v = split_qkv(qkv, heads, self.qkv_order)
    out = attend(q, k, v, self.kernel).reshape(x.shape)
    out = nn.Dense(c, dtype=self.dtype, kernel_init=ZERO, name="out")(out)
    return scaled(x + out, self.skip_scale)


def num_heads(channels: int, heads: int, head_channels: int | None) -> int:
  """The number of heads for this many channels.

  Raises:
    ValueError: If it does not divide the channels.
  """
  if head_channels is not None:
    heads = channels // head_channels
  if heads < 1 or channels % (head_channels or heads):
    raise ValueError(
      f"attention over {channels} channels cannot have {heads=}, "
      f"{head_channels=}"
    )
  return heads


def split_qkv(
  qkv: Float[Array, "B N C3"], heads: int, order: str
) -> list[Float[Array, "B N heads C"]]:
  """Splits the fused projection into q, k and v, by head.

  Raises:
    ValueError: If order is neither "qkv" nor "heads".
  """
  *lead, c = qkv.shape
  if order == "qkv":
    qkv, axis = qkv.reshape(*lead, 3, heads, c // (3 * heads)), -3
  elif order == "heads":
    qkv, axis = qkv.reshape(*lead, heads, 3, c // (3 * heads)), -2
  else:
    raise ValueError(f"qkv_order={order!r} is not one of {QKV_ORDERS}")
  return list(jnp.moveaxis(qkv, axis, 0))
