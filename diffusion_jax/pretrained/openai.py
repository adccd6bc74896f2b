"""OpenAI's weights: improved-diffusion's and guided-diffusion's networks.

Their tensors are named by position in three lists (``input_blocks.4.0...``),
ours by kind and count (``ResBlock_3``). ``layers`` walks a network in the
order in which it runs and pairs the names; the tensors themselves differ by
transpositions alone, so a round trip is exact.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import flax
import numpy as np

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
  counts: dict[str, int] = {}

  def name(kind):
    counts[kind] = counts.get(kind, -1) + 1
    return f"{kind}_{counts[kind]}"

  def res_block(theirs, widens):
    ours = name("ResBlock")
    yield from norm(theirs + ".in_layers.0", f"{ours}/Norm_0")
    yield Layer(f"{ours}/conv1", f"{theirs}.in_layers.2", "conv")
    yield Layer(f"{ours}/time", f"{theirs}.emb_layers.1", "dense")
    yield from norm(theirs + ".out_layers.0", f"{ours}/Norm_1")
    yield Layer(f"{ours}/conv2", f"{theirs}.out_layers.3", "conv")
    if widens:
      yield Layer(f"{ours}/skip", f"{theirs}.skip_connection", "dense_2d")

  def attention(theirs):
    ours = name("Attention")
    yield from norm(f"{theirs}.norm", f"{ours}/Norm_0")
    yield Layer(f"{ours}/qkv", f"{theirs}.qkv", "dense_1d")
    yield Layer(f"{ours}/out", f"{theirs}.proj_out", "dense_1d")

  def norm(theirs, ours=None):
    yield Layer(f"{ours or name('Norm')}/GroupNorm_0", theirs, "norm")

  yield Layer("time1", "time_embed.0", "dense")
  yield Layer("time2", "time_embed.2", "dense")
  if net.num_classes is not None:
    yield Layer("classes", "label_emb", "embed")

  # The way down.
  yield Layer(name("Conv"), "input_blocks.0.0", "conv")
  width, widths, number = net.width(0), [net.width(0)], 0
  for level in range(len(net.multipliers)):
    if level != 0:
      number += 1
      theirs = f"input_blocks.{number}.0"
      if net.resample == "block":
        yield from res_block(theirs, False)
      else:
        yield Layer(name("Conv"), f"{theirs}.op", "conv")
      widths.append(width)
    for _ in range(net.num_blocks):
      number += 1
      yield from res_block(
        f"input_blocks.{number}.0", width != net.width(level)
      )
      width = net.width(level)
      widths.append(width)
      if level in net.attention_levels:
        yield from attention(f"input_blocks.{number}.1")

  yield from res_block("middle_block.0", False)
  yield from attention("middle_block.1")
  yield from res_block("middle_block.2", False)
  if isinstance(net, Classifier):
    yield from _pool(net, norm)
    return

  # The way up. A block's input always has more channels than its output.
  number = -1
  for level in reversed(range(len(net.multipliers))):
    for block in range(net.num_blocks + 1):
      number += 1
      yield from res_block(f"output_blocks.{number}.0", True)
      place = 1
      if level in net.attention_levels:
        yield from attention(f"output_blocks.{number}.1")
        place = 2
      if level != 0 and block == net.num_blocks:
        theirs = f"output_blocks.{number}.{place}"
        if net.resample == "block":
          yield from res_block(theirs, False)
        else:
          yield Layer(name("Conv"), f"{theirs}.conv", "conv")
  yield from norm("out.0")
  yield Layer(name("Conv"), "out.2", "conv")


def _pool(net: Classifier, norm) -> Iterator[Layer]:
  """The layers after the middle of a classifier."""
  if net.pool.startswith("spatial"):
    yield Layer("hidden", "out.0", "dense")
    if net.pool == "spatial_v2":
      yield from norm("out.1")
      yield Layer("out", "out.3", "dense")
    else:
      yield Layer("out", "out.2", "dense")
    return
  yield from norm("out.0")
  if net.pool == "adaptive":
    yield Layer("out", "out.3", "dense_2d")
    return
  yield Layer("pool/qkv", "out.2.qkv_proj", "dense_1d")
  yield Layer("pool/out", "out.2.c_proj", "dense_1d")


# The one tensor that is not the weight or bias of a layer.
POSITIONS = ("pool/positions", "out.2.positional_embedding")


def _pairs(net: Encoder):
  """(our path, their key, ours from theirs, theirs from ours), by tensor."""
  same = lambda x: x
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
  return flax.traverse_util.unflatten_dict(flat, sep="/")


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
  flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
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
