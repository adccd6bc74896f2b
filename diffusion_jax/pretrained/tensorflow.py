"""The variables of Ho et al.'s TensorFlow code.

Their scopes follow the network as the paper describes it; kernels have our
layout. Reading a checkpoint file needs TensorFlow, translating its variables
does not.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from diffusion_jax.models.unet import Encoder, UNet
from diffusion_jax.pretrained import files, layout
from diffusion_jax.pretrained.layout import Entry, Kind, Place, Style, Tensors

AVERAGE = "/ExponentialMovingAverage"


def _prefix(_: Encoder, place: Place) -> str:
  """Their name of a place."""
  group = "attn" if place.kind == "attention" else "block"
  # The middle counts from 1: block_1, attn_1, block_2.
  middle = 1 if place.kind == "attention" else 1 + place.number // 2
  return {
    "time1": "temb/dense0",
    "time2": "temb/dense1",
    "in": "conv_in",
    "halve": f"down_{place.level - 1}/downsample/conv",
    "down": f"down_{place.level}/{group}_{place.number}",
    "middle": f"mid/{group}_{middle}",
    "up": f"up_{place.level}/{group}_{place.number}",
    "double": f"up_{place.level}/upsample/conv",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
  }[place.part]


def _same(x: np.ndarray) -> np.ndarray:
  return x


_LAYER = Kind("W", "b", _same, _same)
STYLE = Style(
  prefix=_prefix,
  inner={
    "res_block": (
      "norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut",
    ),
    "attention": ("norm", ("q", "k", "v"), "proj_out"),
  },
  kinds={
    **dict.fromkeys(("dense", "conv", "skip", "qkv", "point"), _LAYER),
    "norm": Kind("gamma", "beta", _same, _same),
  },
  separator="/",
)  # fmt: skip


def _entries(net: UNet) -> list[Entry]:
  """Every tensor of a network under both names."""
  layout.check(
    net,
    "Ho et al.'s",
    resample="conv",
    scale_shift=False,
    num_classes=None,
    heads=1,
    head_channels=None,
    embedding="sin_cos",
    groups=32,
    epsilon=1e-6,
    padding="same",
  )
  return list(layout.layers(net, STYLE))


def from_tensorflow(variables: Tensors, net: UNet) -> dict:
  """Our parameters from the variables of a network.

  Args:
    variables: Arrays by name below the network's scope, such as
      "down_0/block_0/conv1/W"; see ``read_checkpoint``.
    net: The network.

  Returns:
    The parameters, for ``net.apply({"params": params}, ...)``.

  Raises:
    ValueError: If a variable is missing, unexpected, not of floats or of a
      wrong shape (names it), or if their code has no such network.
  """
  return layout.read(variables, net, _entries(net))


def to_tensorflow(params: Mapping, net: UNet) -> dict[str, np.ndarray]:
  """The variables that ``from_tensorflow`` reads back to these parameters.

  Raises:
    ValueError: If the parameters are not those of the network, or their code
      has no such network.
  """
  return layout.write(params, _entries(net))


def network_variables(
  variables: Tensors, scope: str = "model"
) -> dict[str, np.ndarray]:
  """The network's part of a checkpoint: its averages, if it has them.

  Optimizer slots and counters are left out, and the scope is removed.

  >>> one = np.ones(())
  >>> sorted(network_variables({
  ...   "model/conv_in/W": one, "model/conv_in/W/Adam": one, "beta1_power": one,
  ... }))
  ['conv_in/W']

  Raises:
    ValueError: If no variable is below the scope.
  """
  prefix = f"{scope}/"
  below = {
    name.removeprefix(prefix): variable
    for name, variable in variables.items()
    if name.startswith(prefix)
  }
  averages = {
    name.removesuffix(AVERAGE): variable
    for name, variable in below.items()
    if name.endswith(AVERAGE)
  }
  raw = {
    name: variable
    for name, variable in below.items()
    if name.rsplit("/", 1)[-1] in ("W", "b", "gamma", "beta")
  }
  if not averages and not raw:
    some = ", ".join(sorted(variables)[:3])
    raise ValueError(
      f"the checkpoint has no network below {prefix!r}; it has {some}, ..."
    )
  return averages or raw


def read_checkpoint(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every variable of a TensorFlow checkpoint, by name.

  Args:
    path: The checkpoint's prefix: PATH of PATH.index and PATH.data-....

  Returns:
    The variables.

  Raises:
    ValueError: If TensorFlow is not installed or the files cannot be read.
  """
  tf = files.package("tensorflow", path, "diffusion_jax[tfds]")
  try:
    reader = tf.train.load_checkpoint(str(path))
    return {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
    }
  except (tf.errors.OpError, RuntimeError, IndexError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
