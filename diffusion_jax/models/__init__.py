"""Networks. They know nothing of the process: (x_t, t) in, an image out."""

from diffusion_jax.models import edm2
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.settings import check_size
from diffusion_jax.models.unet import UNet

__all__ = ["Classifier", "UNet", "check_size", "edm2"]
