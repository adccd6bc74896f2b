"""Sources from arrays: digits, .npz and .npy files."""

from pathlib import Path

import numpy as np

from diffusion_jax.data import pictures, sources

_MAX_CLASSES = 2**20
_IMAGE_KEYS = ("images", "x", "arr_0")
_LABEL_KEYS = ("labels", "y", "arr_1")


def digits(
  size: tuple[int, int] | None, channels: int | None, random_crop: bool
) -> sources.Source:
  """The 1,797 digits of scikit-learn, 8 x 8; 0..16 there, 0..255 here."""
  from sklearn import datasets

  values, labels = datasets.load_digits(return_X_y=True)
  images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  names = tuple(str(digit) for digit in range(10))
  return _source("digits", images, labels, names, size, channels, random_crop)


def load(
  path: Path,
  size: tuple[int, int] | None,
  channels: int | None,
  random_crop: bool,
) -> sources.Source:
  """A source from a .npz or .npy file."""
  images, labels = _read_arrays(path)
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
    raise ValueError(
      f"{path} has images of {images.dtype} {list(images.shape)}: must be"
      " uint8 [N, H, W, C] or [N, H, W], 0 to 255; save floats in [-1, 1] as"
      " np.rint(127.5 * x + 127.5).astype(np.uint8)"
    )
  names: tuple[str, ...] = ()
  if labels is None:
    labels = np.zeros(len(images), np.int32)
  elif labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"{path} has labels of {labels.dtype} {list(labels.shape)}: must be"
      f" integers [{len(images)}], one for each image"
    )
  elif labels.min() < 0 or labels.max() >= _MAX_CLASSES:
    raise ValueError(
      f"{path} has labels from {labels.min()} to {labels.max()}: must count"
      f" from 0 and stay below {_MAX_CLASSES}"
    )
  else:
    names = tuple(str(label) for label in range(int(labels.max()) + 1))
  return _source(path.name, images, labels, names, size, channels, random_crop)


def _source(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  names: tuple[str, ...],
  size: tuple[int, int] | None,
  channels: int | None,
  random_crop: bool,
) -> sources.Source:
  """The pictures as they are asked for."""
  source = sources.in_memory(
    name, _refit(images, size, channels), labels, names
  )
  if not random_crop:
    return source

  def read(index: int, words: np.ndarray) -> tuple[np.ndarray, int]:
    image = pictures.refit(images[index], size, channels, words)
    return image, int(labels[index])

  return sources.random_crops(source, read)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
  """Images and labels of a file, unchecked."""
  if not path.is_file():
    raise ValueError(f"no file {path}: {sources.ACCEPTED}")
  try:
    # Pickles can run any code, so they are never loaded.
    if path.suffix.lower() == ".npy":
      return np.load(path, mmap_mode="r", allow_pickle=False), None
    with np.load(path, allow_pickle=False) as arrays:
      keys = list(arrays)
      image = next((key for key in _IMAGE_KEYS if key in keys), None)
      label = next((key for key in _LABEL_KEYS if key in keys), None)
      if image is not None:
        return arrays[image], None if label is None else arrays[label]
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
  if size in (None, images.shape[1:3]) and channels in (None, images.shape[3]):
    return images
  return np.stack([pictures.refit(image, size, channels) for image in images])
