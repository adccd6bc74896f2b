"""The settings of diffusers' ``UNet2DModel``, in and out.

Every setting is translated, or rejected with its name; those of a scheduler are
in ``diffusers_scheduler``. Nothing here imports diffusers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained.diffusers_scheduler import (
  PROCESS as PROCESS,
  process as process,
  scheduler as scheduler,
)
from diffusion_jax.pretrained.lookup import Settings, key_of, look_up, one_of
from diffusion_jax.pretrained.places import check_unet, groups_of

# What a config.json that lacks a key means: the constructor's defaults.
DEFAULTS: Settings = {
  "sample_size": None,
  "in_channels": 3,
  "out_channels": 3,
  "center_input_sample": False,
  "time_embedding_type": "positional",
  "time_embedding_dim": None,
  "freq_shift": 0,
  "flip_sin_to_cos": True,
  "down_block_types": ["DownBlock2D"] + 3 * ["AttnDownBlock2D"],
  "mid_block_type": "UNetMidBlock2D",
  "up_block_types": 3 * ["AttnUpBlock2D"] + ["UpBlock2D"],
  "block_out_channels": [224, 448, 672, 896],
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "downsample_padding": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "dropout": 0.0,
  "act_fn": "silu",
  "attention_head_dim": 8,
  "norm_num_groups": 32,
  "attn_norm_num_groups": None,
  "norm_eps": 1e-5,
  "resnet_time_scale_shift": "default",
  "add_attention": True,
  "class_embed_type": None,
  "num_class_embeds": None,
  "num_train_timesteps": None,
}

# Settings of which our network supports one value only.
ONLY = {
  "center_input_sample": (False,),
  "time_embedding_type": ("positional",),
  "mid_block_type": ("UNetMidBlock2D",),
  "mid_block_scale_factor": (1,),
  "act_fn": ("silu", "swish"),
  "add_attention": (True,),
  "class_embed_type": (None,),
}
# By flip_sin_to_cos and freq_shift.
EMBEDDINGS = {(False, 1): "sin_cos", (True, 0): "cos_sin"}
PADDINGS = {0: "same", 1: "symmetric"}
SCALE_SHIFTS = {"default": False, "scale_shift": True}
# (attention, resample) of the two kinds of blocks.
DOWN = {
  "DownBlock2D": (False, "conv"),
  "ResnetDownsampleBlock2D": (False, "block"),
  "AttnDownBlock2D": (True, None),  # downsample_type says
}
UP = {
  "UpBlock2D": (False, "conv"),
  "ResnetUpsampleBlock2D": (False, "block"),
  "AttnUpBlock2D": (True, None),  # upsample_type says
}
TYPES = {"conv": "conv", "resnet": "block"}


def settings(config: Mapping[str, Any]) -> Settings:
  """The arguments of our ``UNet`` for a config.json.

  Args:
    config: The contents of the file.

  Returns:
    All arguments but ``time_scale`` and ``dtype``, which have no counterpart.

  Raises:
    ValueError: If a setting is unknown or not supported by our network; names
      it.
  """
  if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
    raise ValueError(f"_class_name={config['_class_name']!r}: not UNet2DModel")
  given = {k: v for k, v in config.items() if not k.startswith("_")}
  unknown = sorted(given.keys() - DEFAULTS.keys())
  if unknown:
    raise ValueError(f"config.json has unknown settings: {', '.join(unknown)}")
  c = DEFAULTS | given
  for key, allowed in ONLY.items():
    one_of(key, c[key], allowed)
  widths = c["block_out_channels"]
  channels = widths[0]
  if c["time_embedding_dim"] not in (None, 4 * channels):
    raise _unlike("time_embedding_dim", c["time_embedding_dim"], 4 * channels)
  groups = c["norm_num_groups"]
  scale_shift = look_up(c, "resnet_time_scale_shift", SCALE_SHIFTS)
  # With scale_shift, diffusers leaves the middle's attention without a
  # normalisation unless its groups are given.
  if c["attn_norm_num_groups"] != groups and (
    scale_shift or c["attn_norm_num_groups"] is not None
  ):
    raise _unlike("attn_norm_num_groups", c["attn_norm_num_groups"], groups)
  order = (c["flip_sin_to_cos"], c["freq_shift"])
  if order not in EMBEDDINGS:
    raise ValueError(
      f"flip_sin_to_cos={order[0]} with freq_shift={order[1]} is not one of "
      f"{tuple(EMBEDDINGS)}"
    )
  attention, resample = _blocks(c)
  return {
    "channels": channels,
    "multipliers": tuple(_ratio(width, channels) for width in widths),
    "num_blocks": c["layers_per_block"],
    "attention_levels": attention,
    "heads": 1,
    "head_channels": c["attention_head_dim"],
    "qkv_order": "qkv",
    "dropout": c["dropout"],
    "scale_shift": scale_shift,
    "resample": resample,
    "out_channels": c["out_channels"],
    "num_classes": c["num_class_embeds"],
    "embedding": EMBEDDINGS[order],
    "groups": groups,
    "epsilon": c["norm_eps"],
    "padding": look_up(c, "downsample_padding", PADDINGS),
  }


def _blocks(c: Settings) -> tuple[tuple[int, ...], str]:
  """The levels with attention, and how the size changes."""
  down, up = c["down_block_types"], list(reversed(c["up_block_types"]))
  if not len(down) == len(up) == len(c["block_out_channels"]):
    raise ValueError(
      "down_block_types, up_block_types and block_out_channels differ in length"
    )
  kinds = []
  for key, names, known in (
    ("down_block_types", down, DOWN),
    ("up_block_types", up, UP),
  ):
    for name in names:
      one_of(key, name, tuple(known))
    kinds.append([known[name] for name in names])
  attention = [tuple(i for i, (a, _) in enumerate(k) if a) for k in kinds]
  if attention[0] != attention[1]:
    raise ValueError(
      f"up_block_types={c['up_block_types']} does not have attention where "
      f"down_block_types={c['down_block_types']} has it"
    )
  types = [
    look_up(c, key, TYPES) for key in ("downsample_type", "upsample_type")
  ]
  # The last level of the encoder and of the decoder do not change the size.
  resamples = {
    resample or default
    for default, blocks in zip(
      types, (kinds[0][:-1], kinds[1][1:]), strict=True
    )
    for _, resample in blocks
  }
  if len(resamples) > 1:
    raise ValueError(
      f"downsample_type={c['downsample_type']!r} and upsample_type="
      f"{c['upsample_type']!r} with {down} and {c['up_block_types']}: some "
      "levels change size with a convolution, others with a residual block"
    )
  return attention[0], resamples.pop() if resamples else "conv"


def _ratio(width: int, channels: int) -> int | float:
  """The ratio r for which r channels, rounded down, is exactly width."""
  ratio = width / channels
  while int(channels * ratio) < width:
    ratio = float(np.nextafter(ratio, np.inf))
  return int(ratio) if ratio == int(ratio) else ratio


def _unlike(key: str, value: Any, only: Any) -> ValueError:
  return ValueError(f"{key}={value!r}, but this network has {only!r} only")


def config(net: UNet, image_shape: Sequence[int]) -> Settings:
  """The config.json of a network, the inverse of ``settings``.

  Args:
    net: The network.
    image_shape: (H, W, C) of its images.

  Returns:
    The contents of the file.

  Raises:
    ValueError: If ``UNet2DModel`` has no such network; names the setting.
  """
  check_unet(net)
  if len(image_shape) != 3:
    raise ValueError(
      f"UNet2DModel is of images (H, W, C), and these are {tuple(image_shape)}"
    )
  height, width, in_channels = image_shape
  levels = range(len(net.multipliers))
  attends = [level in net.attention_levels for level in levels]
  flip, shift = key_of(EMBEDDINGS, net.embedding)
  kind = key_of(TYPES, net.resample)
  plain = 0 if kind == "conv" else 1
  down, up = (list(table) for table in (DOWN, UP))
  groups = groups_of(net)
  for name, wrong, needs in (
    ("multipliers", net.width(0) != net.channels, "1 at the full size"),
    ("time_scale", net.time_scale != 1, "1"),
    ("time_origin", net.time_origin != 1, "1"),
    ("groups", len(groups) > 1, "the same number everywhere"),
    ("dropout", not isinstance(net.dropout, int | float), "one number"),
  ):
    if wrong:
      raise ValueError(
        f"model.{name}={getattr(net, name)} has no counterpart in "
        f"UNet2DModel, which needs {needs}"
      )
  return {
    "_class_name": "UNet2DModel",
    "sample_size": width if height == width else [height, width],
    "in_channels": in_channels,
    "out_channels": net.out_channels or in_channels,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": shift,
    "flip_sin_to_cos": flip,
    "down_block_types": [down[2 if a else plain] for a in attends],
    "up_block_types": [up[2 if a else plain] for a in reversed(attends)],
    "block_out_channels": [net.width(level) for level in levels],
    "layers_per_block": net.num_blocks,
    "mid_block_scale_factor": 1,
    "downsample_padding": key_of(PADDINGS, net.padding),
    "downsample_type": kind,
    "upsample_type": kind,
    "dropout": net.dropout,
    "act_fn": "silu",
    "attention_head_dim": _head_dim(net),
    "norm_num_groups": min(groups),
    "attn_norm_num_groups": min(groups) if net.scale_shift else None,
    "norm_eps": net.epsilon,
    "resnet_time_scale_shift": key_of(SCALE_SHIFTS, net.scale_shift),
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": net.num_classes,
  }


def _head_dim(net: UNet) -> int | None:
  """Channels per head, which diffusers uses instead of heads."""
  if net.head_channels is not None or net.heads == 1:
    return net.head_channels
  levels = {*net.attention_levels, len(net.multipliers) - 1}
  widths = {net.width(level) // net.heads for level in levels}
  if len(widths) > 1:
    raise ValueError(
      f"model.heads={net.heads} on levels of different width has no "
      "counterpart in UNet2DModel, which needs the same channels per head"
    )
  return widths.pop()
