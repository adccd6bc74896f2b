"""The modules of a U-Net in the order in which it runs.

``places`` goes through a network once; a ``layout.Style`` has the names of each
place in a published codebase.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from diffusion_jax.models.layers import num_groups
from diffusion_jax.models.unet import Encoder, UNet


class Place(NamedTuple):
  """One module of a network.

  Attributes:
    part: Where it is: "time1", "time2", "classes", "in", "halve", "down",
      "middle", "up", "double", "norm_out" or "conv_out".
    kind: What it is: a key of ``layout.INNER``.
    ours: Its name in the parameters.
    level: 0 is the full size; "halve" has the level after it, "double" the one
      before it.
    number: Its number among equals on a level; in the middle, the position.
    skips: Whether a residual block changes the number of channels.
  """

  part: str
  kind: str
  ours: str
  level: int = 0
  number: int = 0
  skips: bool = False


def places(net: Encoder) -> Iterator[Place]:
  """The modules that a U-Net and a classifier share, then those of a U-Net."""
  place = _counter()
  yield Place("time1", "dense", "time1")
  yield Place("time2", "dense", "time2")
  if net.num_classes is not None:
    yield Place("classes", "embed", "classes")
  yield place("in", "conv")
  yield from _down(net, place)
  last = len(net.multipliers) - 1
  for index, kind in enumerate(("res_block", "attention", "res_block")):
    yield place("middle", kind, last, index)
  if isinstance(net, UNet):
    yield from _up(net, place)
    yield place("norm_out", "norm")
    yield place("conv_out", "conv")


def _counter() -> Callable[..., Place]:
  """Makes places, numbered as Flax does: by kind, in the order of calls."""
  counts = collections.Counter()
  names = {"res_block": "ResBlock", "attention": "Attention", "conv": "Conv",
           "norm": "Norm"}  # fmt: skip

  def place(part, kind, *where):
    counts[kind] += 1
    return Place(part, kind, f"{names[kind]}_{counts[kind] - 1}", *where)

  return place


def _down(net: Encoder, place) -> Iterator[Place]:
  width = net.width(0)
  for level in range(len(net.multipliers)):
    if level != 0:
      yield place("halve", _resample(net), level)
    for index in range(net.num_blocks):
      skips = width != net.width(level)
      yield from _block(net, place, "down", level, index, skips)
      width = net.width(level)


def _up(net: Encoder, place) -> Iterator[Place]:
  for level in reversed(range(len(net.multipliers))):
    for index in range(net.num_blocks + 1):
      # Skip connections make every block's input wider.
      yield from _block(net, place, "up", level, index, True)
    if level != 0:
      yield place("double", _resample(net), level)


def _block(net, place, part, level, index, skips) -> Iterator[Place]:
  yield place(part, "res_block", level, index, skips)
  if level in net.attention_levels:
    yield place(part, "attention", level, index)


def _resample(net: Encoder) -> str:
  return "res_block" if net.resample == "block" else "conv"


def param_shapes(
  net: Any, image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter by path; no memory is used."""
  x, one = jnp.zeros((1, *image_shape)), jnp.ones((1,), jnp.int32)
  cond = None if net.num_classes is None else {"y": one - 1}
  tree = jax.eval_shape(
    lambda key: net.init(key, x, one, cond)["params"], jax.random.key(0)
  )
  shapes: Any = traverse_util.flatten_dict(tree, sep="/")
  return {path: leaf.shape for path, leaf in shapes.items()}


def groups_of(net: Encoder) -> set[int]:
  """The numbers of groups in a network's normalisations."""
  if net.groups is not None:
    return {net.groups}
  unit = 2 ** (len(net.multipliers) - 1)
  return {
    num_groups(*shape)
    for path, shape in param_shapes(net, (unit, unit, 3)).items()
    if path.endswith("GroupNorm_0/scale")
  }


def check_unet(net: Any) -> None:
  """Checks that a network is a U-Net.

  Raises:
    ValueError: If not; names its kind.
  """
  if not isinstance(net, Encoder):
    raise ValueError(
      "this layout is of U-Nets (model.name=unet), and the network is a "
      f"{type(net).__name__}"
    )
