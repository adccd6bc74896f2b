"""A network's tensors in the order in which it runs, under any names.

A ``Style`` defines how a published codebase names each of a network's
``places`` and lays out its tensors. Layouts differ only by transpositions and
permutations, so a round trip is exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax.models.attention import num_heads, split_qkv
from diffusion_jax.models.unet import Encoder
from diffusion_jax.pretrained.places import (
  Place as Place,
  check_unet,
  groups_of,
  param_shapes,
  places,
)

Tensors = Mapping[str, np.ndarray]


# The layers of a place and what kind of tensors they hold.
INNER = {
  "dense": {"": "dense"},
  "embed": {"": "embed"},
  "conv": {"": "conv"},
  "norm": {"GroupNorm_0": "norm"},
  "res_block": {
    "Norm_0/GroupNorm_0": "norm",
    "conv1": "conv",
    "time": "dense",
    "Norm_1/GroupNorm_0": "norm",
    "conv2": "conv",
    "skip": "skip",
  },
  "attention": {"Norm_0/GroupNorm_0": "norm", "qkv": "qkv", "out": "point"},
}
WEIGHT = {"norm": "scale", "embed": "embedding"}  # others: "kernel"


class Kind(NamedTuple):
  """How a style names and lays out the tensors of one kind of layer.

  Attributes:
    weight: Name of the weight.
    bias: Name of the bias; None if there is none.
    to_ours: Our weight from theirs.
    to_theirs: Their weight from ours.
  """

  weight: str
  bias: str | None
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


class Style(NamedTuple):
  """How a published codebase names its tensors.

  Attributes:
    prefix: Their name of a place of a network.
    inner: By kind of place, their names of its layers, in ``INNER``'s order;
      three names instead of one if q, k and v are separate.
    kinds: By kind of layer.
    separator: Between the parts of a name.
  """

  prefix: Callable[[Encoder, Place], str]
  inner: Mapping[str, Sequence[str | tuple[str, str, str]]]
  kinds: dict[str, Kind]
  separator: str = "."


class Entry(NamedTuple):
  """One of our tensors, and theirs that hold the same numbers.

  Attributes:
    ours: Path in the parameters.
    theirs: Names: one, or those of q, k and v.
    read: Ours from theirs.
    write: Theirs from ours.
  """

  ours: str
  theirs: tuple[str, ...]
  read: Callable[..., np.ndarray]
  write: Callable[[np.ndarray], list[np.ndarray]]


# Settings that none of these codebases has, though shapes may not show it.
PLAIN = {
  "stem": None, "skip_scale": 1.0, "taps": (1, 1), "project": False,
  "up_attention": "every", "pyramid": False, "early_classes": False,
  "augment_labels": 0, "vector": 0, "noisy_low_res": False, "spans": False,
}  # fmt: skip


def layers(net: Encoder, style: Style) -> Iterator[Entry]:
  """The tensors of every place, in a style.

  Raises:
    ValueError: If no published code here has such a network.
  """
  _check_plain(net)
  for place in places(net):
    prefix = style.prefix(net, place)
    inner = INNER[place.kind]
    names = style.inner.get(place.kind, ("",))
    for (ours, kind), theirs in zip(inner.items(), names, strict=True):
      if kind == "skip" and not place.skips:
        continue
      path = f"{place.ours}/{ours}".removesuffix("/")
      if isinstance(theirs, str):
        name = f"{prefix}{style.separator}{theirs}".removesuffix(
          style.separator
        )
        yield from layer(path, name, kind, style)
      else:
        split = [f"{prefix}{style.separator}{name}" for name in theirs]
        width = net.width(place.level)
        yield from _separate(path, split, style, _columns(net, width))


def _check_plain(net: Encoder) -> None:
  """Raises for a network that no published code here has."""
  check_unet(net)
  for name, value in PLAIN.items():
    has = getattr(net, name, value)  # a classifier has fewer
    if has != value and list(np.atleast_1d(has)) != list(np.atleast_1d(value)):
      raise ValueError(
        f"the network has {name}={has!r}, which has no counterpart in "
        f"published weights; they need {value!r}"
      )


def layer(ours: str, theirs: str, kind: str, style: Style) -> Iterator[Entry]:
  """The weight and, if there is one, the bias of a layer."""
  weight, bias, to_ours, to_theirs = style.kinds[kind]
  yield Entry(
    f"{ours}/{WEIGHT.get(kind, 'kernel')}",
    (f"{theirs}{style.separator}{weight}",),
    to_ours,
    lambda x: [to_theirs(x)],
  )
  if bias is not None:
    yield Entry(
      f"{ours}/bias",
      (f"{theirs}{style.separator}{bias}",),
      lambda x: x,
      lambda x: [x],
    )


def _separate(ours, theirs, style, columns) -> Iterator[Entry]:
  """One layer of ours that is three of theirs: q, k and v."""
  entries = [list(layer(ours, name, "qkv", style)) for name in theirs]
  for three in zip(*entries, strict=True):

    def read(*parts, entry=three[0]):
      joined = np.concatenate([entry.read(part) for part in parts], axis=-1)
      ours = np.empty_like(joined)
      ours[..., columns] = joined
      return ours

    def write(x, entry=three[0]):
      parts = np.split(x[..., columns], 3, axis=-1)
      return [entry.write(part)[0] for part in parts]

    names = tuple(entry.theirs[0] for entry in three)
    yield Entry(three[0].ours, names, read, write)


def _columns(net: Encoder, width: int) -> np.ndarray:
  """The columns of q, then k, then v in the fused projection."""
  heads = num_heads(width, net.heads, net.head_channels)
  places = jnp.arange(3 * width, dtype=jnp.float32)[None, None]
  parts = split_qkv(places, heads, net.qkv_order)
  return np.concatenate([np.ravel(part) for part in parts]).astype(int)


def read(
  tensors: Tensors,
  net: Any,
  entries: Sequence[Entry],
  image_shape: Callable[..., tuple[int, int, int]] | None = None,
) -> dict:
  """Our parameters from theirs.

  Args:
    tensors: Arrays by their name; half precision becomes float32, exactly.
    net: The network that they belong to.
    entries: The entries of the network, in their style.
    image_shape: ``(net, arrays, entries) -> (H, W, C)`` of images that it can
      take; by default a U-Net's.

  Returns:
    The parameters.

  Raises:
    ValueError: If a tensor is missing, unexpected, not of floats or of a wrong
      shape; names it.
  """
  wanted = {name for entry in entries for name in entry.theirs}
  _refuse("missing from", wanted - tensors.keys())
  _refuse("unknown in", tensors.keys() - wanted)
  arrays = {name: _floats(name, tensors[name]) for name in wanted}
  shape = (image_shape or _image_shape)(net, arrays, entries)
  shapes = param_shapes(net, shape)
  flat = {}
  for entry in entries:
    expected = entry.write(np.zeros(shapes[entry.ours], np.float32))
    for name, like in zip(entry.theirs, expected, strict=True):
      if arrays[name].shape != like.shape:
        raise ValueError(
          f"{name} is {arrays[name].shape} in the weights; the network has "
          f"{like.shape}"
        )
    parts = [arrays[name] for name in entry.theirs]
    flat[entry.ours] = np.ascontiguousarray(entry.read(*parts))
  return traverse_util.unflatten_dict(flat, sep="/")


def write(params: Mapping, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
  """Their tensors from our parameters, the inverse of ``read``.

  Raises:
    ValueError: If the parameters are not those of the network.
  """
  flat = traverse_util.flatten_dict(dict(params), sep="/")
  wanted = {entry.ours for entry in entries}
  _refuse("missing from", wanted - flat.keys())
  _refuse("unknown in", flat.keys() - wanted)
  return {
    name: np.ascontiguousarray(part)
    for entry in entries
    for name, part in zip(
      entry.theirs, entry.write(np.asarray(flat[entry.ours])), strict=True
    )
  }


def _floats(name: str, tensor: np.ndarray) -> np.ndarray:
  tensor = np.asarray(tensor)
  if str(tensor.dtype) not in ("float32", "float16", "bfloat16"):
    raise ValueError(
      f"{name} is {tensor.dtype}; weights are float32, float16 or bfloat16"
    )
  return tensor.astype(np.float32)


def _image_shape(net, arrays, entries) -> tuple[int, int, int]:
  """The smallest image of a U-Net with the channels of its weights."""
  names = {entry.ours: entry for entry in entries}
  first = names["Conv_0/kernel"]
  kernel = arrays[first.theirs[0]]
  if kernel.ndim != 4:
    raise ValueError(
      f"{first.theirs[0]} is {kernel.shape} in the weights; a convolution "
      "has four axes"
    )
  channels = first.read(kernel).shape[2]
  unit, positions = 2 ** (len(net.multipliers) - 1), 1
  if "pool/positions" in names:  # one per pixel of the smallest size, and one
    table = arrays[names["pool/positions"].theirs[0]]
    positions = max(table.shape[-1] - 1, 1) if table.ndim else 1
  return unit, unit * positions, channels


def check(net: Encoder, code: str, **settings: Any) -> None:
  """Raises for networks that a published codebase cannot run correctly.

  Args:
    net: The network.
    code: Name of the codebase.
    **settings: Settings of all its networks that shapes do not show.

  Raises:
    ValueError: If the network differs; names the setting.
  """
  _check_plain(net)
  has = {name: getattr(net, name) for name in settings}
  groups = groups_of(net)
  if len(groups) == 1:
    has["groups"] = groups.pop()
  for name, value in settings.items():
    if has[name] != value:
      raise ValueError(
        f"the network has {name}={has[name]!r}; in {code} code it is {value!r}"
      )


def _refuse(what: str, names: set) -> None:
  if names:
    some = ", ".join(sorted(map(str, names))[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ValueError(f"{what} the weights: {some}{more}")
