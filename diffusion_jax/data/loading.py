"""``load``: from a name to a source."""

import functools
import numbers
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax import shapes
from diffusion_jax.data import (
  arrays,
  cache,
  folders,
  hub,
  pictures,
  sources,
  tables,
  tars,
  tfds,
  values,
)

BY_SUFFIX = {
  **dict.fromkeys((".npz", ".npy"), "array"),
  **dict.fromkeys(tables.SUFFIXES, "table"),
  ".tar": "tar",
  ".zip": "folder",
}

# The kinds of data that hold signals, and volumes.
RANKED = {1: ("array", "cache"), 3: ("array", "cache", "folder")}

# 12 bits in a file of 16 reach this part of its range; a byte's is 16 of 255.
DARK = 1 / 15.9

# About what Pillow takes of a file before it suspects an attack.
MOST_PIXELS = 2**27


def load(
  name: str | os.PathLike[str],
  *,
  split: str = "train",
  size: int | tuple[int, int] | None = None,
  channels: int | None = None,
  skip_broken: bool = False,
  random_crop: bool = False,
  rank: int = 2,
  dtype: str | None = None,
  range: Sequence[float] | None = None,
  mean: float | None = None,
  std: float | None = None,
  data_dir: str | os.PathLike[str] | None = None,
  max_bytes: int = sources.MAX_BYTES,
) -> sources.Source:
  """A source by its name.

  Args:
    name: One of
      "digits", scikit-learn's 1,797 pictures of 8 x 8 x 1, which need no
      download; the path of a folder of pictures or of a .zip of one, in any
      format that Pillow decodes, with a sub-folder for each class if there are
      any; the path of a .npz ("images", "labels") or .npy of images
      [N, H, W, C] or [N, H, W], integers of 8 or 16 bits or floats; a
      .parquet or .arrow with a column of pictures, a folder of them, or one
      that ``datasets`` has saved to disk; a .tar of webdataset, or a pattern
      such as "shards-{000000..000009}.tar"; a cache that experiments.prepare
      has written; "hf:OWNER/NAME" or "hf:OWNER/NAME/CONFIG" of the Hugging
      Face hub; the name of a TFDS data set, such as "cifar10", "mnist:3.*.*"
      or, if a folder in the working directory has the same name,
      "tfds:cifar10".
    split: Part of a data set of TFDS or the hub, such as "test" or
      "train[:90%]", or of a folder of tables, "test". All else is one part,
      "train".
    size: Side, or (H, W), to resize and crop images to; None keeps the stored
      size, which must then be the same for all. See ``pictures.crop``.
    channels: 1 or 3 converts all images to grey or colour; None keeps them as
      stored, but converts grey ones to colour if both kinds are mixed.
    skip_broken: Leave out images that cannot be read, with a warning, instead
      of failing at the first; also broken links, and folders that cannot be
      listed.
    random_crop: In training, crop each image at random every time, see
      ``pictures.random_crop``; needs a size. ``source[i]`` and ``gather``, for
      evaluation, still crop the centre.
    rank: Axes of the size of an array's examples: 2 for images [N, H, W, C], 1
      for signals [N, L, C], 3 for volumes [N, D, H, W, C]; the last axis,
      channels, may be left out if there is one channel. In a folder or .zip,
      each multi-page TIFF is a volume. Signals and volumes are not resized,
      cropped or converted.
    dtype: The type to decode image files to: "uint8", by default; "uint16", for
      all bits of 16-bit grey PNG and TIFF; or "float32", for TIFF. Arrays keep
      their own.
    range: (low, high), the values that become -1 and 1. The default for bytes
      and unsigned 16-bit integers is all of their values; floats have none.
    mean: For data without a range, with ``std``: the value that becomes 0.
    std: Their standard deviation, which becomes 1.
    data_dir: The folder of TFDS data sets; None takes TFDS's default.
    max_bytes: Images that need more memory than this when decoded are decoded
      again every time they are read.

  Returns:
    The source.

  Raises:
    ValueError: For any name, file or option that does not fit, in one line that
      says what to do. ``Unfit`` has the option that would help.
  """
  if isinstance(range, np.ndarray):
    range = tuple(range.tolist())
  source = _load(
    name, split, size, channels, skip_broken, random_crop, data_dir, max_bytes,
    rank, dtype, functools.partial(values.of, range=range, mean=mean, std=std),
    bool(range) or mean is not None or std is not None,
  )  # fmt: skip
  _check_brightness(source)
  return source


def _check_name(text: str) -> None:
  """Raises for an empty name, or one that does not fit on a line."""
  if not text.strip():  # as a path it would be the working directory
    raise ValueError(f"the name of the data is empty: {sources.ACCEPTED}")
  if sources.CONTROL.search(text):
    raise ValueError(f"{text!r} has a control character: rename it")


def _load(
  name: str | os.PathLike[str],
  split: str,
  size: int | tuple[int, int] | None,
  channels: int | None,
  skip_broken: bool,
  random_crop: bool,
  data_dir: str | os.PathLike[str] | None,
  max_bytes: int,
  rank: int,
  dtype: str | None,
  meaning: values.Meaning,
  means: bool,
) -> sources.Source:
  """``load``, by the kind of name."""
  text = os.path.expanduser(os.fspath(name))
  _check_name(text)
  path = Path(text)
  shape = _pair(size)
  if channels not in (None, 1, 3):
    raise ValueError(f"channels is {channels!r}: must be 1, 3 or None")
  if random_crop and shape is None:
    raise ValueError(
      "random_crop cuts pictures to a size, and none is given; set size, such"
      " as size=64"
    )
  kind = find(text)
  _check_meaning(text, kind, dtype, means)
  if rank != 2:
    _check_rank(text, kind, rank, shape, channels, random_crop)
  if kind == "tfds":
    return tfds.load(
      text.removeprefix("tfds:"), split, shape, channels, random_crop, data_dir,
      max_bytes,
    )  # fmt: skip
  if split != "train" and kind not in ("hub", "table"):
    raise ValueError(
      f"split is {split!r}, but {text} is one part: use split='train'"
    )
  if kind == "digits":
    return _digits(path, shape, channels, random_crop)
  if kind == "cache":
    source = _cached(path, rank)
    _check_cache(
      source, shape, channels, random_crop, dtype, meaning if means else None
    )
    return source
  if kind == "array":
    return arrays.load(path, shape, channels, random_crop, meaning, rank)
  how = folders.Decoding(
    shape, channels, skip_broken, random_crop, max_bytes,
    meaning(dtype or "uint8", where=f"the pictures of {path}"), rank,
  )  # fmt: skip
  if kind in ("hub", "table"):
    read = hub.load if kind == "hub" else tables.load
    return read(path, split, how)
  return (tars if kind == "tar" else folders).load(path, how)


def find(name: str) -> str:
  """The kind of data that a name means.

  Args:
    name: As for ``load``, with the home directory expanded.

  Returns:
    "digits", "cache", "array", "table", "tar", "folder", "hub" or, for any
    other name, "tfds".

  Raises:
    ValueError: If it is a file of another kind.
  """
  for prefix, kind in (("tfds:", "tfds"), (hub.PREFIX, "hub")):
    if name.startswith(prefix):
      return kind
  path = Path(name)
  if name == "digits":
    return "digits"
  if path.is_dir():
    if cache.is_cache(path):
      return "cache"
    return "table" if tables.are_in(path) else "folder"
  kind = BY_SUFFIX.get(path.suffix.lower())
  if kind is None and path.is_file():
    raise ValueError(
      f"{name} is a file of a kind that cannot be read: {sources.ACCEPTED}"
    )
  return kind or "tfds"


def _digits(path: Path, size, channels, random_crop) -> sources.Source:
  """scikit-learn's digits, even if a folder has their name."""
  if path.is_dir():
    warnings.warn(
      "'digits' are those of scikit-learn; the folder of that name is"
      " './digits'",
      stacklevel=4,
    )
  return arrays.digits(size, channels, random_crop)


def _check_meaning(
  text: str, kind: str, dtype: str | None, means: bool
) -> None:
  """Raises for units of values that would be ignored."""
  if (dtype or means) and kind in ("digits", "tfds"):
    raise ValueError(
      f"{text} are bytes: dtype, range, mean and std are of pictures in files,"
      " .npz and .npy"
    )
  if dtype and (dtype not in pictures.DTYPES or kind == "array"):
    raise ValueError(
      f"{dtype=} must be one of {', '.join(pictures.DTYPES)}, of pictures in "
      "files; arrays have theirs"
    )


def _check_rank(
  text: str, kind: str, rank: int, size, channels, random_crop
) -> None:
  """Raises for signals or volumes in other files, and for resizing any."""
  if kind not in RANKED.get(rank, ()):
    raise ValueError(
      f"{rank=} of {text}: signals (1) are .npz or .npy, volumes (3) these or"
      " a folder or .zip of multi-page TIFFs, all else has rank 2"
    )
  if size is not None or channels is not None or random_crop:
    raise ValueError(
      f"{text} has rank {rank}: size, channels and random_crop are of "
      "pictures, leave them out"
    )


def _cached(path: Path, rank: int) -> sources.ArraySource:
  source = cache.load(path)
  prepared = len(source.image_shape) - 1
  if prepared != rank:
    raise ValueError(
      f"{path} was prepared as {shapes.noun(source.image_shape, 2)}: rank must"
      f" be {prepared}, and is {rank}"
    )
  return source


def _check_cache(
  source, size, channels, random_crop, dtype, meaning: values.Meaning | None
) -> None:
  """Raises for options that would change a cache."""
  given = source.values if meaning is None else meaning(source.values.dtype)
  *have, c = source.image_shape
  wrong = {
    "size": size not in (None, tuple(have)),
    "channels": channels not in (None, c),
    "random_crop": random_crop,
    "dtype": dtype not in (None, source.values.dtype),
    "range, mean and std": given != source.values,
  }
  if any(wrong.values()):
    shape = shapes.by(source.image_shape)
    named = ", ".join(name for name, differs in wrong.items() if differs)
    raise ValueError(
      f"{source.name} was prepared as {shape} of {source.values}: leave out "
      f"{named}, or prepare it again"
    )


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
  """``size`` as (H, W), checked."""
  if size is None:
    return None
  pair = tuple(size) if isinstance(size, Sequence) else (size, size)
  whole = all(isinstance(n, numbers.Integral) and n > 0 for n in pair)
  if len(pair) != 2 or not whole or isinstance(pair[0], bool):
    raise ValueError(
      f"size is {size!r}: must be a positive side, or (height, width)"
    )
  height, width = int(pair[0]), int(pair[1])
  if height * width > MOST_PIXELS:
    raise ValueError(
      f"size is {height} x {width}, more than the {MOST_PIXELS:,} pixels that"
      " one picture may have: name a smaller one"
    )
  return height, width


def _check_brightness(source: sources.Source) -> None:
  """Warns if images are nearly black; of many it looks at a few."""
  if not source.values.bounded:
    return
  if (
    isinstance(source, sources.ArraySource)
    and source.images.nbytes <= sources.MAX_BYTES
  ):
    images = source.images
  else:
    indices = np.linspace(0, len(source) - 1, min(len(source), 16), dtype=int)
    try:
      images = source.gather(indices)["image"]
    except pictures.BROKEN:  # reported when the image is needed
      return
  most, low, high = float(images.max()), source.values.low, source.values.high
  if most - low <= DARK * (high - low):
    warnings.warn(
      f"{source.name}: no value exceeds {most:g} of {low:g} to {high:g}, so the"
      f" {shapes.noun(source.image_shape, 2)} are nearly black; if they are"
      " 12-bit data in 16-bit files, or masks, scale them to the full range, or"
      " name theirs as range=(low, high)",
      stacklevel=3,
    )
