"""The base of a configuration file: ``diffusion_jax.runs.configuration``.

``diffusion_jax/runs/defaults.py`` has every key, its meaning and its default.
"""

from diffusion_jax.runs.configuration import (
  check_variant as check_variant,
  exchange_network as exchange_network,
  make as make,
  make_classifier as make_classifier,
  published as published,
  published_classifier as published_classifier,
  settings as settings,
)
