"""Images embedded in the page."""

import base64
import io
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.data import pictures


class Picture(NamedTuple):
  """An <img> of page.html.

  Attributes:
    src: The image as a data URL.
    alt: Its alternative text.
    width: In pixels.
    height: In pixels.
  """

  src: str
  alt: str
  width: int
  height: int


class Captioned(NamedTuple):
  """An image and its caption; the caption alone if it cannot be read."""

  picture: Picture | None
  caption: str


def picture(
  source: pathlib.Path | np.ndarray,
  alt: str,
  *,
  side: int = 1024,
  most_bytes: int = 200_000,
) -> Picture | None:
  """A picture of the page.

  Args:
    source: A file, or bytes [H, W, 3].
    alt: Its alternative text.
    side: Larger images are shrunk to at most this many pixels.
    most_bytes: The size up to which it is lossless; a JPEG beyond.

  Returns:
    The image; None if the file cannot be read, as while it is written.
  """
  try:
    image = (
      Image.fromarray(source)
      if isinstance(source, np.ndarray)
      else Image.open(source)
    ).convert("RGB")
  except pictures.BROKEN:
    return None
  # thumbnail() keeps the ratio of the sides and never enlarges.
  image.thumbnail((side, side), Image.Resampling.BOX)
  return Picture(still(image, most_bytes), alt, image.width, image.height)


def still(image: Image.Image, most_bytes: int) -> str:
  """The data URL of a PNG, or of a JPEG if that is too large."""
  data = _file(image, "PNG")
  if len(data) <= most_bytes:
    return data_url("png", data)
  return data_url("jpeg", _file(image, "JPEG", quality=85))


def _file(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def data_url(kind: str, data: bytes) -> str:
  """An image file as a data URL."""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
