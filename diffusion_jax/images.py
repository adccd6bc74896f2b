"""Image output: quantised, tiled, enlarged, saved."""

import itertools
import os
import pathlib

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax.extras import needed_for

QUANTISE = {"round": np.rint, "floor": np.floor}


def to_uint8(
  x: Float[np.ndarray, "*n"], quantise: str = "round"
) -> UInt8[np.ndarray, "*n"]:
  """[-1, 1] -> 0..255; "round" is the inverse of ``from_uint8``.

  "floor" is not: k / 127.5 - 1 in float32 may lie just below its level, and
  then becomes k - 1, as in the published scripts.

  Args:
    x: Images; values outside [-1, 1] are clipped.
    quantise: "round" takes the nearest k, "floor" the one below, as in OpenAI's
      sampling scripts: on average half a level darker, which changes the FID.

  Returns:
    The bytes.

  Raises:
    ValueError: If there is no such rule, or x are integers.
    FloatingPointError: If a value is NaN or infinite, which would otherwise
      become black or white.

  >>> to_uint8(np.array([-1.2, -1.0, 0.0, 1.0])).tolist()
  [0, 0, 128, 255]
  >>> to_uint8(np.array([-1.2, -1.0, 0.0, 1.0]), "floor").tolist()
  [0, 0, 127, 255]
  """
  if quantise not in QUANTISE:
    raise ValueError(f"{quantise=} is not one of {', '.join(QUANTISE)}")
  if np.asarray(x).dtype.kind in "uib":
    raise ValueError(f"x is {np.asarray(x).dtype}; pass floats in [-1, 1]")
  x = np.asarray(x, np.float32)
  check_finite(x)
  scaled = QUANTISE[quantise]((x + 1) * 127.5)
  return np.clip(scaled, 0, 255).astype(np.uint8)


def check_finite(x: np.ndarray) -> None:
  """Checks for NaN and infinity, which cannot be seen in integers.

  Raises:
    FloatingPointError: If a value is NaN or infinite.
  """
  wrong = x.size - np.isfinite(x).sum()
  if wrong:
    raise FloatingPointError(
      f"{wrong:,} of the {x.size:,} values of pictures are NaN or infinite, so "
      "none are written; look at the scale of guidance first, then at the "
      "parameters; a network of your own may not take all times"
    )


def from_uint8(x: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
  """Bytes k as k / 127.5 - 1, float32.

  Raises:
    ValueError: If they are not bytes: floats may be in [-1, 1] already.
  """
  if x.dtype != np.uint8:
    raise ValueError(f"x is {x.dtype}; pass bytes, uint8")
  # As (2 k - 255) / 255, which rounds only once.
  floats = x.astype(np.float32)
  floats *= 2
  floats -= 255
  floats /= 255
  return floats


def displayable(x: UInt8[np.ndarray, "B *size C"]) -> np.ndarray:
  """[B, H, W, C] -> [B, H, W', 3]; grey or colour as it is.

  Any other number of channels is shown as grey images side by side. For volumes
  it is the slice in the middle of their depth, for signals a plot of lines, see
  ``plotted``.
  """
  if x.ndim == 3:
    return plotted(x)
  if x.ndim == 5:
    x = x[:, x.shape[1] // 2]
  b, h, w, c = x.shape
  if c == 3:
    return x
  grey = x.transpose(0, 1, 3, 2).reshape(b, h, c * w, 1)
  return np.broadcast_to(grey, (b, h, c * w, 3))


# Colours of a signal's channels, distinct without colour vision too (Okabe and
# Ito 2008).
_COLOURS = np.array(
  [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0]],
  np.uint8,
)


def plotted(
  x: UInt8[np.ndarray, "B L C"], size: tuple[int, int] = (64, 128)
) -> UInt8[np.ndarray, "B H W 3"]:
  """Signals as lines on white, 0 below and 255 above, one for each channel.

  A column is dark from the least to the greatest value within it, so that no
  peak is lost if there are more points than columns.
  """
  height, width = size
  places = x.shape[1]
  # Every point, and enough between it and the next to fill the columns.
  between = -(-width // max(1, places - 1))
  at = np.arange(between * (places - 1) + 1) / between
  before = at.astype(int)
  after, part = np.minimum(before + 1, places - 1), (at % 1)[:, None]
  y = x[:, before] * (1 - part) + x[:, after] * part
  sides = np.rint(np.linspace(0, len(at) - 1, width + 1)).astype(int)
  columns = [y[:, a : b + 1] for a, b in itertools.pairwise(sides)]
  least = np.stack([column.min(axis=1) for column in columns], axis=1)
  most = np.stack([column.max(axis=1) for column in columns], axis=1)
  rows = np.arange(height - 1, -1, -1)[:, None] / (height - 1) * 255
  half = 255 / (height - 1) / 2
  canvas = np.full((len(x), height, width, 3), 255, np.uint8)
  for channel in range(x.shape[2]):
    low, high = (end[:, None, :, channel] for end in (least, most))
    dark = (low - half <= rows) & (rows <= high + half)
    canvas[dark] = _COLOURS[channel % len(_COLOURS)]
  return canvas


def grid(
  x: Float[np.ndarray, "B *size C"],
  *,
  columns: int | None = None,
  min_pixels: int = 64,
  gap: int = 4,
) -> UInt8[np.ndarray, "H2 W2 3"]:
  """Tiles images into one image.

  Args:
    x: Images in [-1, 1], or signals or volumes, see ``displayable``. If signals
      leave the range, all are shown on a larger scale.
    columns: Images per row; by default about as many as rows.
    min_pixels: Small images are enlarged by an integer factor, without
      smoothing, until their shorter side has at least this many.
    gap: White pixels between images.

  Returns:
    The image.

  Raises:
    ValueError: If there are no images or no columns, or one is no image.
  """
  if columns is not None and columns < 1:
    raise ValueError(f"{columns=} must be at least 1, or None")
  if not len(x):
    raise ValueError("there are no images to tile; pass at least one")
  x = np.asarray(x)
  if x.ndim not in (3, 4, 5):
    raise ValueError(
      f"x has shape {x.shape}; pass images [B, H, W, C], signals [B, L, C] or "
      "volumes [B, D, H, W, C]"
    )
  if x.ndim == 3 and np.isfinite(x).all():
    x = x / max(1, np.abs(x).max())
  tiles = displayable(to_uint8(x))
  b, h, w, _ = tiles.shape
  factor = max(1, -(-min_pixels // min(h, w)))
  tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
  h, w = h * factor, w * factor
  columns = columns or int(np.ceil(np.sqrt(b * h / w)))
  rows = -(-b // columns)
  canvas = np.full(
    (rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8
  )
  for k, tile in enumerate(tiles):
    top = gap + (k // columns) * (h + gap)
    left = gap + (k % columns) * (w + gap)
    canvas[top : top + h, left : left + w] = tile
  return canvas


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
  """Writes [H, W, C] in the format of the path's suffix.

  Bytes have one channel (grey) or three (colour). One channel of uint16 is a
  .png or .tiff, one of float32 a .tiff.
  """
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  array = picture[..., 0] if picture.shape[-1] == 1 else picture
  _pillow().fromarray(array).save(path)


save_png = save_picture


def save_gif(
  path: str | os.PathLike[str],
  frames: list[UInt8[np.ndarray, "H W 3"]],
  *,
  seconds: float = 0.1,
  pause: float = 2.0,
) -> None:
  """Writes an animation that repeats for ever.

  Args:
    path: The .gif.
    frames: The images, in order.
    seconds: How long to show each.
    pause: How long to show the last.

  Raises:
    ValueError: If there are no frames.
  """
  if not len(frames):
    raise ValueError("there are no frames to show; pass at least one")
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  first, *rest = [_pillow().fromarray(f) for f in frames]
  durations = [int(1000 * seconds)] * len(rest) + [int(1000 * pause)]
  first.save(
    path, save_all=True, append_images=rest, duration=durations, loop=0
  )


def _pillow():
  with needed_for("a picture in a file"):
    from PIL import Image
  return Image
