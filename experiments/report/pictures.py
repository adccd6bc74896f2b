"""Pictures that a page holds itself."""

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
    src: The picture itself, as an address.
    alt: What it shows, for those who do not see it.
    width: In pixels.
    height: In pixels.
  """

  src: str
  alt: str
  width: int
  height: int


class Captioned(NamedTuple):
  """A picture and its caption; a sentence alone where it cannot be read."""

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
    alt: What it shows.
    side: Larger pictures are made smaller, to this many pixels at most.
    most_bytes: What a lossless file may take; otherwise it is a JPEG.

  Returns:
    The picture; None where the file cannot be read, as while it is written.
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
  """The address of a PNG, or of a JPEG where that takes too many bytes."""
  data = _file(image, "PNG")
  if len(data) <= most_bytes:
    return data_url("png", data)
  return data_url("jpeg", _file(image, "JPEG", quality=85))


def _file(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def data_url(kind: str, data: bytes) -> str:
  """A picture as an address that holds it."""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
