"""Import of published weights, export of ours."""

from diffusion_jax.pretrained import diffusers_config, files, tensorflow
from diffusion_jax.pretrained.diffusers import from_diffusers, to_diffusers
from diffusion_jax.pretrained.dit import from_dit, to_dit
from diffusion_jax.pretrained.files import find, read, write
from diffusion_jax.pretrained.openai import from_openai, to_openai
from diffusion_jax.pretrained.tensorflow import from_tensorflow, to_tensorflow

__all__ = [
  "diffusers_config",
  "files",
  "find",
  "from_diffusers",
  "from_dit",
  "from_openai",
  "from_tensorflow",
  "read",
  "tensorflow",
  "to_diffusers",
  "to_dit",
  "to_openai",
  "to_tensorflow",
  "write",
]
