"""Networks. They know nothing of the process: (x_t, t) in, an image out."""

from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.unet import UNet, check_size

__all__ = ["Classifier", "UNet", "check_size"]
