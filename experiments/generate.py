"""Many samples, batch by batch, with progress."""

from collections.abc import Iterator

import jax
import numpy as np

import diffusion_jax as dj
from experiments import assemble


def generate(
  config,
  net: dj.UNet,
  params,
  schedule: dj.Schedule,
  image_shape: tuple[int, int, int],
  *,
  sampler: str,
  steps: int,
  num: int,
  key: jax.Array,
  batch: int = 64,
) -> Iterator[tuple[float, np.ndarray | None]]:
  """Draws images 0..num-1 of this key.

  A walk is cut into up to 20 equal pieces, one compiled program for all of
  them, so that there is something to report on the way. Noise is keyed by
  image and step: neither the pieces nor the batches change a pixel.

  Yields:
    (part of the work done in [0, 1], the batch just finished or None).
  """
  pairs = dj.timesteps.spaced(schedule.T, steps)
  pieces = max(n for n in range(1, 21) if steps % n == 0)
  batch = min(batch, num)
  walk = assemble.generator(
    config, net, schedule, sampler=sampler, batch=batch, image_shape=image_shape
  )
  noise = jax.jit(dj.samplers.noise, static_argnames="shape")
  batches = -(-num // batch)
  for b in range(batches):
    first = b * batch
    images = first + np.arange(batch)
    x = noise(key, pairs[0, 0], images, shape=tuple(image_shape))
    for i, piece in enumerate(np.split(pairs, pieces)):
      x, _ = walk(params, x, key, piece, first)
      x.block_until_ready()
      done = (b + (i + 1) / pieces) / batches
      if i + 1 < pieces:
        yield done, None
    yield done, np.asarray(x)[: num - first]
