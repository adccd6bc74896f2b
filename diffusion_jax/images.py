"""Pictures out: quantised, tiled, enlarged, saved."""

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
    x: Pictures; what lies outside [-1, 1] is clipped.
    quantise: "round" takes the nearest k, "floor" the one below, as OpenAI's
      sampling scripts do: on average half a level darker, which FID can tell.

  Returns:
    The bytes.

  Raises:
    ValueError: If there is no such rule.
    FloatingPointError: If a value is NaN or infinite, which would be black or
      white like any other.

  >>> to_uint8(np.array([-1.2, -1.0, 0.0, 1.0])).tolist()
  [0, 0, 128, 255]
  >>> to_uint8(np.array([-1.2, -1.0, 0.0, 1.0]), "floor").tolist()
  [0, 0, 127, 255]
  """
  if quantise not in QUANTISE:
    raise ValueError(f"{quantise=} is not one of {', '.join(QUANTISE)}")
  x = np.asarray(x, np.float32)
  check_finite(x)
  scaled = QUANTISE[quantise]((x + 1) * 127.5)
  return np.clip(scaled, 0, 255).astype(np.uint8)


def check_finite(x: np.ndarray) -> None:
  """Refuses samples that are no numbers, which as integers would look like any.

  Raises:
    FloatingPointError: If a value is NaN or infinite.
  """
  wrong = x.size - np.isfinite(x).sum()
  if wrong:
    raise FloatingPointError(
      f"{wrong:,} of the {x.size:,} values of pictures are NaN or infinite, so "
      "none are written; look at the scale of guidance first, then at the "
      "parameters"
    )


def from_uint8(x: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
  """Bytes k as k / 127.5 - 1, float32.

  Raises:
    ValueError: If they are no bytes: floats may be in [-1, 1] already.
  """
  if x.dtype != np.uint8:
    raise ValueError(f"x is {x.dtype}; pass bytes, uint8")
  # As (2 k - 255) / 255, which rounds only once.
  floats = x.astype(np.float32)
  floats *= 2
  floats -= 255
  floats /= 255
  return floats


def displayable(x: UInt8[np.ndarray, "B H W C"]) -> np.ndarray:
  """[B, H, W, C] -> [B, H, W', 3]; grey or colour as it is.

  Any other number of channels is shown as that many grey pictures side by
  side.
  """
  b, h, w, c = x.shape
  if c == 3:
    return x
  grey = x.transpose(0, 1, 3, 2).reshape(b, h, c * w, 1)
  return np.broadcast_to(grey, (b, h, c * w, 3))


def grid(
  x: Float[np.ndarray, "B H W C"],
  *,
  columns: int | None = None,
  min_pixels: int = 64,
  gap: int = 4,
) -> UInt8[np.ndarray, "H2 W2 3"]:
  """Tiles images into one picture.

  Args:
    x: Images in [-1, 1].
    columns: Per row; by default about as many as rows.
    min_pixels: Small images are enlarged by a whole factor, pixels staying
      sharp, until their shorter side has at least this many.
    gap: White pixels between images.

  Returns:
    The picture.

  Raises:
    ValueError: If there are no images.
  """
  if not len(x):
    raise ValueError("there are no images to tile; pass at least one")
  tiles = displayable(to_uint8(x))
  b, h, w, _ = tiles.shape
  factor = max(1, -(-min_pixels // min(h, x.shape[2])))
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


def save_picture(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes [H, W, C], by the path's suffix: bytes, or one channel of another.

  One channel of uint16 is a .png or .tiff, one of float32 a .tiff; of bytes
  one channel is grey, three are colour.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  array = picture[..., 0] if picture.shape[-1] == 1 else picture
  _pillow().fromarray(array).save(path)


save_png = save_picture


def save_gif(
  path: pathlib.Path,
  frames: list[UInt8[np.ndarray, "H W 3"]],
  *,
  seconds: float = 0.1,
  pause: float = 2.0,
) -> None:
  """Writes an animation that repeats for ever.

  Args:
    path: Of the .gif.
    frames: The pictures, in order.
    seconds: How long each is shown.
    pause: How long the last is shown.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  first, *rest = [_pillow().fromarray(f) for f in frames]
  durations = [int(1000 * seconds)] * len(rest) + [int(1000 * pause)]
  first.save(
    path, save_all=True, append_images=rest, duration=durations, loop=0
  )


def _pillow():
  with needed_for("a picture in a file"):
    from PIL import Image
  return Image
