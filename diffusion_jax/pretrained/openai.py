"""OpenAI's weights: improved-diffusion's and guided-diffusion's networks.

Their modules are numbered in three lists, ``input_blocks``, ``middle_block``
and ``output_blocks``; each element holds a residual block and, at index 1, what
follows it.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.unet import Encoder
from diffusion_jax.pretrained import layout
from diffusion_jax.pretrained.layout import Entry, Kind, Place, Style, Tensors

# PyTorch's layouts, which diffusers shares.
DENSE = Kind("weight", "bias", np.transpose, np.transpose)
DENSE_1D = Kind(  # [out, in, 1] <-> [in, out]
  "weight", "bias", lambda w: w[..., 0].T, lambda k: k.T[..., None]
)
DENSE_2D = Kind(  # [out, in, 1, 1] <-> [in, out]
  "weight", "bias", lambda w: w[..., 0, 0].T, lambda k: k.T[..., None, None]
)
CONV = Kind(  # [out, in, h, w] <-> [h, w, in, out]
  "weight",
  "bias",
  lambda w: w.transpose(2, 3, 1, 0),
  lambda k: k.transpose(3, 2, 0, 1),
)
NORM = Kind("weight", "bias", lambda w: w, lambda s: s)
EMBED = Kind("weight", None, lambda w: w, lambda e: e)


def _prefix(net: Encoder, place: Place) -> str:
  """Their name of a place."""
  per_level = net.num_blocks + 1  # a change of size has a number, too
  down = place.level * per_level
  up = (len(net.multipliers) - 1 - place.level) * per_level
  slot = int(place.kind == "attention")
  after = 1 + (place.level in net.attention_levels)
  conv = place.kind == "conv"
  return {
    "time1": "time_embed.0",
    "time2": "time_embed.2",
    "classes": "label_emb",
    "in": "input_blocks.0.0",
    "halve": f"input_blocks.{down}.0" + ".op" * conv,
    "down": f"input_blocks.{down + 1 + place.number}.{slot}",
    "middle": f"middle_block.{place.number}",
    "up": f"output_blocks.{up + place.number}.{slot}",
    "double": f"output_blocks.{up + net.num_blocks}.{after}" + ".conv" * conv,
    "norm_out": "out.0",
    "conv_out": "out.2",
  }[place.part]


STYLE = Style(
  prefix=_prefix,
  inner={
    "res_block": (
      "in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0",
      "out_layers.3", "skip_connection",
    ),
    "attention": ("norm", "qkv", "proj_out"),
  },
  kinds={
    "dense": DENSE, "embed": EMBED, "conv": CONV, "norm": NORM,
    "skip": DENSE_2D, "qkv": DENSE_1D, "point": DENSE_1D,
  },
)  # fmt: skip

# Layers of a classifier after the middle: ours, theirs, the kind.
POOLS = {
  "attention": (
    ("Norm_0/GroupNorm_0", "out.0", "norm"),
    ("pool/qkv", "out.2.qkv_proj", "qkv"),
    ("pool/out", "out.2.c_proj", "point"),
  ),
  "adaptive": (
    ("Norm_0/GroupNorm_0", "out.0", "norm"), ("out", "out.3", "skip"),
  ),
  "spatial": (("hidden", "out.0", "dense"), ("out", "out.2", "dense")),
  "spatial_v2": (
    ("hidden", "out.0", "dense"),
    ("Norm_0/GroupNorm_0", "out.1", "norm"),
    ("out", "out.3", "dense"),
  ),
}  # fmt: skip


def _entries(net: Encoder) -> Iterator[Entry]:
  """Every tensor of a network under both names."""
  layout.check(
    net,
    "OpenAI's",
    embedding="cos_sin",
    groups=32,
    epsilon=1e-5,
    padding="symmetric",
  )
  yield from layout.layers(net, STYLE)
  if isinstance(net, Classifier):
    for ours, theirs, kind in POOLS[net.pool]:
      yield from layout.layer(ours, theirs, kind, STYLE)
    if net.pool == "attention":
      yield Entry(
        "pool/positions",
        ("out.2.positional_embedding",),
        np.transpose,
        lambda x: [x.T],
      )


def from_openai(state_dict: Tensors, net: Encoder) -> dict:
  """Our parameters from a published state dict.

  Args:
    state_dict: Arrays by name, as in the published .pt files.
    net: The network that they belong to; settings that shapes do not show
      (heads, order of q, k and v, embedding, normalisation) must be right, see
      ``models.presets``.

  Returns:
    The parameters, for ``net.apply({"params": params}, ...)``.

  Raises:
    ValueError: If a tensor is missing, unexpected, not of floats or of a wrong
      shape (names it), or if their code has no such network.
  """
  return layout.read(state_dict, net, list(_entries(net)))


def to_openai(params: Mapping, net: Encoder) -> dict[str, np.ndarray]:
  """The state dict that ``from_openai`` reads back to these parameters.

  Args:
    params: Parameters of the network.
    net: The network.

  Returns:
    Arrays by published name.

  Raises:
    ValueError: If the parameters are not those of the network, or their code
      has no such network.
  """
  return layout.write(params, list(_entries(net)))
