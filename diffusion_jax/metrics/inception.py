"""The network that defines FID: Inception v3 of 2015-12-05.

TensorFlow's model as Heusel et al. (2017) used it, with the weights of the
published PyTorch file. It is not torchvision's Inception v3: averages exclude
the padding, the last block takes a maximum, and there are 1008 classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Images = Float[Array, "B H W C"]

SIZE = 299
SPATIAL_CHANNELS = 7
FEATURES = ("64", "192", "768", "2048", "logits", "spatial")


class Inception(nn.Module):
  """Images to features; every convolution is named as in the file.

  Batch normalisation is part of the convolutions' weights, see
  ``inception_weights.from_published``.
  """

  @nn.compact
  def __call__(self, images: UInt8[Array, "B H W C"]) -> dict[str, Array]:
    """All features.

    Args:
      images: Colour or grey, of any size.

    Returns:
      By name: "64", "192", "768" and "2048", the means over the image of
      that many channels, [B, channels]; "logits", [B, 1008], without the bias;
      "spatial", [B, 2023], the first seven channels of one layer at each of
      17 x 17 positions, used by sFID (Nash et al. 2021).

    Raises:
      ValueError: If the images have neither 1 nor 3 channels.
    """
    x = prepare(images)
    x = _unit(x, "Conv2d_1a_3x3", 32, stride=2)
    x = _unit(x, "Conv2d_2a_3x3", 32, padding="VALID")
    x = _unit(x, "Conv2d_2b_3x3", 64)
    x = _max_pool(x, 2)
    found = {"64": _spread(x)}
    x = _unit(x, "Conv2d_3b_1x1", 80, (1, 1))
    x = _unit(x, "Conv2d_4a_3x3", 192, padding="VALID")
    x = _max_pool(x, 2)
    found["192"] = _spread(x)
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = _block_a(x, f"Mixed_{name}", pooled)
    x = _block_b(x, "Mixed_6a")
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x, first = _block_c(x, f"Mixed_{name}", inner)
      if name == "6d":  # TensorFlow's mixed_6/conv
        found["spatial"] = first[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    found["768"] = _spread(x)
    x = _block_d(x, "Mixed_7a")
    x = _block_e(x, "Mixed_7b", _mean_pool)
    x = _block_e(x, "Mixed_7c", _max_pool)
    found["2048"] = _spread(x)
    dense = nn.Dense(1008, use_bias=False, precision="highest", name="fc")
    found["logits"] = dense(found["2048"])
    return found


def features(params: Any, names: Sequence[str]) -> jax.tree_util.Partial:
  """The network in the form that ``metrics.extract`` takes.

  Args:
    params: Parameters of ``Inception``, see ``inception_weights.load``.
    names: Names from ``FEATURES``.

  Returns:
    ``images -> features``, by name.

  Raises:
    ValueError: If a name is unknown.
  """
  for name in names:
    if name not in FEATURES:
      raise ValueError(f"feature {name!r} is not one of {', '.join(FEATURES)}")

  def apply(params, images):
    found: Any = Inception().apply({"params": params}, images)
    return {name: found[name] for name in names}

  return jax.tree_util.Partial(apply, params)


def prepare(images: UInt8[Array, "B H W C"]) -> Float[Array, "B 299 299 3"]:
  """Bytes to (x - 128) / 128 at 299 x 299; grey is converted to colour.

  Raises:
    ValueError: If there are neither 1 nor 3 channels.
  """
  channels = images.shape[-1]
  if channels not in (1, 3):
    raise ValueError(
      f"Inception sees colour or grey pictures, these have {channels=}; use "
      "a feature network of your own"
    )
  x = resize(jnp.asarray(images, jnp.float32), SIZE)
  return jnp.broadcast_to((x - 128) / 128, (*x.shape[:3], 3))


def resize(x: Images, size: int) -> Float[Array, "B size size C"]:
  """TensorFlow 1's bilinear resize, corners not aligned.

  Row i of the result is read at row i H / size, interpolated between the two
  nearest rows: not at the centres of pixels, and without antialiasing.
  """
  rows, columns = (_bilinear(side, size) for side in x.shape[1:3])
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision="highest")


def _bilinear(side: int, size: int) -> Float[np.ndarray, "size side"]:
  """The resize of one axis as a matrix."""
  at = np.arange(size, dtype=np.float32) * np.float32(side / size)
  below = np.floor(at).astype(int)
  above = np.minimum(below + 1, side - 1)
  part = at - below
  one = np.eye(side, dtype=np.float32)
  return (1 - part)[:, None] * one[below] + part[:, None] * one[above]


def _unit(x, name, features, kernel=(3, 3), stride=1, padding=None):
  """Convolution, normalisation (in the weights) and ReLU.

  The file's convolutions keep the size, or halve it without any padding.
  """
  conv = nn.Conv(
    features,
    kernel,
    (stride, stride),
    padding or ("SAME" if stride == 1 else "VALID"),
    precision="highest",  # on GPUs and TPUs too, or features lose digits
    name=name,
  )
  return nn.relu(conv(x))


def _max_pool(x, stride=1):
  padding = "SAME" if stride == 1 else "VALID"
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _mean_pool(x):
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _spread(x: Images) -> Float[Array, "B C"]:
  """The mean over the image."""
  return x.mean(axis=(1, 2))


def _chain(x, block, *layers):
  """Units one after the other; each is (name, features, kernel, stride)."""
  for name, *settings in layers:
    x = _unit(x, f"{block}.{name}", *settings)
  return x


ONE, FIVE, ROW, COLUMN = (1, 1), (5, 5), (1, 7), (7, 1)
THREE, SHORT_ROW, SHORT_COLUMN = (3, 3), (1, 3), (3, 1)


def _block_a(x, name, pooled):
  """35 x 35: kernels of 1, 5 and twice 3."""
  branches = (
    _chain(x, name, ("branch1x1", 64, ONE)),
    _chain(x, name, ("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)),
    _chain(
      x,
      name,
      ("branch3x3dbl_1", 64, ONE),
      ("branch3x3dbl_2", 96),
      ("branch3x3dbl_3", 96),
    ),
    _chain(_mean_pool(x), name, ("branch_pool", pooled, ONE)),
  )
  return jnp.concatenate(branches, axis=-1)


def _block_b(x, name):
  """35 x 35 to 17 x 17."""
  branches = (
    _chain(x, name, ("branch3x3", 384, THREE, 2)),
    _chain(
      x,
      name,
      ("branch3x3dbl_1", 64, ONE),
      ("branch3x3dbl_2", 96),
      ("branch3x3dbl_3", 96, THREE, 2),
    ),
    _max_pool(x, 2),
  )
  return jnp.concatenate(branches, axis=-1)


def _block_c(x, name, inner):
  """17 x 17: kernels of 7 in two parts; also gives its first branch."""
  branches = (
    _chain(x, name, ("branch1x1", 192, ONE)),
    _chain(
      x,
      name,
      ("branch7x7_1", inner, ONE),
      ("branch7x7_2", inner, ROW),
      ("branch7x7_3", 192, COLUMN),
    ),
    _chain(
      x,
      name,
      ("branch7x7dbl_1", inner, ONE),
      ("branch7x7dbl_2", inner, COLUMN),
      ("branch7x7dbl_3", inner, ROW),
      ("branch7x7dbl_4", inner, COLUMN),
      ("branch7x7dbl_5", 192, ROW),
    ),
    _chain(_mean_pool(x), name, ("branch_pool", 192, ONE)),
  )
  return jnp.concatenate(branches, axis=-1), branches[0]


def _block_d(x, name):
  """17 x 17 to 8 x 8."""
  branches = (
    _chain(x, name, ("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE, 2)),
    _chain(
      x,
      name,
      ("branch7x7x3_1", 192, ONE),
      ("branch7x7x3_2", 192, ROW),
      ("branch7x7x3_3", 192, COLUMN),
      ("branch7x7x3_4", 192, THREE, 2),
    ),
    _max_pool(x, 2),
  )
  return jnp.concatenate(branches, axis=-1)


def _block_e(x, name, pool):
  """8 x 8: kernels of 3 whose two parts stand side by side."""
  three = _chain(x, name, ("branch3x3_1", 384, ONE))
  double = _chain(
    x, name, ("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384)
  )
  branches = (
    _chain(x, name, ("branch1x1", 320, ONE)),
    _chain(three, name, ("branch3x3_2a", 384, SHORT_ROW)),
    _chain(three, name, ("branch3x3_2b", 384, SHORT_COLUMN)),
    _chain(double, name, ("branch3x3dbl_3a", 384, SHORT_ROW)),
    _chain(double, name, ("branch3x3dbl_3b", 384, SHORT_COLUMN)),
    _chain(pool(x), name, ("branch_pool", 192, ONE)),
  )
  return jnp.concatenate(branches, axis=-1)
