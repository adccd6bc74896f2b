"""What a configuration file begins with: ``diffusion_jax.runs.configuration``.

Every key is there, with what it means and its usual value.
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
