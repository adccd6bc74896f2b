"""diffusers' ``UNet2DModel``: its weights in and out.

A model is a folder: config.json and diffusion_pytorch_model.safetensors, with
scheduler_config.json beside them; see ``diffusers_config`` for the first and
the last. Nothing here imports diffusers.
"""

from collections.abc import Mapping

import numpy as np

from diffusion_jax.models.unet import Encoder, UNet
from diffusion_jax.pretrained import layout, openai
from diffusion_jax.pretrained.layout import Place, Style, Tensors

# Names of attention in files before 2023, and since.
RENAMED = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def _prefix(net: Encoder, place: Place) -> str:
  """Their name of a place; their decoder counts levels from the smallest."""
  up = f"up_blocks.{len(net.multipliers) - 1 - place.level}"
  group = "attentions" if place.kind == "attention" else "resnets"
  conv = ".conv" if place.kind == "conv" else ""
  # The middle has two residual blocks around one attention.
  middle = 0 if place.kind == "attention" else place.number // 2
  return {
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "classes": "class_embedding",
    "in": "conv_in",
    "halve": f"down_blocks.{place.level - 1}.downsamplers.0{conv}",
    "down": f"down_blocks.{place.level}.{group}.{place.number}",
    "middle": f"mid_block.{group}.{middle}",
    "up": f"{up}.{group}.{place.number}",
    "double": f"{up}.upsamplers.0{conv}",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
  }[place.part]


STYLE = Style(
  prefix=_prefix,
  inner={
    "res_block": (
      "norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut",
    ),
    "attention": ("group_norm", ("to_q", "to_k", "to_v"), "to_out.0"),
  },
  kinds=openai.STYLE.kinds | {"qkv": openai.DENSE, "point": openai.DENSE},
)  # fmt: skip


def from_diffusers(tensors: Tensors, net: UNet) -> dict:
  """Our parameters from the weights of a ``UNet2DModel``.

  Args:
    tensors: Arrays by name, as in diffusion_pytorch_model.safetensors; the
      names of attention before 2023 work too.
    net: The network, with ``diffusers_config.settings``.

  Returns:
    The parameters, for ``net.apply({"params": params}, ...)``.

  Raises:
    ValueError: If a tensor is missing, unexpected, not of floats or of a wrong
      shape; names it.
  """
  tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
  return layout.read(tensors, net, list(layout.layers(net, STYLE)))


def to_diffusers(params: Mapping, net: UNet) -> dict[str, np.ndarray]:
  """The weights that ``from_diffusers`` reads back to these parameters.

  Args:
    params: Parameters of the network.
    net: The network.

  Returns:
    Arrays by diffusers' name.

  Raises:
    ValueError: If the parameters are not those of the network.
  """
  return layout.write(params, list(layout.layers(net, STYLE)))


def _renamed(name: str) -> str:
  *path, layer, leaf = ("", "", *name.split("."))
  if "attentions" in path and layer in RENAMED:
    return ".".join((*path[2:], RENAMED[layer], leaf))
  return name
