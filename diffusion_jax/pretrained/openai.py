"""OpenAI's weights: improved-diffusion's and guided-diffusion's networks.

Their tensors are named by position in three lists (``input_blocks.4.0...``),
ours by kind and count (``ResBlock_3``). ``layers`` walks a network in the
order in which it runs and pairs the names; the tensors themselves differ by
transpositions alone, so a round trip is exact.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.unet import Encoder

Tensors = Mapping[str, np.ndarray]


class Layer(NamedTuple):
  """One layer under both names.

  Attributes:
    ours: Path of the module in the parameters.
    theirs: Prefix in the state dict.
    kind: A key of ``KINDS``.
  """

  ours: str
  theirs: str
  kind: str


# Ours from theirs, and back, for "weight" with the name it has with us.
KINDS = {
  # [out, in] <-> [in, out]
  "dense": ("kernel", lambda w: w.T, lambda k: k.T),
  # [out, in, 1] <-> [in, out]
  "dense_1d": ("kernel", lambda w: w[..., 0].T, lambda k: k.T[..., None]),
  # [out, in, 1, 1] <-> [in, out]
  "dense_2d": (
    "kernel",
    lambda w: w[..., 0, 0].T,
    lambda k: k.T[..., None, None],
  ),
  # [out, in, h, w] <-> [h, w, in, out]
  "conv": (
    "kernel",
    lambda w: w.transpose(2, 3, 1, 0),
    lambda k: k.transpose(3, 2, 0, 1),
  ),
  "norm": ("scale", lambda w: w, lambda s: s),
  "embed": ("embedding", lambda w: w, lambda e: e),
}


def layers(net: Encoder) -> Iterator[Layer]:
  """Every layer of a network under both names, in the order they run."""
  walk = _Walk(net)
  yield Layer("time1", "time_embed.0", "dense")
  yield Layer("time2", "time_embed.2", "dense")
  if net.num_classes is not None:
    yield Layer("classes", "label_emb", "embed")
  yield from walk.down()
  yield from walk.res_block("middle_block.0")
  yield from walk.attention("middle_block.1")
  yield from walk.res_block("middle_block.2")
  if isinstance(net, Classifier):
    yield from walk.pool(net.pool)
  else:
    yield from walk.up()


class _Walk:
  """Visits a network's layers, counting its modules as Flax does."""

  def __init__(self, net: Encoder):
    self.net = net
    self.levels = range(len(net.multipliers))
    self.counts = collections.Counter()

  def name(self, kind):
    """The name of the next module of a kind."""
    self.counts[kind] += 1
    return f"{kind}_{self.counts[kind] - 1}"

  def down(self):
    """The first convolution and all levels."""
    net = self.net
    yield Layer(self.name("Conv"), "input_blocks.0.0", "conv")
    width, number = net.width(0), 0
    for level in self.levels:
      if level != 0:
        number += 1
        yield from self.resample(f"input_blocks.{number}.0", "op")
      for _ in range(net.num_blocks):
        number += 1
        widens = width != net.width(level)
        yield from self.block(f"input_blocks.{number}", level, widens)
        width = net.width(level)

  def up(self):
    """All levels and the last convolution."""
    net = self.net
    number = 0
    for level in reversed(self.levels):
      for block in range(net.num_blocks + 1):
        theirs = f"output_blocks.{number}"
        # What is handed across makes every block's input wider.
        yield from self.block(theirs, level, True)
        if level != 0 and block == net.num_blocks:
          place = 1 + (level in net.attention_levels)
          yield from self.resample(f"{theirs}.{place}", "conv")
        number += 1
    yield from self.norm(self.name("Norm"), "out.0")
    yield Layer(self.name("Conv"), "out.2", "conv")

  def block(self, theirs, level, widens):
    """A residual block, and attention where the level has it."""
    yield from self.res_block(f"{theirs}.0", widens)
    if level in self.net.attention_levels:
      yield from self.attention(f"{theirs}.1")

  def resample(self, theirs, conv):
    """A change of size."""
    if self.net.resample == "block":
      yield from self.res_block(theirs)
    else:
      yield Layer(self.name("Conv"), f"{theirs}.{conv}", "conv")

  def res_block(self, theirs, widens=False):
    """A residual block."""
    ours = self.name("ResBlock")
    yield from self.norm(f"{ours}/Norm_0", f"{theirs}.in_layers.0")
    yield Layer(f"{ours}/conv1", f"{theirs}.in_layers.2", "conv")
    yield Layer(f"{ours}/time", f"{theirs}.emb_layers.1", "dense")
    yield from self.norm(f"{ours}/Norm_1", f"{theirs}.out_layers.0")
    yield Layer(f"{ours}/conv2", f"{theirs}.out_layers.3", "conv")
    if widens:
      yield Layer(f"{ours}/skip", f"{theirs}.skip_connection", "dense_2d")

  def attention(self, theirs):
    """Self-attention."""
    ours = self.name("Attention")
    yield from self.norm(f"{ours}/Norm_0", f"{theirs}.norm")
    yield Layer(f"{ours}/qkv", f"{theirs}.qkv", "dense_1d")
    yield Layer(f"{ours}/out", f"{theirs}.proj_out", "dense_1d")

  def norm(self, ours, theirs):
    """A normalisation."""
    yield Layer(f"{ours}/GroupNorm_0", theirs, "norm")

  def pool(self, kind):
    """What a classifier has after the middle."""
    if kind.startswith("spatial"):
      yield Layer("hidden", "out.0", "dense")
      if kind == "spatial_v2":
        yield from self.norm(self.name("Norm"), "out.1")
      yield Layer("out", "out.2" if kind == "spatial" else "out.3", "dense")
      return
    yield from self.norm(self.name("Norm"), "out.0")
    if kind == "adaptive":
      yield Layer("out", "out.3", "dense_2d")
      return
    yield Layer("pool/qkv", "out.2.qkv_proj", "dense_1d")
    yield Layer("pool/out", "out.2.c_proj", "dense_1d")


# The one tensor that is not the weight or bias of a layer.
POSITIONS = ("pool/positions", "out.2.positional_embedding")


def _pairs(net: Encoder):
  """(our path, their key, ours from theirs, theirs from ours), by tensor."""

  def same(bias):
    return bias

  for layer in layers(net):
    weight, to_ours, to_theirs = KINDS[layer.kind]
    yield (
      f"{layer.ours}/{weight}", f"{layer.theirs}.weight", to_ours, to_theirs
    )  # fmt: skip
    if layer.kind != "embed":
      yield f"{layer.ours}/bias", f"{layer.theirs}.bias", same, same
  if isinstance(net, Classifier) and net.pool == "attention":
    yield *POSITIONS, np.transpose, np.transpose


def from_openai(state_dict: Tensors, net: Encoder) -> dict:
  """Our parameters from a published state dict.

  Args:
    state_dict: Arrays by name, as in the published .pt files.
    net: The network that they belong to; what the shapes do not tell
      (heads, order of q, k and v, embedding, normalisation) must be right in
      it, see ``models.presets``.

  Returns:
    The parameters, for ``net.apply({"params": params}, ...)``.

  Raises:
    ValueError: If a tensor is missing or left over.
  """
  pairs = list(_pairs(net))
  wanted = {theirs for _, theirs, *_ in pairs}
  _refuse("missing from", wanted - state_dict.keys())
  _refuse("unknown in", state_dict.keys() - wanted)
  flat = {
    ours: np.ascontiguousarray(to_ours(np.asarray(state_dict[theirs])))
    for ours, theirs, to_ours, _ in pairs
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def to_openai(params: Mapping, net: Encoder) -> dict[str, np.ndarray]:
  """The state dict that ``from_openai`` reads back to these parameters.

  Args:
    params: Of the network.
    net: The network.

  Returns:
    Arrays by published name.

  Raises:
    ValueError: If the parameters are not those of the network.
  """
  flat = traverse_util.flatten_dict(dict(params), sep="/")
  pairs = list(_pairs(net))
  wanted = {ours for ours, *_ in pairs}
  _refuse("missing from", wanted - flat.keys())
  _refuse("unknown in", flat.keys() - wanted)
  return {
    theirs: np.ascontiguousarray(to_theirs(np.asarray(flat[ours])))
    for ours, theirs, _, to_theirs in pairs
  }


def _refuse(what: str, names: set) -> None:
  if names:
    some = ", ".join(sorted(map(str, names))[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ValueError(f"{what} the weights: {some}{more}")
