"""Networks by name: ours, or a Flax module in your own file."""

import dataclasses
import importlib
import importlib.util
import pathlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.backbone import Backbone
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.dit import DiT, JiT
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.unet import UNet

NETWORKS: Mapping[str, type[nn.Module]] = {
  "unet": UNet, "dit": DiT, "jit": JiT, "edm2": EDM2, "classifier": Classifier,
}  # fmt: skip
# Fields that follow from the data or the configuration, so not settings.
DERIVED = ("out_channels", "noisy_low_res", "spans", "vector")
# Types of settings: those that a flag, or JSON, can express.
KINDS = (bool, int, float, str, tuple)


class Setting(typing.NamedTuple):
  """A setting of a network.

  Attributes:
    value: The default.
    kind: The type of its values.
  """

  value: Any
  kind: type


def find(name: str) -> type[nn.Module]:
  """The class of a network.

  Args:
    name: "unet", "dit", "jit" or "edm2"; or your own, "path/to/mine.py:MyNet"
      or "module:MyNet".

  Raises:
    ValueError: If there is none, or the file fails; the message says why.
  """
  if name in NETWORKS:
    return NETWORKS[name]
  place, colon, attribute = name.rpartition(":")
  if not colon:
    raise ValueError(
      f"the network {name!r} is not one of {', '.join(NETWORKS)}; one of your "
      "own is path/to/mine.py:MyNet or module:MyNet"
    )
  if place.endswith(".py") and not pathlib.Path(place).expanduser().is_file():
    raise ValueError(
      f"the network {name}: there is no file {place}; where a run expects it "
      "is model.name in its config.json"
    )
  try:
    module = _file(place) if place.endswith(".py") else _module(place)
    found = getattr(module, attribute)
  except Exception as error:
    words = " ".join(str(error).split())
    raise ValueError(
      f"the network {name}: {type(error).__name__}: {words}"
    ) from error
  if not (isinstance(found, type) and issubclass(found, nn.Module)):
    raise ValueError(f"the network {name} is no class of flax.linen.Module")
  return found


def placed(name: str) -> str:
  """The name, with the absolute path of a file.

  >>> placed("dit"), placed("mine.py:MyNet").startswith("/")
  ('dit', True)
  """
  place, colon, attribute = name.rpartition(":")
  if not place.endswith(".py"):
    return name
  return f"{pathlib.Path(place).expanduser().absolute()}{colon}{attribute}"


def _module(name: str) -> types.ModuleType:
  return importlib.import_module(name)


def _file(path: str) -> types.ModuleType:
  """Imports a file as a module."""
  place = pathlib.Path(path).expanduser()
  name = f"own_{place.stem}"
  spec: Any = importlib.util.spec_from_file_location(name, place)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # where annotations that are strings are resolved
  spec.loader.exec_module(module)
  return module


def settings(network: type[nn.Module]) -> dict[str, Setting]:
  """The settings of a network: the fields of its class that a flag can set."""
  hints = typing.get_type_hints(network)
  found = {}
  for field in dataclasses.fields(typing.cast(Any, network)):
    if field.name in ("parent", "name", *DERIVED):
      continue
    value: Any = field.default
    if field.name == "dtype" and value is not dataclasses.MISSING:
      value = jnp.dtype(value).name
    kind = _kind(value, hints.get(field.name))
    if kind is not None:
      found[field.name] = Setting(value, kind)
  return found


def _kind(value: Any, hint: Any) -> type | None:
  """The type of a setting's values; None if a flag cannot express them."""
  if value is not None:
    return type(value) if isinstance(value, KINDS) else None
  return next((kind for kind in typing.get_args(hint) if kind in KINDS), None)


def make(
  name: str,
  options: Mapping[str, Any],
  size: Sequence[int],
  cond: Sequence[str] = (),
) -> Any:
  """A network for images of this size.

  Args:
    name: See ``find``.
    options: Values by field; "num_classes" may be None for any network.
    size: Height and width.
    cond: The parts of its condition.

  Returns:
    The network, a ``Backbone``.

  Raises:
    ValueError: If it has no such field, rejects the size or the condition, or
      is not a network.
  """
  network = find(name)
  fields = {field.name for field in dataclasses.fields(network)}
  options = {
    key: value
    for key, value in options.items()
    if key in fields or value not in (None, False)
  }
  unknown = [key for key in options if key not in fields]
  if unknown:
    raise ValueError(
      f"the network {name} has no field {unknown[0]!r}, which is to be "
      f"{options[unknown[0]]!r}"
    )
  try:
    net = network(**options)
  except TypeError as error:
    raise ValueError(f"the network {name}: {error}") from error
  if not isinstance(net, Backbone):
    lacks = [part for part in ("takes", "check_size") if not hasattr(net, part)]
    raise ValueError(
      f"the network {name} has no {' and no '.join(lacks)}; "
      "models.Backbone says what they are"
    )
  wrong = [part for part in cond if part not in net.takes]
  if wrong:
    raise ValueError(
      f"the network {name} cannot be conditioned on {wrong[0]!r}; it takes "
      f"{', '.join(net.takes) or 'nothing'}"
    )
  net.check_size(size)
  return net
