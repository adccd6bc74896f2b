"""Sources made from others: random crops, a subset, bytes to show."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np

from diffusion_jax.data import sources
from diffusion_jax.data.pictures import RANDOM_WORDS
from diffusion_jax.data.sources import Source
from diffusion_jax.data.values import BYTES
from diffusion_jax.images import to_uint8

_HALVES = ("without", "only")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RandomCrops(Source):
  """A source whose examples are cropped at random in every visit of training.

  Attributes:
    whole: The source, with the examples for evaluation.
    read: (Index, words) -> (image, label); called from several threads at
      once.
  """

  whole: Source = dataclasses.field(repr=False)
  read: Callable[[int, np.ndarray], tuple[np.ndarray, int]] = dataclasses.field(
    repr=False
  )

  @functools.cached_property
  def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count())

  def __len__(self) -> int:
    """Number of pictures."""
    return len(self.whole)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    return self.whole.gather(indices)

  @property
  def random_words(self) -> int:
    """See ``Source.random_words``."""
    return RANDOM_WORDS

  def visit(
    self, indices: np.ndarray, words: np.ndarray
  ) -> dict[str, np.ndarray]:
    """See ``Source.visit``."""
    read = self._pool.map(self.read, indices.tolist(), words)
    images, labels = zip(*read, strict=True)
    return {"image": np.stack(images), "label": np.asarray(labels, np.int32)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part(Source):
  """Some examples of a source.

  Attributes:
    whole: The source.
    chosen: Which examples, by their indices in it.
  """

  whole: Source = dataclasses.field(repr=False)
  chosen: np.ndarray = dataclasses.field(repr=False)

  def __len__(self) -> int:
    """Number of pictures."""
    return len(self.chosen)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    return self.whole.gather(self.chosen[indices])

  @property
  def random_words(self) -> int:
    """See ``Source.random_words``."""
    return self.whole.random_words

  def visit(
    self, indices: np.ndarray, words: np.ndarray
  ) -> dict[str, np.ndarray]:
    """See ``Source.visit``."""
    return self.whole.visit(self.chosen[indices], words)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shown(Source):
  """A source as images of bytes, to look at; see ``shown``.

  Attributes:
    whole: The source.
  """

  whole: Source = dataclasses.field(repr=False)

  def __len__(self) -> int:
    """Number of pictures."""
    return len(self.whole)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    examples = self.whole.gather(indices)
    floats = self.whole.values.floats(examples["image"])
    return {**examples, "image": to_uint8(floats)}


def shown(source: Source) -> Source:
  """The source as images of bytes: [-1, 1] becomes 0 to 255."""
  if source.values == BYTES:
    return source
  return Shown(
    name=source.name,
    image_shape=source.image_shape,
    class_names=source.class_names,
    fingerprint=source.fingerprint,
    labels=source.labels,
    whole=source,
  )


def random_crops(
  whole: Source, read: Callable[[int, np.ndarray], tuple[np.ndarray, int]]
) -> RandomCrops:
  """``RandomCrops`` of a source, with its name and fingerprint."""
  return RandomCrops(
    name=whole.name,
    image_shape=whole.image_shape,
    class_names=whole.class_names,
    fingerprint=whole.fingerprint,
    labels=whole.labels,
    left_out=whole.left_out,
    values=whole.values,
    vectors=whole.vectors,
    pictures=whole.pictures,
    stems=whole.stems,
    whole=whole,
    read=read,
  )


def hold_out(source: Source, every: int) -> tuple[Source, Source]:
  """Splits a source in two: without, and only, every n-th example.

  Images in folders come class by class, so each class gives its share.

  Args:
    source: The whole.
    every: n, at least 2.

  Returns:
    The larger and the smaller part.

  Raises:
    ValueError: If a part would be empty.
  """
  if not 2 <= every <= len(source):
    raise ValueError(
      f"held_out={every} must be 2 or more, and at most the {len(source)} "
      "examples"
    )
  last = np.arange(len(source)) % every == every - 1

  names = (f"{source.name} ({words} 1 of {every})" for words in _HALVES)
  without, only = (
    part(source, np.flatnonzero(chosen), name)
    for chosen, name in zip((~last, last), names, strict=True)
  )
  return without, only


def subset(source: Source, num: int) -> Source:
  """``num`` examples at random, always the same; the source itself if all.

  The first ones would be of one class, if images come class by class, and every
  n-th, if classes take turns.
  """
  if num >= len(source):
    return source
  chosen = np.random.default_rng(0).choice(len(source), num, replace=False)
  return part(source, np.sort(chosen), source.name)


def part(source: Source, chosen: np.ndarray, name: str) -> Part:
  """Some examples of a source, with their labels and conditions.

  Args:
    source: The whole.
    chosen: Their indices in it.
    name: Name of the part.

  Returns:
    The part, with a fingerprint of both.
  """
  return Part(
    name=name,
    image_shape=source.image_shape,
    class_names=source.class_names,
    fingerprint=sources.fingerprint(source.fingerprint, chosen),
    labels=None if source.labels is None else source.labels[chosen],
    values=source.values,
    vectors={k: v[chosen] for k, v in source.vectors.items()},
    pictures={k: part(v, chosen, name) for k, v in source.pictures.items()},
    stems=tuple(source.stems[k] for k in chosen) if source.stems else (),
    whole=source,
    chosen=chosen,
  )
