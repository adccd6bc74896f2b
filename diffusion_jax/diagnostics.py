"""Is training going well? Numbers that are cheap enough to watch all the time.

Good images in the wrong colours, saturated channels, an average that is still
mostly its start: each shows here long before one could afford a distance
between distributions.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import concrete, losses, samplers
from diffusion_jax.clipping import global_norm
from diffusion_jax.losses import LossAt
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule

LEVEL = 2 / 255  # one step of a byte, in [-1, 1]


class LossCurve(NamedTuple):
  """The loss at a few steps.

  Attributes:
    t: The steps.
    mean: Mean loss over the images, at each.
    stderr: Standard error of that mean.
  """

  t: Int[Array, " K"]
  mean: Float[Array, " K"]
  stderr: Float[Array, " K"]


def loss_curve(
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  t: Int[Array, " K"],
  key: Key[Array, ""],
  *,
  loss_at: LossAt = losses.weighted_mse,
) -> LossCurve:
  """The loss at each of some steps, over the same images.

  The mean over t that training logs hides where a model is weak: half of
  L_simple can come from a tenth of the steps.

  Args:
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x0: Clean data, at least two images.
    t: Steps, 1..T; the network is called once for each.
    key: For the noise, which is keyed by step and by the image's number.
    loss_at: A function of ``losses`` with its options bound.

  Returns:
    The curve.

  Raises:
    ValueError: If there are fewer than two images, or a step is not in 1..T.
  """
  count = len(x0)
  if count < 2:
    raise ValueError(f"{count} images have no standard error; pass at least 2")
  times, least, most = concrete.known(t), schedule.first, schedule.T
  if times is not None and not ((times >= least) & (times <= most)).all():
    raise ValueError(f"t={times.tolist()} must be in {least}..T={most}")

  def at(one):
    eps = samplers.noise(key, one, jax.numpy.arange(count), x0.shape[1:])
    steps = jax.numpy.full(count, one)
    loss = loss_at(predict, schedule, x0, steps, eps)
    return loss.mean(), loss.std(ddof=1) / np.sqrt(count)

  return LossCurve(t, *jax.lax.map(at, t))


def mean_colour(
  x: Float[np.ndarray, "B *size C"],
) -> Float[np.ndarray, "B C"]:
  """The mean of each channel of each image."""
  return x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=np.float64)


def colour_drift(
  samples: Float[np.ndarray, "B C"], data: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, " C"]:
  """How far the samples' mean colour is from the data's, by channel.

  Args:
    samples: ``mean_colour`` of the samples.
    data: ``mean_colour`` of the data.

  Returns:
    The difference of the two means, in units of the standard deviation of the
    mean colour over the images of the data. 0 is no drift; for B independent
    samples of a perfect model it is about 1 / sqrt(B) by chance, for any data.
    The unit is at least one level of a byte, for data of one colour.
  """
  unit = np.maximum(data.std(axis=0), LEVEL)
  return (samples.mean(axis=0) - data.mean(axis=0)) / unit


def saturation(
  x: Float[np.ndarray, "B *size C"], threshold: float = 0.99
) -> Float[np.ndarray, " B"]:
  """The fraction of each image's values whose magnitude exceeds the threshold.

  Compare it with that of the data: drawings have white paper, but few pixels of
  photographs are fully black or white.
  """
  return (np.abs(x) > threshold).mean(axis=tuple(range(1, x.ndim)))


def relative_distance(average: Any, params: Any) -> Float[Array, ""]:
  """||average - params|| / ||params||, the norms over all parameters.

  Args:
    average: A moving average of the parameters.
    params: The parameters, a tree of the same shapes.

  Returns:
    The distance. It falls with the learning rate; near 1, most of the average
    is still where training began.
  """
  gap = jax.tree.map(lambda a, p: a - p, average, params)
  return global_norm(gap) / global_norm(params)
