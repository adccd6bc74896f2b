"""Samples from a network, compiled once, with something to watch meanwhile."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

import diffusion_jax as dj
from experiments import assemble


class Generator:
  """Draws images 0, 1, 2, ... of a key, for any parameters of one network.

  A walk is cut into up to 50 equal pieces, one compiled program for all of
  them, so that there is progress to report and a film to show. Noise is keyed
  by image and step, and a solver's memory is handed on: neither pieces nor
  batches change a pixel. Where the
  network knows classes, image k is of class k modulo their number.

  Args:
    config: Of the run.
    net: Its network.
    image_shape: (H, W, C).
    sampler: A name in ``assemble.SAMPLERS``.
    pairs: The (t, s) to walk.
    batch: Images at a time.
    eta: Of the samplers that take it.
  """

  def __init__(
    self,
    config,
    net: dj.UNet,
    image_shape: tuple[int, int, int],
    *,
    sampler: str,
    pairs: dj.timesteps.Pairs,
    batch: int,
    eta: float | None = None,
  ):
    schedule = assemble.schedule(config)
    pieces = max(n for n in range(1, 51) if len(pairs) % n == 0)
    self._pieces = np.split(pairs, pieces)
    self._batch = batch
    self._eta = eta
    shape = tuple(image_shape)

    def walk(params, x, history, key, pairs, first, eta):
      images = first + jax.numpy.arange(batch)
      y = None if net.num_classes is None else images % net.num_classes
      x, kept = dj.sample(
        assemble.sampler(config, sampler, eta),
        lambda x_t, t: net.apply({"params": params}, x_t, t, y),
        schedule,
        (batch, *shape),
        key,
        pairs=pairs,
        x_T=x,
        first=first,
        history=history,
      )
      return x, kept.history

    def remember(x):
      step = assemble.sampler(config, sampler)
      return dj.samplers.as_solver(step).init(x)

    self._walk = jax.jit(walk)
    self._remember = jax.jit(remember)
    self._noise = jax.jit(
      lambda key, images: dj.samplers.noise(key, pairs[0, 0], images, shape)
    )

  def walk(self, params, key: jax.Array, first: int) -> Iterator[jax.Array]:
    """One batch from image ``first`` on: x_T, then x after every piece."""
    x = self._noise(key, first + np.arange(self._batch))
    history = self._remember(x)
    yield x
    for piece in self._pieces:
      x, history = self._walk(params, x, history, key, piece, first, self._eta)
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
