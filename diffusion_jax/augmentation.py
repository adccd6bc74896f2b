"""Augmentation that does not leak into samples (EDM, Karras et al. 2022, F.2).

Images are mirrored, rotated, stretched and shifted at random, and the network
gets the parameters as a condition, nine numbers that are 0 for no change.
Samples are drawn with 0, so they look like the data. Without the condition, a
network would learn to draw rotated images.

All motion is one affine map, with the quality of the published code: it acts on
the image reflected at its edges, at twice the size by a wavelet's filter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from diffusion_jax.conditions import AUGMENT
from diffusion_jax.objectives import Objective
from diffusion_jax.process import Batch, beside, check_floats

NUM_LABELS = 9
# Standard deviations: of the powers of 2 that scale and stretch, and of a shift
# as a fraction of the image.
SCALE_STD, STRETCH_STD, SHIFT_STD = 0.2, 0.2, 0.125
# The scaling filter of the sym6 wavelet.
SYM6 = np.array([
  0.015404109327027373, 0.0034907120842174702, -0.11799011114819057,
  -0.048311742585633, 0.4910559419267466, 0.787641141030194,
  0.3379294217276218, -0.07263752278646252, -0.021060292512300564,
  0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_SIDE = len(SYM6) // 4  # pixels that the filter reaches beyond an edge


class Motion(NamedTuple):
  """The augmentation of each image, [B]; 0 is no change.

  Attributes:
    mirror: 1 exchanges left and right.
    flip: 1 exchanges up and down.
    scale: z, for a factor of 2^(0.2 z).
    angle: Rotation to the left, in radians.
    stretch: z, for 2^(0.2 z) along an axis and its inverse across it.
    axis: The angle of that axis, in radians.
    shift_x: Shift to the right, in eighths of the width.
    shift_y: Shift down, in eighths of the height.
  """

  mirror: Float[Array, " B"]
  flip: Float[Array, " B"]
  scale: Float[Array, " B"]
  angle: Float[Array, " B"]
  stretch: Float[Array, " B"]
  axis: Float[Array, " B"]
  shift_x: Float[Array, " B"]
  shift_y: Float[Array, " B"]


def _check_probability(name: str, p: float) -> None:
  if not 0 <= p <= 1:
    raise ValueError(f"{name}={p} must be in [0, 1], a probability")


def draw(key: Key[Array, ""], batch: int, p: float) -> Motion:
  """Draws motions: each kind with probability p, but mirrors are fair coins.

  Args:
    key: For the draw.
    batch: How many.
    p: In [0, 1]; 0 changes nothing, and does not mirror either.

  Returns:
    The motions.

  Raises:
    ValueError: If p is not in [0, 1].
  """
  _check_probability("p", p)
  key_happens, key_normal, key_angle, key_coin = jax.random.split(key, 4)
  happens = jax.random.bernoulli(key_happens, p, (5, batch))
  coins = jax.random.bernoulli(key_coin, 0.5, (3, batch))
  z = jax.random.normal(key_normal, (4, batch))
  angles = jax.random.uniform(
    key_angle, (2, batch), minval=-jnp.pi, maxval=jnp.pi
  )
  return Motion(
    mirror=coins[0] * float(p > 0),
    flip=coins[1] * happens[0] * 1.0,
    scale=z[0] * happens[1],
    angle=angles[0] * happens[2],
    stretch=z[1] * happens[3],
    axis=angles[1] * coins[2],
    shift_x=z[2] * happens[4],
    shift_y=z[3] * happens[4],
  )


def labels(motion: Motion) -> Float[Array, "B 9"]:
  """The network's condition: 0 for no change, and continuous in the motion."""
  m = motion
  return jnp.stack(
    [
      m.mirror, m.flip, m.scale, jnp.cos(m.angle) - 1, jnp.sin(m.angle),
      m.stretch * jnp.cos(m.axis), m.stretch * jnp.sin(m.axis),
      m.shift_x, m.shift_y,
    ],
    axis=1,
  )  # fmt: skip


def moved(images: Batch, motion: Motion) -> Batch:
  """The images after their motions; images without one keep every bit.

  Args:
    images: [B, H, W, C].
    motion: The motion of each.

  Returns:
    [B, H, W, C], of the same dtype.

  Raises:
    ValueError: If the images are integers, such as bytes.
  """
  check_floats(images, "image")

  def where(happens, a, b):
    return jnp.where(happens.reshape(-1, 1, 1, 1), a, b)

  images = where(motion.mirror > 0, images[:, :, ::-1], images)
  images = where(motion.flip > 0, images[:, ::-1], images)
  # Mirrors and an axis without a stretch change nothing here.
  still = motion._replace(axis=0 * motion.axis)[2:]
  warps = jnp.any(jnp.stack(still) != 0, axis=0)
  # Unlike activations, pixels and their positions must not be rounded.
  with jax.default_matmul_precision("highest"):
    warped = _warped(images, motion).astype(images.dtype)
  return where(warps, warped, images)


def _warped(images, motion):
  """The affine part: each pixel is read from where it came from."""
  B, H, W, _ = images.shape
  up = jnp.einsum(
    "ih,bhwc,jw->bcij", _reflected_twice(H), images, _reflected_twice(W)
  )
  y, x = jnp.meshgrid(*(_centred(n + 2 * _SIDE) for n in (H, W)), indexing="ij")
  shift = SHIFT_STD * jnp.stack(
    [W * motion.shift_x, H * motion.shift_y], axis=1
  )
  at = jnp.stack([x, y]).reshape(1, 2, -1) - shift[:, :, None]
  at = 2 * (_inverse(motion) @ at) - 0.5
  x, y = (at[:, k] + (up.shape[3 - k] - 1) / 2 for k in range(2))
  shape = (B, *(2 * (n + 2 * _SIDE) for n in (H, W)))

  def one(planes, y, x):
    return jax.vmap(lambda plane: map_coordinates(plane, [y, x], order=1))(
      planes
    )

  turned = jax.vmap(one)(up, y.reshape(shape), x.reshape(shape))
  return jnp.einsum("bcij,hi,wj->bhwc", turned, _halved(H), _halved(W))


def _inverse(motion: Motion) -> Float[Array, "B 2 2"]:
  """The matrix back to where a point came from, without the shift."""

  def turn(angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.moveaxis(jnp.array([[cos, -sin], [sin, cos]]), -1, 0)

  stretch = jnp.exp2(STRETCH_STD * motion.stretch)
  diagonal = jnp.stack([1 / stretch, stretch], axis=1)[:, :, None]
  M = turn(motion.angle - motion.axis) @ (diagonal * turn(motion.axis))
  return M / jnp.exp2(SCALE_STD * motion.scale)[:, None, None]


def _centred(n: int) -> Float[Array, " 2*n"]:
  """Positions of pixels at twice the size, in pixels from the middle."""
  return (jnp.arange(2 * n) - (2 * n - 1) / 2 + 0.5) / 2


def _twice(n: int) -> Float[np.ndarray, "2*n n"]:
  """The matrix that doubles n pixels; its transpose halves."""
  tap = np.arange(2 * n)[:, None] + len(SYM6) // 2 - 1 - 2 * np.arange(n)
  inside = (tap >= 0) & (tap < len(SYM6))
  return np.where(inside, SYM6[tap * inside], 0.0)


def _reflected_twice(n: int) -> Float[np.ndarray, "6*n-4 n"]:
  """The matrix that doubles n pixels, reflected as far as they reach."""
  return _twice(3 * n - 2) @ np.pad(
    np.eye(n), ((n - 1, n - 1), (0, 0)), "reflect"
  )


def _halved(n: int) -> Float[np.ndarray, "n 2*n+12"]:
  """The matrix that halves, without what lies beyond the edges of n pixels."""
  return _twice(n + 2 * _SIDE).T[_SIDE:-_SIDE]


def augmented(objective: Objective, p: float) -> Objective:
  """An objective on augmented images, whose batches get "augment".

  Args:
    objective: An objective for batches with "image", [B, H, W, C].
    p: See ``draw``.

  Returns:
    The objective.

  Raises:
    ValueError: If p is not in [0, 1].
  """
  _check_probability("augment", p)

  def drawn(key, state, batch):
    own = jax.random.fold_in(jax.random.fold_in(key, AUGMENT), state.step)
    motion = draw(own, len(batch["image"]), p)
    images = moved(batch["image"], motion)
    augment = beside(labels(motion), images)
    return objective.draw(
      key, state, {**batch, "image": images, "augment": augment}
    )

  return objective._replace(draw=drawn)
