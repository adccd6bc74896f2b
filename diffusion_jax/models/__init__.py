"""Networks. They know nothing of the process: (x_t, t) in, an image out."""

from diffusion_jax.models import named
from diffusion_jax.models.backbone import Backbone
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.dit import DiT, JiT
from diffusion_jax.models.unet import UNet

__all__ = ["Backbone", "Classifier", "DiT", "JiT", "UNet", "named"]
