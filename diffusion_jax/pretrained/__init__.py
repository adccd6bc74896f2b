"""Published weights in, ours out."""

from diffusion_jax.pretrained.openai import from_openai, to_openai

__all__ = ["from_openai", "to_openai"]
