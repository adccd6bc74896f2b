"""Networks, independent of the process: (x_t, t) in, an image out."""

from diffusion_jax.models import edm2, named
from diffusion_jax.models.backbone import Backbone
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.dit import DiT, JiT
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.unet import UNet

__all__ = [
  "EDM2",
  "Backbone",
  "Classifier",
  "DiT",
  "JiT",
  "UNet",
  "edm2",
  "named",
]
