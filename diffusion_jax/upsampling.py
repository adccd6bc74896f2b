"""Upsampling: diffusion of large images, conditioned on small ones.

A cascade is a model of small images and one or more that upsample them.
Training makes the small images by downsampling the large ones. Those that a
model samples differ from them a little; noise on both hides the difference
(conditioning augmentation, Ho et al. 2021, "Cascaded Diffusion Models").
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import shapes
from diffusion_jax.levels import check_discrete
from diffusion_jax.process import Batch, q_sample
from diffusion_jax.schedules import Schedule


def shrink(
  x0: Float[Array, "B *size C"], size: Sequence[int]
) -> Float[Array, "B ... C"]:
  """Means of equal boxes ("area"), as for Improved DDPM's upsamplers.

  Args:
    x0: Images.
    size: The new size, each axis of which must divide theirs.

  Returns:
    Smaller images.

  Raises:
    ValueError: If the size does not divide that of the images.
  """
  b, *large, c = x0.shape
  check_size(large, size)
  boxes = (
    n for side, low in zip(large, size, strict=True) for n in (low, side // low)
  )
  within = tuple(range(2, 2 * len(large) + 1, 2))
  return x0.reshape(b, *boxes, c).mean(axis=within)


def check_size(large: Sequence[int], small: Sequence[int]) -> None:
  """Raises ValueError unless the small size divides the large one.

  >>> check_size((8, 8), (3, 4))
  Traceback (most recent call last):
  ...
  ValueError: small pictures of 3 x 4 do not divide those of 8 x 8
  """
  if np.ndim(small) != 1 or len(small) != len(large):
    raise ValueError(
      f"size={small} must be one number for each axis of {shapes.by(large)}"
    )
  parts = zip(large, small, strict=True)
  if any(low < 1 or n % low for n, low in parts):
    raise ValueError(
      f"small pictures of {shapes.by(small)} do not divide those of "
      f"{shapes.by(large)}"
    )


def augment(
  key: Key[Array, ""], schedule: Schedule, low_res: Batch, most: int
) -> tuple[Batch, Int[Array, " B"]]:
  """Noises small images to random steps, for training.

  For each image a step s is drawn uniformly from 0..most, and the image from
  q(x_s | x_0); the network gets s. So one network learns all amounts of noise,
  and sampling chooses one. With most = 0 nothing changes.

  Args:
    key: For the steps and the noise.
    schedule: The noise schedule.
    low_res: The images.
    most: The largest step, 0..T.

  Returns:
    The noisy images, and their steps.

  Raises:
    ValueError: If ``most`` is not in 0..T, or time is continuous.
  """
  check_discrete("noise on small pictures", schedule.T)
  if not 0 <= most <= schedule.T:
    raise ValueError(f"{most=} must be a step in 0..T={schedule.T}")
  key_s, key_eps = jax.random.split(key)
  s = jax.random.randint(key_s, low_res.shape[:1], 0, most + 1)
  eps = jax.random.normal(key_eps, low_res.shape, low_res.dtype)
  return q_sample(schedule, low_res, s, eps), s
