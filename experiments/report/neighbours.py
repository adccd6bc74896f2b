"""The images of the data nearest to given ones."""

import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs.evaluation import measures

_VALUES = 2**24  # in memory at a time


def nearest(
  x: np.ndarray,
  source: dj.data.Source,
  chosen: np.ndarray,
  *,
  num: int = 1,
  own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest images of the data, and their distances.

  Args:
    x: uint8 [B, H, W, C].
    source: The data, read part by part.
    chosen: Indices of the images to compare with.
    num: How many nearest ones.
    own: [B], the index of x[k] itself in the data, which is excluded.

  Returns:
    Indices and Euclidean distances of pixels in [-1, 1], both [B, num], the
    nearest first; if there are fewer, the distance is infinite.
  """
  x = measures.pixels(x)
  square = (x**2).sum(axis=1)[:, None]
  index = np.zeros((len(x), num), int)
  best = np.full((len(x), num), np.inf)
  size = max(1, _VALUES // x.shape[1])
  for part in np.split(chosen, range(size, len(chosen), size)):
    y = measures.pixels(source.gather(part)["image"])
    far = square - 2 * x @ y.T + (y**2).sum(axis=1)
    if own is not None:
      far[own[:, None] == part] = np.inf
    best = np.concatenate([best, far], axis=1)
    index = np.concatenate([index, np.tile(part, (len(x), 1))], axis=1)
    order = np.argsort(best, axis=1, kind="stable")[:, :num]
    best = np.take_along_axis(best, order, axis=1)
    index = np.take_along_axis(index, order, axis=1)
  # For equal images, rounding may leave a square just below 0.
  return index, np.sqrt(np.maximum(best, 0))
