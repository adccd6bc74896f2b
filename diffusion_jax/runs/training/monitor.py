"""Compares the previews of a run with its data, in numbers."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

import diffusion_jax as dj

PICTURES = 1024  # of the data, at most, to compare with
_PART = 64  # of them at a time in memory as floats
_FILTERS = 0  # seed of the random network, the same for every run


def spread(length: int, most: int) -> np.ndarray:
  """At most ``most`` indices, evenly spread over 0..length-1."""
  count = min(length, most)
  return np.arange(count) * length // count


class Statistics(NamedTuple):
  """The statistics of some images, one row for each."""

  colour: Any
  saturation: Any
  features: Any  # None where no distance is asked for


class Monitor:
  """Compares previews with the data, see ``dj.diagnostics``.

  The data are read at the first preview.

  Args:
    source: The data.
    num: The number of images in a preview.
    paired: Whether image k of a preview is made from image k of the data, as
      for upsamplers; otherwise it is compared with images spread over all data.
    frechet: Whether to compute a Frechet distance of random features too.
  """

  def __init__(
    self,
    source: dj.data.Source,
    *,
    num: int,
    paired: bool = False,
    frechet: bool = False,
  ):
    self._source = source
    self._paired = paired
    self._num = num
    # A covariance needs at least two images.
    self._frechet = frechet and num > 1 and len(source) > 1

  def __call__(
    self, samples: np.ndarray, average: Any, params: Any
  ) -> dict[str, Any]:
    """The numbers for one preview.

    Args:
      samples: [B, H, W, C].
      average: The parameters that drew them.
      params: The newest ones.

    Returns:
      "n", the number of samples; "drift", that of the mean colour by channel;
      "saturated", for the samples, and "saturated_data"; "distance", from the
      average to ``params``, unless it is ``params`` itself; and, if wanted,
      "frechet" with "frechet_data", the distance from as many images of the
      data to the others.
    """
    # Every process takes part in what is computed on all devices.
    distance = (
      {}
      if average is params
      else {
        "distance": float(
          dj.parallel.fetch(_relative_distance(average, params))
        )
      }
    )
    drawn, data = self._statistics(samples), self._data
    row = {
      "n": len(samples),
      "drift": dj.diagnostics.colour_drift(drawn.colour, data.colour).tolist(),
      "saturated": float(drawn.saturation.mean()),
      "saturated_data": float(data.saturation.mean()),
      **distance,
    }
    if drawn.features is not None and data.features is not None:
      row["frechet"] = dj.metrics.frechet_distance(
        drawn.features, data.features
      )
      if self._own is not None:
        row["frechet_data"] = self._own
    return row

  def _statistics(self, x: np.ndarray) -> Statistics:
    return Statistics(
      dj.diagnostics.mean_colour(x),
      dj.diagnostics.saturation(x),
      np.asarray(_features(x)) if self._frechet else None,
    )

  @functools.cached_property
  def _data(self) -> Statistics:
    """The statistics of the data that previews are compared with."""
    every = len(self._source)
    # Spread over all: images in folders come class by class.
    chosen = (
      np.arange(min(self._num, every))
      if self._paired
      else spread(every, PICTURES)
    )
    parts = [
      self._statistics(self._source.floats(part))
      for part in np.split(chosen, range(_PART, len(chosen), _PART))
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  @functools.cached_property
  def _own(self) -> float | None:
    """The distance from as many images of the data to the others."""
    features = self._data.features
    if features is None or len(features) < 2 * self._num:
      return None
    order = np.random.default_rng(0).permutation(len(features))
    few, others = order[: self._num], order[self._num :]
    return dj.metrics.frechet_distance(features[few], features[others])


_relative_distance = jax.jit(dj.diagnostics.relative_distance)


@jax.jit
def _features(x):
  return dj.metrics.random_features(x, jax.random.key(_FILTERS))
