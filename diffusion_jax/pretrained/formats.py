"""Weights of any published code, recognised by the names of their tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.models import Backbone, Classifier
from diffusion_jax.pretrained.diffusers import from_diffusers
from diffusion_jax.pretrained.dit import from_dit
from diffusion_jax.pretrained.openai import from_openai
from diffusion_jax.pretrained.tensorflow import from_tensorflow


class Format(NamedTuple):
  """How weights are recognised and read.

  Attributes:
    prefix: Prefix of a name that every network has.
    first: The first convolution, whose input is the image.
    axis: The axis of its input channels.
    read: ``(weights, net) -> params``.
  """

  prefix: str
  first: str
  axis: int
  read: Callable[..., dict[str, Any]]


FORMATS = (
  Format("time_embed.", "input_blocks.0.0.weight", 1, from_openai),
  Format("time_embedding.", "conv_in.weight", 1, from_diffusers),
  Format("temb/", "conv_in/W", 2, from_tensorflow),
  Format("x_embedder.proj.", "x_embedder.proj.weight", 1, from_dit),
  Format("x_embedder.proj1.", "x_embedder.proj1.weight", 1, from_dit),
)


def format_of(weights: Mapping[str, np.ndarray]) -> Format:
  """The format of weights, from their names.

  Raises:
    ValueError: If it is unknown.
  """
  for layout in FORMATS:
    if any(name.startswith(layout.prefix) for name in weights):
      return layout
  some = ", ".join(sorted(weights)[:3])
  raise ValueError(
    f"the weights are in no known format; their names are {some}, ..."
  )


def convert(weights: Mapping[str, np.ndarray], net: Backbone) -> dict[str, Any]:
  """Parameters from weights in any known format.

  Raises:
    ValueError: If the format is unknown, or the weights do not fit.
  """
  layout = format_of(weights)
  if isinstance(net, Classifier) and layout.prefix != "time_embed.":
    raise ValueError("the preset is OpenAI's classifier, the weights are not")
  return layout.read(weights, net)
