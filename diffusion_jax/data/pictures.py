"""Images: from the bytes of a file to an array [H, W, C]."""

import functools
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps, ImageSequence

from diffusion_jax import shapes

# Formats that would start a program, or hold a film.
_NO_PICTURES = frozenset({"EPS", "MPEG"})

# Errors of Pillow (and zipfile under it) for damaged or unsupported files.
BROKEN = (
  OSError,
  EOFError,
  SyntaxError,
  ValueError,
  TypeError,
  LookupError,
  RuntimeError,
  struct.error,
  zlib.error,
  zipfile.BadZipFile,
  Image.DecompressionBombError,
)

# A random crop shows at least this fraction of an image's shorter side.
LEAST_SHARE = 0.8
RANDOM_WORDS = 3  # that a random crop takes: for the scale, the row, the column

_WIDE = frozenset({"I", "I;16", "I;16L", "I;16B"})
_GREY = frozenset({"1", "L", "LA", "La", "F", *_WIDE})
# What a file can be decoded to.
DTYPES = ("uint8", "uint16", "float32")

_EXIF_ORIENTATION = 0x0112


@functools.cache
def extensions() -> frozenset[str]:
  """The file extensions that the installed Pillow can decode."""
  # First the common formats, which are then tried first for every file.
  Image.preinit()
  known = Image.registered_extensions()

  def decodes(kind: str) -> bool:
    if kind == "MPO":  # a JPEG with others behind it
      return True
    opener = Image.OPEN.get(kind, (None,))[0]
    # A stub knows a file when it sees one, and no more.
    return opener is not None and not (
      isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
    )

  return frozenset(
    name
    for name, kind in known.items()
    if kind not in _NO_PICTURES and decodes(kind)
  )


def header(file: IO[bytes], rank: int = 2) -> tuple[tuple[int, ...], int]:
  """(size, channels) of an image or volume, upright, without decoding it.

  The size is (height, width), or for rank 3 (pages, height, width). Channels is
  1 for grey and 3 for colour; a palette counts as colour. Raises one of
  ``BROKEN`` if the file is not an image, or has one page too many or too few.
  """
  with Image.open(file) as opened:
    if rank == 2:
      return _page_header(_only_page(opened))
    sizes, channels = zip(*map(_page_header, _pages(opened)), strict=True)
  for k, size in enumerate(sizes):
    if size != sizes[0]:
      raise ValueError(
        f"its page {k + 1} is {shapes.by(size)}, its first"
        f" {shapes.by(sizes[0])}"
      )
  return (len(sizes), *sizes[0]), max(channels)


def _page_header(page: Image.Image) -> tuple[tuple[int, int], int]:
  width, height = page.size
  # Pillow turns a TIFF upright by itself, size included.
  turned = page.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
  sideways = turned and page.format != "TIFF"
  size = (width, height) if sideways else (height, width)
  return size, 1 if page.mode in _GREY else 3


def _only_page(opened: Image.Image) -> Image.Image:
  """A picture; refuses a TIFF with several. Of animations, the first frame."""
  if opened.format == "TIFF" and (count := getattr(opened, "n_frames", 1)) > 1:
    raise ValueError(f"it has {count} pages: load it as a volume, with rank=3")
  return opened


def _pages(opened: Image.Image) -> Iterator[Image.Image]:
  """The pages of a TIFF: one picture, which goes from page to page."""
  if opened.format != "TIFF" or getattr(opened, "n_frames", 1) == 1:
    raise ValueError("it is no multi-page TIFF, as volumes (rank=3) are")
  return iter(ImageSequence.Iterator(opened))


def decode(file: IO[bytes]) -> Image.Image:
  """Decodes a picture (of an animation the first) to mode "L" or "RGB".

  It is rotated upright by its EXIF data, 16-bit grey is rounded to 8 bits, and
  transparent images get a white background. Raises one of ``BROKEN`` if the
  file is damaged, has several pages, or no 8-bit meaning (32-bit integers,
  floats).
  """
  with Image.open(file) as opened:
    return _narrow(_only_page(opened))


def _narrow(page: Image.Image) -> Image.Image:
  picture, kind = ImageOps.exif_transpose(page), page.format
  wide = picture.mode.startswith("I;16") or (
    picture.mode == "I" and kind == "PPM"  # 16 bits, scaled to 0..65535
  )
  if picture.mode in ("I", "F") and not wide:
    raise ValueError(f"its pixels are 32-bit (mode {picture.mode})")
  if wide:
    values = np.asarray(picture).astype(np.float64)
    # 65535 = 255 * 257, so this takes white to white; Pillow's own
    # conversion clips at 255.
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))
  return _flat(picture)


def _flat(picture: Image.Image) -> Image.Image:
  """Grey or colour of 8 bits; transparent images get a white background."""
  mode = "L" if picture.mode in _GREY else "RGB"
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture.convert(mode)


def read(
  file: IO[bytes],
  size: tuple[int, int] | None,
  channels: int | None,
  dtype: str = "uint8",
  words: np.ndarray | None = None,
) -> np.ndarray:
  """A picture file as an array, see ``decode`` and ``refit``.

  As uint16, a byte k is 257 k, so that white stays white. Raises one of
  ``BROKEN`` if the file is damaged, or has no such values that Pillow reads:
  16-bit colour comes out of it as 8 bits.
  """
  with Image.open(file) as opened:
    return _array(_only_page(opened), size, channels, dtype, words)


def read_volume(
  file: IO[bytes], channels: int, dtype: str = "uint8"
) -> np.ndarray:
  """The pages of a TIFF as an array [D, H, W, C], see ``read``."""
  with Image.open(file) as opened:
    return np.stack(
      [_array(page, None, channels, dtype, None) for page in _pages(opened)]
    )


def _array(page: Image.Image, size, channels, dtype, words) -> np.ndarray:
  if dtype == "uint8":
    return to_array(_narrow(page), size, channels, words)
  return refit(_wide(page, dtype), size, channels, words)


def _wide(page: Image.Image, dtype: str) -> np.ndarray:
  """A page as [H, W, C] of uint16 or float32, upright."""
  tile = getattr(page, "tile", None)  # only of what was opened from a file
  stored = tile[0][3] if tile else ""
  stored = stored if isinstance(stored, str) else (stored or ("",))[0]
  if ";16" in str(stored) and page.mode not in _WIDE:
    raise ValueError(
      f"it is {stored}, 16-bit colour, of which Pillow keeps 8 bits: save"
      " such pictures as one .npy"
    )
  picture, kind = ImageOps.exif_transpose(page), page.format
  if dtype == "float32":
    if picture.mode != "F":
      raise ValueError(f"its pixels are no floats (mode {picture.mode})")
    return np.asarray(picture)[..., None]
  if picture.mode in ("I", "F") and not (picture.mode == "I" and kind == "PPM"):
    raise ValueError(f"its pixels are 32-bit (mode {picture.mode})")
  if picture.mode in _WIDE:
    return np.asarray(picture).astype(np.uint16)[..., None]
  return np.uint16(257) * to_array(_flat(picture), None, None)


def crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
  """Resizes an image to cover ``size`` and crops the centre.

  It is halved by BOX while both sides stay at least as large as ``size``, then
  resized once by BICUBIC, then cropped: for a square size these are the steps
  of Guided Diffusion's training data, on which its reference batches depend.

  Args:
    picture: Any mode that Pillow can resize.
    size: (height, width) wanted.

  Returns:
    A picture of that size; the same pixels if it had it already.
  """
  height, width = size
  if picture.size == (width, height):
    return picture
  picture = _cover(picture, size)
  left = (picture.width - width) // 2
  top = (picture.height - height) // 2
  return picture.crop((left, top, left + width, top + height))


def random_crop(
  picture: Image.Image, size: tuple[int, int], words: np.ndarray
) -> Image.Image:
  """Resizes an image and crops it at a random place.

  The shorter side becomes 1 to 1 / 0.8 times that of ``size``, then the image
  is cropped: for a square size Guided Diffusion's classifiers were trained this
  way (``random_crop_arr`` in its code).

  Args:
    picture: Any mode that Pillow can resize.
    size: (height, width) wanted.
    words: Three random 64-bit numbers.

  Returns:
    A picture of that size.
  """
  height, width = size
  scale, row, column = (int(word) for word in words)
  short = min(size)
  side = short + scale % (math.ceil(short / LEAST_SHARE) - short + 1)
  large = (round(height * side / short), round(width * side / short))
  picture = _cover(picture, large)
  top = row % (picture.height - height + 1)
  left = column % (picture.width - width + 1)
  return picture.crop((left, top, left + width, top + height))


def _cover(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
  """The image at the least size that covers ``size``, see ``crop``."""
  height, width = size
  while picture.width >= 2 * width and picture.height >= 2 * height:
    half = (picture.width // 2, picture.height // 2)
    picture = picture.resize(half, Image.Resampling.BOX)
  scale = max(width / picture.width, height / picture.height)
  cover = (
    max(width, round(picture.width * scale)),
    max(height, round(picture.height * scale)),
  )
  return picture.resize(cover, Image.Resampling.BICUBIC)


def to_array(
  picture: Image.Image,
  size: tuple[int, int] | None,
  channels: int | None,
  words: np.ndarray | None = None,
) -> np.ndarray:
  """A decoded picture as uint8 [H, W, C].

  Args:
    picture: Mode "L" or "RGB", as from ``decode``.
    size: (H, W) to ``crop`` to, or None to leave it.
    channels: 1, 3, or None to leave them.
    words: Random numbers for a ``random_crop``; None crops the centre.
  """
  if channels is not None:
    picture = picture.convert("L" if channels == 1 else "RGB")
  if size is not None:
    picture = _cut(picture, size, words)
  array = np.asarray(picture)
  return array[..., None] if array.ndim == 2 else array


def _cut(
  picture: Image.Image, size: tuple[int, int], words: np.ndarray | None
) -> Image.Image:
  if words is None:
    return crop(picture, size)
  return random_crop(picture, size, words)


def refit(
  image: np.ndarray,
  size: tuple[int, int] | None,
  channels: int | None,
  words: np.ndarray | None = None,
) -> np.ndarray:
  """``to_array`` for an image that is an array already, [H, W, C].

  Values that are not bytes are resized as floats, and rounded back; none leaves
  the range of its channel.

  Raises:
    ValueError: If ``channels`` is given and the image has neither 1, 3 nor
      that many.
  """
  have = image.shape[-1]
  wide = image.dtype != np.uint8
  if wide and channels == 3 and have == 1:
    image, have = np.repeat(image, 3, axis=-1), 3
  if have in (1, 3) and not wide:
    picture = Image.fromarray(image[..., 0] if have == 1 else image)
    return to_array(picture, size, channels, words)
  if channels not in (None, have):
    raise ValueError(
      f"channels is {channels}, but the images have {have}: only 1 and 3 can"
      " be converted to each other"
    )
  if size is None:
    return image
  resize = _resized_wide if wide else _resized
  bands = [resize(band, size, words) for band in np.moveaxis(image, -1, 0)]
  return np.stack(bands, axis=-1)


def _resized(band, size, words) -> np.ndarray:
  return np.asarray(_cut(Image.fromarray(band), size, words))


def _resized_wide(band, size, words) -> np.ndarray:
  floats = _resized(band.astype(np.float32), size, words)
  if floats.shape == band.shape and size == band.shape and words is None:
    return band  # float64 keeps its digits
  floats = np.clip(floats, band.min(), band.max())
  whole = np.issubdtype(band.dtype, np.integer)
  return (np.rint(floats) if whole else floats).astype(band.dtype)
