"""Weights of DiT, SiT and JiT: the published code's names and layouts.

Their blocks are numbered, ours are one stack; the fixed position embeddings are
weights there and a formula here. The last class means no class, as with label
dropout here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffusion_jax import shapes
from diffusion_jax.models import transformer
from diffusion_jax.models.dit import DiT
from diffusion_jax.pretrained import layout
from diffusion_jax.pretrained.layout import Entry, Style, Tensors
from diffusion_jax.pretrained.openai import DENSE, DENSE_2D, EMBED

POSITIONS = "pos_embed"
RMS = layout.Kind("weight", None, lambda w: w, lambda s: s)
STYLE = Style(
  prefix=lambda net, place: "",
  inner={},
  kinds={"dense": DENSE, "point": DENSE_2D, "embed": EMBED, "norm": RMS},
)


def _entries(net: DiT) -> Iterator[Entry]:
  """Every tensor of a network under both names, without fixed positions."""
  yield from _patches(net)
  for ours, theirs in {
    "time1": "t_embedder.mlp.0",
    "time2": "t_embedder.mlp.2",
    "modulation": "final_layer.adaLN_modulation.1",
    "out": "final_layer.linear",
  }.items():
    yield from layout.layer(ours, theirs, "dense", STYLE)
  if net.norm == "rms":
    yield from layout.layer("norm_out", "final_layer.norm_final", "norm", STYLE)
  start = net.depth
  if net.num_classes is not None:
    table = "y_embedder.embedding_table"
    yield from layout.layer("classes", table, "embed", STYLE)
    if net.class_tokens:
      start = net.class_start
      yield Entry(
        "class_positions", ("in_context_posemb",), lambda w: w[0],
        lambda x: [x[None]],
      )  # fmt: skip
  for stack, numbers in {
    "blocks": range(start), "blocks_with_class": range(start, net.depth),
  }.items():  # fmt: skip
    if numbers:
      yield from _stacked(net, stack, numbers)


def _patches(net: DiT) -> Iterator[Entry]:
  """The projection of patches, a convolution there."""
  patch = net.patch

  def to_ours(w):  # [out, in, h, w] -> [h w in, out]
    return w.transpose(2, 3, 1, 0).reshape(-1, len(w))

  def to_theirs(k):
    return k.reshape(patch, patch, -1, k.shape[-1]).transpose(3, 2, 0, 1)

  if net.bottleneck is None:
    name, conv = "patches", "x_embedder.proj"
    yield Entry("patches/bias", (f"{conv}.bias",), lambda b: b, lambda b: [b])
  else:
    name, conv = "bottleneck", "x_embedder.proj1"
    yield from layout.layer("patches", "x_embedder.proj2", "point", STYLE)
  yield Entry(
    f"{name}/kernel", (f"{conv}.weight",), to_ours, lambda k: [to_theirs(k)]
  )


def _stacked(net: DiT, stack: str, numbers: range) -> Iterator[Entry]:
  """The tensors of equal blocks; each of ours stacks several of theirs."""
  up, down = ("w12", "w3") if net.mlp == "swiglu" else ("fc1", "fc2")
  layers = {
    "modulation": ("adaLN_modulation.1", "dense"),
    "qkv": ("attn.qkv", "dense"),
    "out": ("attn.proj", "dense"),
    "mlp1": (f"mlp.{up}", "dense"),
    "mlp2": (f"mlp.{down}", "dense"),
  }
  if net.norm == "rms":
    layers |= {name: (name, "norm") for name in ("norm1", "norm2")}
  if net.qk_norm:
    layers |= {f"norm_{x}": (f"attn.{x}_norm", "norm") for x in "qk"}
  for ours, (theirs, kind) in layers.items():
    for one in layout.layer(f"{stack}/{ours}", theirs, kind, STYLE):

      def read(*parts, one=one):
        return np.stack([one.read(part) for part in parts])

      def write(x, one=one):
        return [one.write(part)[0] for part in x]

      names = tuple(f"blocks.{n}.{one.theirs[0]}" for n in numbers)
      yield Entry(one.ours, names, read, write)


def from_dit(state_dict: Tensors, net: DiT) -> dict:
  """Our parameters from a published state dict.

  Args:
    state_dict: Arrays by name, as in the published .pt files.
    net: The network that they belong to.

  Returns:
    The parameters, for ``net.apply({"params": params}, ...)``.

  Raises:
    ValueError: If a tensor is missing, unexpected, not of floats or of a wrong
      shape (names it), or if the positions are not the fixed ones.
  """
  _check(net)
  tensors = dict(state_dict)
  positions = tensors.pop(POSITIONS, None)
  # First, so that a network of another width is refused by its kernels.
  params = layout.read(tensors, net, list(_entries(net)), _image_shape)
  if positions is not None:
    _check_positions(np.asarray(positions, np.float32), net.width)
  return params


def _check_positions(positions: np.ndarray, width: int) -> None:
  """Raises unless these are the fixed ones, [1, patches, width]."""
  side = math.isqrt(positions.shape[1]) if positions.ndim == 3 else 0
  fixed = transformer.sin_cos((side, side), width)[None] if side else None
  if (
    fixed is None
    or positions.shape != fixed.shape
    # Half precision is off by up to 4e-3; other tables by far more than this.
    or not np.allclose(positions, fixed, atol=1e-2)
  ):
    raise ValueError(
      f"{POSITIONS} in the weights are not the sines and cosines of a square "
      "that the published networks have"
    )


def to_dit(
  params: Mapping, net: DiT, size: Sequence[int]
) -> dict[str, np.ndarray]:
  """The state dict that ``from_dit`` reads back to these parameters.

  Args:
    params: Parameters of the network.
    net: The network.
    size: Height and width of its images, a square.

  Returns:
    Arrays by published name.

  Raises:
    ValueError: If the parameters are not those of the network, or the
      published code has no such network.
  """
  _check(net)
  if len(size) != 2 or size[0] != size[1]:
    raise ValueError(
      f"images are {shapes.by(size)}; in DiT's code they are square"
    )
  rows, columns = (n // net.patch for n in size)
  fixed = transformer.sin_cos((rows, columns), net.width)[None]
  return {POSITIONS: fixed} | layout.write(params, list(_entries(net)))


def _check(net: DiT) -> None:
  """Raises for networks that the published code cannot run correctly."""
  if not isinstance(net, DiT):
    raise ValueError(
      "this layout is of transformers (model.name=dit or jit), and the network "
      f"is a {type(net).__name__}"
    )
  jit = {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "rope": True}
  dit = {"mlp": "gelu", "norm": "layer", "qk_norm": False, "rope": False}
  if all(getattr(net, name) == value for name, value in jit.items()):
    if net.bottleneck is None:
      raise ValueError("bottleneck=None; in JiT's code there is one")
    return
  for name, value in dit.items():
    if getattr(net, name) != value:
      raise ValueError(
        f"the network has {name}={getattr(net, name)!r}; in DiT's code it is "
        f"{value!r}, and JiT's code has all of "
        f"{', '.join(f'{k}={v!r}' for k, v in jit.items())}"
      )


def _image_shape(net: DiT, arrays: Tensors, entries: Sequence[Entry]):
  """The smallest image of a network with as many channels as its weights."""
  del entries
  conv = "proj" if net.bottleneck is None else "proj1"
  first = f"x_embedder.{conv}.weight"
  if arrays[first].ndim != 4:
    raise ValueError(
      f"{first} is {arrays[first].shape} in the weights; a convolution has "
      "four axes"
    )
  return net.patch, net.patch, arrays[first].shape[1]
