"""Samples from a network, compiled once, with something to watch meanwhile."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

import diffusion_jax as dj
from experiments import assemble


class Generator:
  """Draws images 0, 1, 2, ... of a key, for any parameters of one network.

  A walk is cut into up to 50 equal pieces, one compiled program for all of
  them, so that there is progress to report and a film to show. Noise is keyed
  by image and step: neither pieces nor batches change a pixel. Where the
  network knows classes, image k is of class k modulo their number.

  Args:
    config: Of the run.
    net: Its network.
    image_shape: (H, W, C).
    sampler: A name in ``assemble.SAMPLERS``.
    steps: Network calls per image.
    batch: Images at a time.
  """

  def __init__(
    self,
    config,
    net: dj.UNet,
    image_shape: tuple[int, int, int],
    *,
    sampler: str,
    steps: int,
    batch: int,
  ):
    schedule = assemble.schedule(config)
    step = functools.partial(
      assemble.SAMPLERS[sampler],
      target=config.target,
      variance=config.variance,
    )
    pairs = dj.timesteps.spaced(schedule.T, steps)
    self._pieces = np.split(
      pairs, max(n for n in range(1, 51) if steps % n == 0)
    )
    self._batch = batch
    shape = tuple(image_shape)

    def walk(params, x, key, pairs, first):
      images = first + jax.numpy.arange(batch)
      y = None if net.num_classes is None else images % net.num_classes
      x, _ = dj.sample(
        step,
        lambda x_t, t: net.apply({"params": params}, x_t, t, y),
        schedule,
        (batch, *shape),
        key,
        pairs=pairs,
        x_T=x,
        first=first,
      )
      return x

    self._walk = jax.jit(walk)
    self._noise = jax.jit(
      lambda key, images: dj.samplers.noise(key, pairs[0, 0], images, shape)
    )

  def walk(self, params, key: jax.Array, first: int) -> Iterator[jax.Array]:
    """One batch from image ``first`` on: x_T, then x after every piece."""
    x = self._noise(key, first + np.arange(self._batch))
    yield x
    for piece in self._pieces:
      x = self._walk(params, x, key, piece, first)
      yield x

  def __call__(
    self,
    params,
    key: jax.Array,
    num: int,
    *,
    progress: Callable[[float], object] | None = None,
  ) -> np.ndarray:
    """Draws images 0..num-1.

    Args:
      params: Of the network.
      key: The root of all noise.
      num: How many images.
      progress: Called with the part of the work that is done, in (0, 1].

    Returns:
      [num, H, W, C].
    """
    batches = -(-num // self._batch)
    finished = []
    for b in range(batches):
      x = None
      for i, x in enumerate(self.walk(params, key, b * self._batch)):
        if progress is not None:
          x.block_until_ready()  # what is reported has happened
          progress((b + i / len(self._pieces)) / batches)
      finished.append(np.asarray(x))
    return np.concatenate(finished)[:num]
