"""``load``: from a name to a source."""

import numbers
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.data import arrays, folders, pictures, sources, tfds

# What 12 bits come to in a file of 16: 4095 / 257.
DARK = 16

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
  data_dir: str | os.PathLike[str] | None = None,
  max_bytes: int = sources.MAX_BYTES,
) -> sources.Source:
  """A source by its name.

  Args:
    name: One of
      "digits", scikit-learn's 1,797 pictures of 8 x 8 x 1, which need no
      download; the path of a folder of pictures or of a .zip of one, in any
      format that Pillow decodes, with a sub-folder for each class if there are
      any; the path of a .npz ("images", "labels") or .npy of uint8 images
      [N, H, W, C] or [N, H, W]; the name of a TFDS data set, such as
      "cifar10", "mnist:3.*.*" or, if a folder in the working directory has
      the same name, "tfds:cifar10".
    split: Part of a TFDS data set, such as "test" or "train[:90%]". All else
      is one part, "train".
    size: Side, or (H, W), to which pictures are resized and cut; None leaves
      them as stored, and then all must have one size. See ``pictures.crop``.
    channels: 1 or 3 to make all pictures grey or colour; None leaves them as
      stored, with grey ones made colour where both kinds are mixed.
    skip_broken: Leave out pictures that cannot be read, with a warning,
      instead of failing at the first; also links that lead nowhere, and
      folders that cannot be listed.
    random_crop: In training, cut each picture anew each time it is visited,
      see ``pictures.random_crop``; needs a size. What is measured on, as
      ``source[i]`` and ``gather`` give it, stays the centre.
    data_dir: Where TFDS keeps its data sets; None is its own default.
    max_bytes: Pictures that need more memory than this when decoded are
      decoded anew each time they are read.

  Returns:
    The source.

  Raises:
    ValueError: For any name, file or option that does not fit; in one line,
      with what to do. ``Unfit`` names the option that would help.
  """
  source = _load(
    name, split, size, channels, skip_broken, random_crop, data_dir, max_bytes
  )
  _check_brightness(source)
  return source


def _load(
  name: str | os.PathLike[str],
  split: str,
  size: int | tuple[int, int] | None,
  channels: int | None,
  skip_broken: bool,
  random_crop: bool,
  data_dir: str | os.PathLike[str] | None,
  max_bytes: int,
) -> sources.Source:
  """``load``, by the kind of name."""
  text = os.path.expanduser(os.fspath(name))
  if not text.strip():  # as a path it would be the working directory
    raise ValueError(f"the name of the data is empty: {sources.ACCEPTED}")
  path = Path(text)
  shape = _pair(size)
  if channels not in (None, 1, 3):
    raise ValueError(f"channels is {channels!r}: must be 1, 3 or None")
  if random_crop and shape is None:
    raise ValueError(
      "random_crop cuts pictures to a size, and none is given; set size, such"
      " as size=64"
    )
  tfds_name = text.removeprefix("tfds:")
  is_file = path.suffix.lower() in (".zip", ".npz", ".npy")
  if tfds_name != text or not (
    text == "digits" or is_file or path.is_dir() or path.is_file()
  ):
    return tfds.load(
      tfds_name, split, shape, channels, random_crop, data_dir, max_bytes
    )

  if split != "train":
    raise ValueError(
      f"split is {split!r}, but {text} is one part: use split='train'"
    )
  if text == "digits":
    if path.is_dir():
      warnings.warn(
        "'digits' are those of scikit-learn; the folder of that name is"
        " './digits'",
        stacklevel=3,
      )
    return arrays.digits(shape, channels, random_crop)
  if path.is_dir() or path.suffix.lower() == ".zip":
    return folders.load(
      path, shape, channels, skip_broken, random_crop, max_bytes
    )
  if not is_file:
    raise ValueError(
      f"{text} is a file of a kind that cannot be read: {sources.ACCEPTED}"
    )
  return arrays.load(path, shape, channels, random_crop)


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
  """Warns of pictures that are nearly black, of a few where they are lazy."""
  if isinstance(source, sources.ArraySource):
    images = source.images
  else:
    indices = np.linspace(0, len(source) - 1, min(len(source), 16), dtype=int)
    try:
      images = source.gather(indices)["image"]
    except pictures.BROKEN:  # to be said when it is needed
      return
  if images.max() <= DARK:
    warnings.warn(
      f"{source.name}: no value exceeds {images.max()} of 255, so the pictures"
      " are nearly black; if they are 12-bit data in 16-bit files, or masks,"
      " scale them to the full range",
      stacklevel=3,
    )
