"""Sources from arrays: digits, .npz and .npy files."""

from pathlib import Path

import numpy as np

from diffusion_jax.data import classes, pictures, sources, views
from diffusion_jax.data.values import BYTES, Meaning, Values

_IMAGE_KEYS = ("images", "x", "arr_0")
_LABEL_KEYS = ("labels", "y", "arr_1")
_SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}


def digits(
  size: tuple[int, int] | None, channels: int | None, random_crop: bool
) -> sources.Source:
  """The 1,797 digits of scikit-learn, 8 x 8, scaled from 0..16 to 0..255."""
  from sklearn import datasets

  values, labels = map(np.asarray, datasets.load_digits(return_X_y=True))
  images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  names = tuple(str(digit) for digit in range(10))
  return _source("digits", images, labels, names, size, channels, random_crop)


def load(
  path: Path,
  size: tuple[int, int] | None,
  channels: int | None,
  random_crop: bool,
  meaning: Meaning,
  rank: int = 2,
) -> sources.Source:
  """A source from a .npz or .npy file, with the units of its numbers."""
  images, labels, others = _read_arrays(path)
  if 0 in images.shape:
    raise ValueError(
      f"{path} holds no images: they are {images.dtype} {list(images.shape)}"
    )
  if images.ndim == rank + 1:
    if rank == 2:
      _check_colour(path, images.shape)
    images = images[..., None]
  if images.ndim != rank + 2:
    fitting = [n for n in _SIZES if n != rank and images.ndim in (n + 1, n + 2)]
    raise ValueError(
      f"{path} has images of {images.dtype} {list(images.shape)}: must be"
      f" [N, {_SIZES[rank]}, C] or [N, {_SIZES[rank]}]"
      + "".join(f"; rank={n} takes [N, {_SIZES[n]}, C]" for n in fitting)
    )
  _check_axes(path, images.shape)
  values = meaning(images.dtype, where=f"the images of {path}")
  if not images.dtype.isnative:
    images = images.astype(values.dtype)
  if values != BYTES:
    values.check(images, str(path))
  names: tuple[str, ...] = ()
  if labels is None:
    labels = np.zeros(len(images), np.int32)
  elif labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"{path} has labels of {labels.dtype} {list(labels.shape)}: must be"
      f" integers [{len(images)}], one for each image"
    )
  else:
    names = classes.counted(path.name, labels)
  return _source(
    path.name, images, labels, names, size, channels, random_crop, others,
    values,
  )  # fmt: skip


def _source(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  names: tuple[str, ...],
  size: tuple[int, int] | None,
  channels: int | None,
  random_crop: bool,
  left_out: str = "",
  values: Values = BYTES,
) -> sources.Source:
  """The source of arrays in memory, resized and cropped as requested."""
  source = sources.in_memory(
    name, _refit(images, size, channels), labels, names, left_out, values
  )
  if not random_crop:
    return source

  def read(index: int, words: np.ndarray) -> tuple[np.ndarray, int]:
    image = pictures.refit(images[index], size, channels, words)
    return image, int(labels[index])

  return views.random_crops(source, read)


def _check_colour(path: Path, shape: tuple[int, ...]) -> None:
  """Raises for a single colour image, which looks like narrow grey ones."""
  if shape[2] in (3, 4) and min(shape[:2]) > 4:
    raise ValueError(
      f"{path} has images {list(shape)}, which look like one [H, W, C]: must"
      " be [N, H, W, C], save images[None]"
    )


def _check_axes(path: Path, shape: tuple[int, ...]) -> None:
  """Raises for images whose channels are not last, as in PyTorch and MATLAB.

  Images rarely have more than four channels. If another axis is that short, it
  is taken to be the channels; so is the first, if it is the shortest and the
  others are equal, like the sides of a square image.
  """
  if len(shape) != 4:
    if shape[1] <= 4 < shape[-1]:
      raise ValueError(
        f"{path} has images {list(shape)}, whose channels look to come first:"
        " they must come last, save np.moveaxis(images, 1, -1)"
      )
    return
  n, a, b, c = shape
  if a <= 4 < c or a < b == c:
    kind, order = "[N, C, H, W]", (0, 2, 3, 1)
  elif b <= 4 < c:
    kind, order = "[H, W, C, N]", (3, 0, 1, 2)
  else:
    return
  raise ValueError(
    f"{path} has images {[n, a, b, c]}, which look like {kind}: the channels"
    f" must come last, save images.transpose{order}"
  )


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None, str]:
  """Images and labels of a file, unchecked; the names of its other arrays."""
  if not path.is_file():
    raise ValueError(f"no file {path}: {sources.ACCEPTED}")
  try:
    # Pickles can run any code, so they are never loaded.
    if path.suffix.lower() == ".npy":
      # Not np.load, which would take a .npz under this name.
      return np.lib.format.open_memmap(path, mode="r"), None, ""
    with np.load(path, allow_pickle=False) as arrays:
      keys = list(arrays)
      image = next((key for key in _IMAGE_KEYS if key in keys), None)
      label = next((key for key in _LABEL_KEYS if key in keys), None)
      if image is not None:
        others = ", ".join(key for key in keys if key not in (image, label))
        labels = None if label is None else arrays[label]
        return arrays[image], labels, others
  except pictures.BROKEN as error:
    raise ValueError(
      f"cannot read {path}: it is damaged, or not written by np.save or"
      " np.savez, or holds Python objects, which are never loaded; save plain"
      " uint8 arrays"
    ) from error
  raise ValueError(
    f"{path} holds {keys}: name the images one of {list(_IMAGE_KEYS)}"
  )


def _refit(
  images: np.ndarray, size: tuple[int, int] | None, channels: int | None
) -> np.ndarray:
  if size in (None, images.shape[1:-1]) and channels in (
    None, images.shape[-1],
  ):  # fmt: skip
    return images
  return np.stack([pictures.refit(image, size, channels) for image in images])
