"""Sources: random access to images and labels."""

import concurrent.futures
import dataclasses
import difflib
import functools
import hashlib
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import SupportsIndex

import numpy as np

from diffusion_jax import shapes
from diffusion_jax.data.values import BYTES, Values

MAX_BYTES = 2**31

ACCEPTED = (
  "give 'digits', a folder or .zip of pictures, a .npz or .npy of"
  " images, a .parquet, .arrow or .tar of pictures, 'hf:OWNER/NAME', or a TFDS"
  " name such as 'cifar10'"
)


class Unfit(ValueError):
  """Images that cannot be used as they are, but with an option of ``load``.

  The message does not name the option, since a program may not have it.

  Args:
    message: What is wrong.
    option: "size", "skip_broken" or "data_dir".
  """

  def __init__(self, message: str, option: str):
    super().__init__(visible(message))
    self.option = option


class Unreadable(Unfit):
  """An image cannot be read, perhaps long after its source was opened."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
  """Random access to images, the interface that ``batches`` needs.

  ``source[i]`` is {"image": [H, W, C], "label": int32 scalar}, for i in
  0..len(source)-1; the label is 0 if there are no classes. All images have one
  shape, and the dtype and units in ``values``. To write your own source, use
  ``ArraySource`` or ``LazySource``, or derive from this class and define
  ``__len__`` and ``gather``.

  Attributes:
    name: Its name in messages.
    image_shape: (H, W, C), or (L, C) for signals, (D, H, W, C) for volumes.
    class_names: One name per label; empty if unlabelled.
    fingerprint: Short hexadecimal digest of the contents, equal for equal
      data; for data read lazily a digest of what identifies them.
    labels: int32 [N]; None if they are only known with the images.
    left_out: A description of other files beside the images: ".txt (3)".
    values: The units of the images' numbers; by default bytes.
    vectors: Numbers of each example to condition on, float32 [N, n] by name,
      see ``vectors``.
    pictures: Further images of each example to condition on, by name, see
      ``beside``.
    stems: The path of each image's file, without its suffix; empty if there
      are no files.
  """

  name: str
  image_shape: tuple[int, ...]
  class_names: tuple[str, ...] = ()
  fingerprint: str = ""
  labels: np.ndarray | None = dataclasses.field(default=None, repr=False)
  left_out: str = ""
  values: Values = BYTES
  vectors: Mapping[str, np.ndarray] = dataclasses.field(
    default_factory=dict, repr=False
  )
  pictures: Mapping[str, "Source"] = dataclasses.field(
    default_factory=dict, repr=False
  )
  stems: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  @property
  def num_classes(self) -> int:
    """Number of classes; 0 if unlabelled."""
    return len(self.class_names)

  def __len__(self) -> int:
    """Number of pictures."""
    raise NotImplementedError

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Many examples at once, in new arrays.

    Args:
      indices: Integers [B], each in 0..len(self)-1.

    Returns:
      {"image": [B, H, W, C], "label": int32 [B]}.
    """
    raise NotImplementedError

  def floats(self, indices: np.ndarray) -> np.ndarray:
    """Many examples as a network takes them: float32 [B, H, W, C]."""
    return self.values.floats(self.gather(indices)["image"])

  def known(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The conditions besides the label.

    Args:
      indices: As for ``gather``.

    Returns:
      Vectors, float32 [B, n], and images, float32 [B, H, W, C], by name.
    """
    return {name: rows[indices] for name, rows in self.vectors.items()} | {
      name: other.floats(indices) for name, other in self.pictures.items()
    }

  @property
  def random_words(self) -> int:
    """How many random numbers ``visit`` takes for each example."""
    return 0

  def visit(
    self, indices: np.ndarray, words: np.ndarray
  ) -> dict[str, np.ndarray]:
    """``gather`` for training, where an example may differ each time.

    Args:
      indices: As for ``gather``.
      words: Random 64-bit numbers [B, random_words]; the result depends only on
        these and the indices.

    Returns:
      As ``gather``, whose examples are those for evaluation.
    """
    del words
    return self.gather(indices)

  def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
    """Example ``index``; negative counts from the end, as in a list."""
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f"index {index} of a source with {len(self)} examples")
    one = self.gather(np.array([index % len(self)]))
    return {key: values[0] for key, values in one.items()}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Every example in order."""
    return (self[index] for index in range(len(self)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(Source):
  """A source in memory.

  Attributes:
    images: [N, H, W, C].
    labels: int32 [N].
  """

  images: np.ndarray = dataclasses.field(repr=False)
  labels: np.ndarray = dataclasses.field(repr=False)

  def __len__(self) -> int:
    """Number of pictures."""
    return len(self.images)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    # asarray: a memory-mapped file would otherwise give a np.memmap.
    return {
      "image": np.asarray(self.images[indices]),
      "label": self.labels[indices],
    }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LazySource(Source):
  """A source that decodes an example at its first use.

  Attributes:
    read: Index -> (image, label); called from several threads at once.
    length: Number of pictures.
    max_bytes: Decoded pictures are kept for the next epoch if all of them
      need no more memory than this.
  """

  read: Callable[[int], tuple[np.ndarray, int]] = dataclasses.field(repr=False)
  length: int
  max_bytes: int = MAX_BYTES

  @functools.cached_property
  def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count())

  @functools.cached_property
  def _kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Images, labels and which of them are decoded; None if too large."""
    shape = (self.length, *self.image_shape)
    if num_bytes(shape, self.values) > self.max_bytes:
      return None
    # np.empty takes no memory until it is written to.
    images = np.empty(shape, self.values.dtype)
    labels = np.empty(self.length, np.int32)
    return images, labels, np.zeros(self.length, bool)

  def __len__(self) -> int:
    """Number of pictures."""
    return self.length

  def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    read = self._pool.map(self.read, indices.tolist())
    images, labels = zip(*read, strict=True)
    return np.stack(images), np.asarray(labels, np.int32)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    if self._kept is None:
      image, label = self._read(indices)
      return {"image": image, "label": label}
    images, labels, known = self._kept
    missing = np.unique(indices[~known[indices]])
    if missing.size:
      images[missing], labels[missing] = self._read(missing)
      # Only now: another thread may be reading it.
      known[missing] = True
    return {"image": images[indices], "label": labels[indices]}


def fingerprint(*parts: object) -> str:
  """16 hexadecimal digits of SHA-256 over arrays (their bytes) and strings."""
  digest = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      digest.update(str((part.shape, part.dtype.str)).encode())
      digest.update(np.ascontiguousarray(part).data)
    else:
      digest.update(f"{part}\n".encode())
  return digest.hexdigest()[:16]


def num_bytes(shape: Sequence[int], values: Values) -> float:
  """The memory of arrays of these values, in bytes."""
  return np.prod(shape, dtype=float) * np.dtype(values.dtype).itemsize


def in_memory(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  class_names: tuple[str, ...],
  left_out: str = "",
  values: Values = BYTES,
  stems: tuple[str, ...] = (),
) -> ArraySource:
  """An ``ArraySource`` with its fingerprint."""
  labels = labels.astype(np.int32)
  meaning = () if values == BYTES else (values,)
  return ArraySource(
    name=name,
    image_shape=images.shape[1:],
    class_names=class_names,
    fingerprint=fingerprint(images, labels, *class_names, *meaning),
    images=images,
    labels=labels,
    left_out=left_out,
    values=values,
    stems=stems,
  )


def summary(source: Source) -> str:
  """A summary of a source in one line: images, classes, what was left out.

  >>> from diffusion_jax import data
  >>> data.summary(data.load("digits"))[:63]
  'digits: 1,797 images of 8 x 8 x 1; 10 classes: 0 (178), 1 (182)'
  """
  shape = shapes.by(source.image_shape)
  word = shapes.noun(source.image_shape, len(source))
  text = f"{source.name}: {len(source):,} {word} of {shape}"
  text += "" if source.values == BYTES else f", {source.values}"
  names: list[str] = list(source.class_names)
  if names:
    if source.labels is not None:
      counts = [np.sum(source.labels == k) for k in range(len(names))]
      names = [f"{a} ({n:,})" for a, n in zip(names, counts, strict=True)]
    word = "class" if len(names) == 1 else "classes"
    text += f"; {len(names):,} {word}: {some(names, 10)}"
  given = [*source.vectors, *source.pictures]
  text += f"; with {', '.join(given)}" if given else ""
  return text + (f"; left out: {source.left_out}" if source.left_out else "")


def some(names: Sequence[str], most: int = 5) -> str:
  """Names in a row, and how many more there are.

  >>> some(["a", "b", "c"], 2)
  'a, b and 1 more'
  """
  more = f" and {len(names) - most:,} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def one_line(error: BaseException) -> str:
  """The message of an error as one line of at most 400 characters."""
  text = " ".join(str(error).split())[:400]
  return visible(text) or type(error).__name__


# Characters that move a cursor or begin a line: C0, DEL, C1, two of Unicode.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def visible(text: object) -> str:
  r"""A text, such as a path, in which each control character is escaped.

  >>> print(visible("a\nb"))
  a\nb
  """
  return CONTROL.sub(
    lambda found: found[0].encode("unicode_escape").decode(), str(text)
  )


def unknown(name: str, known: list[str]) -> ValueError:
  """The error for an unknown name."""
  near = difflib.get_close_matches(name, ["digits", *known], n=3, cutoff=0.6)
  names = " or ".join(repr(one) for one in near)
  hint = f", did you mean {names}?" if near else ":"
  return ValueError(f"no data set or path {name!r}{hint} {ACCEPTED}")
