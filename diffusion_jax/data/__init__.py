"""Data: images by index, and batches that are a function of (seed, step).

  source = load("digits")
  batch = batches(source, batch_size=128, seed=0)[step]

A source gives random access to images, of bytes or other ``values``, see
``Source``; ``load`` makes one from a name. TensorFlow is never imported here,
see ``diffusion_jax.data.tfds``.
"""

from diffusion_jax.extras import needed_for

with needed_for("diffusion_jax.data"):
  from diffusion_jax.data import (
    beside as beside,
    cache as cache,
    values as values,
    vectors as vectors,
  )
  from diffusion_jax.data.loading import load as load
  from diffusion_jax.data.pipeline import batches as batches, iterate as iterate
  from diffusion_jax.data.sources import (
    ArraySource as ArraySource,
    LazySource as LazySource,
    Source as Source,
    Unfit as Unfit,
    Unreadable as Unreadable,
    summary as summary,
  )
  from diffusion_jax.data.views import (
    hold_out as hold_out,
    shown as shown,
    subset as subset,
  )
