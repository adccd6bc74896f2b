"""Images in files: in a folder, a .zip, or elsewhere."""

import concurrent.futures
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax import shapes
from diffusion_jax.data import pictures, sources, views
from diffusion_jax.data.files import File, find, label
from diffusion_jax.data.values import BYTES, Values

# Files handed to a thread at a time, at most: decoding a small one takes no
# longer than handing it over.
TOGETHER = 64


class Decoding(NamedTuple):
  """How image files become arrays; see ``loading.load``.

  Attributes:
    size: (H, W) to resize and crop to; None keeps the size.
    channels: Channels to convert to; None keeps them.
    skip_broken: Whether to leave out files that cannot be read.
    random_crop: Whether to crop images at random every time.
    max_bytes: The largest size to keep in memory.
    values: The units of the numbers.
    rank: 2 for images, 3 for volumes, the pages of TIFFs.
  """

  size: tuple[int, int] | None
  channels: int | None
  skip_broken: bool
  random_crop: bool
  max_bytes: int
  values: Values = BYTES
  rank: int = 2


def load(path: Path, how: Decoding) -> sources.Source:
  """See ``loading.load``."""
  listed, left_out = find(path, skip_broken=how.skip_broken)
  listed, names = label(path, listed)
  return of_files(path, listed, names, left_out, how, named=True)


def of_files(
  path: Path,
  listed: list[File],
  names: tuple[str, ...],
  left_out: str,
  how: Decoding,
  *,
  named: bool = False,
) -> sources.Source:
  """A source of image files.

  Everything is decoded now if it fits ``max_bytes``. If not, and if both size
  and channels are given, nothing is read now, so that a large folder opens at
  once; but skip_broken still has to decode every image once.

  Args:
    path: Their place, for messages.
    listed: The files, with their labels.
    names: Names of the classes.
    left_out: A description of other files.
    how: How to decode them.
    named: Whether paths identify the files, see ``Source.stems``.

  Returns:
    The source.
  """
  size, channels, skip_broken, random_crop, max_bytes, values, rank = how
  files = listed
  if size is not None and channels is not None:
    shape = (*size, channels)
  else:
    headers = _each(lambda _, file: _header(file, rank), files, skip_broken)
    files = _kept(path, files, headers)
    shape = _one_shape(files, [h for h in headers if h], size, channels)

  images = None
  if sources.num_bytes((len(files), *shape), values) <= max_bytes:
    images = np.empty((len(files), *shape), values.dtype)
  if images is not None or skip_broken:

    def decode(index: int, file: File) -> bool:
      image = _image(file, size, shape, values)
      if images is not None:
        images[index] = image
      return True

    done = _each(decode, files, skip_broken)
    files = _kept(path, files, done)
    if images is not None and len(files) < len(images):
      images = images[np.array(done, bool)]

  if len(files) < len(listed):
    _warn(path, listed, files)
  labels = np.array([file.label for file in files], np.int32)
  # Paths by which masks and the like are matched.
  stems = tuple(str(f.path.with_suffix("")) for f in files) if named else ()
  if images is not None:
    source = sources.in_memory(
      path.name, images, labels, names, left_out, values, stems
    )
  else:
    source = _lazy(
      path, files, names, left_out, size, shape, max_bytes, values, stems
    )
  if not random_crop:
    return source
  return views.random_crops(
    source,
    lambda i, words: (
      _read(files[i], size, shape, values, words),
      files[i].label,
    ),
  )


def _lazy(
  path, files, names, left_out, size, shape, max_bytes, values, stems
) -> sources.LazySource:
  """The images, decoded at first use."""
  meaning = () if values == BYTES else (values,)
  return sources.LazySource(
    name=path.name,
    image_shape=shape,
    class_names=names,
    labels=np.array([file.label for file in files], np.int32),
    left_out=left_out,
    # Not of the contents: that would read everything.
    fingerprint=sources.fingerprint(
      shape, *((file.path, file.num_bytes) for file in files), *meaning
    ),
    values=values,
    read=lambda i: (_read(files[i], size, shape, values), files[i].label),
    length=len(files),
    max_bytes=max_bytes,
    stems=stems,
  )


def _header(file: File, rank: int) -> tuple[tuple[int, ...], int]:
  with file.open() as opened:
    return pictures.header(opened, rank)


def _image(
  file: File,
  size: tuple[int, int] | None,
  shape: tuple[int, ...],
  values: Values,
  words: np.ndarray | None = None,
) -> np.ndarray:
  with file.open() as opened:
    if len(shape) == 4:
      image = pictures.read_volume(opened, shape[-1], values.dtype)
    else:
      image = pictures.read(opened, size, shape[-1], values.dtype, words)
  if values != BYTES:
    values.check(image[None], "it")
  if image.shape != shape:
    raise ValueError(f"it has become {image.shape}, was {shape}")
  return image


def _read(
  file: File,
  size: tuple[int, int] | None,
  shape: tuple[int, ...],
  values: Values,
  words: np.ndarray | None = None,
) -> np.ndarray:
  """``_image`` with an error that names the file."""
  try:
    return _image(file, size, shape, values, words)
  except pictures.BROKEN as error:
    raise _unreadable(file, error) from error


def _each(
  function: Callable[[int, File], Any], files: list[File], skip_broken: bool
) -> list[Any]:
  """``function(index, file)`` of each, in threads; None for a broken file."""

  def attempt(index: int) -> Any:
    try:
      return function(index, files[index])
    except pictures.BROKEN as error:
      if skip_broken:
        return None
      raise _unreadable(files[index], error) from error

  threads = os.cpu_count() or 1
  size = max(1, min(TOGETHER, len(files) // (4 * threads)))
  ended = threading.Event()

  def attempt_some(start: int) -> list[Any]:
    some = range(len(files))[start : start + size]
    return [attempt(k) for k in some if not ended.is_set()]

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    futures = [
      pool.submit(attempt_some, start) for start in range(0, len(files), size)
    ]
    try:
      parts = [future.result() for future in futures]
    finally:
      # After an error or Ctrl-C the others need not be read.
      ended.set()
      pool.shutdown(wait=False, cancel_futures=True)
  return list(itertools.chain.from_iterable(parts))


def _kept(
  path: Path, files: list[File], results: Sequence[object]
) -> list[File]:
  """The files whose result is not None; an error if there are none."""
  kept = [f for f, r in zip(files, results, strict=True) if r is not None]
  if not kept:
    raise ValueError(
      f"none of the {len(files)} pictures in {path} can be read, such as"
      f" {sources.visible(files[0].path)}: they are damaged or of an unknown"
      " kind, replace them"
    )
  return kept


def _one_shape(
  files: list[File],
  headers: list[tuple[tuple[int, ...], int]],
  size: tuple[int, int] | None,
  channels: int | None,
) -> tuple[int, ...]:
  """The common shape; all sizes must agree unless a size is given."""
  if channels is None:
    channels = max(header[1] for header in headers)
  if size is not None:
    return (*size, channels)
  first = headers[0][0]
  for file, (other, _) in zip(files, headers, strict=True):
    if other != first:
      a, b = (shapes.by(one) for one in (first, other))
      if len(first) == 3:
        raise ValueError(
          f"volumes differ in size: {sources.visible(files[0].path)} is {a},"
          f" {sources.visible(file.path)} is {b} (pages x height x width); make"
          " them one size"
        )
      raise sources.Unfit(
        f"pictures differ in size: {files[0].path} is {a}, {file.path} is {b}"
        " (height x width); make them one size",
        "size",
      )
  return (*first, channels)


def _unreadable(file: File, error: BaseException) -> sources.Unreadable:
  # Pillow names a file by the memory address of its handle.
  unknown = "UnidentifiedImageError" in type(error).__name__
  reason = (
    "not a picture of a known kind" if unknown else sources.one_line(error)
  )
  return sources.Unreadable(
    f"cannot read picture {file.path}: {reason}; repair or remove it",
    "skip_broken",
  )


def _warn(path: Path, listed: list[File], files: list[File]) -> None:
  good = {file.path for file in files}
  broken = [
    sources.visible(file.path) for file in listed if file.path not in good
  ]
  warnings.warn(
    f"left out {len(broken)} of {len(listed)} pictures in {path} that cannot"
    f" be read: {sources.some(broken)}",
    stacklevel=6,
  )
