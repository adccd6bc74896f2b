"""Images for each example to condition on, such as masks.

The type of a file decides what it holds: a .csv or an array [N], [N, n] has
numbers; an array of floats [N, L, D] a text embedding, of which the mean over
the L tokens is kept; anything else images.
"""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax import shapes
from diffusion_jax.data import sources, vectors, views
from diffusion_jax.data.loading import load


def is_vectors(path: Path) -> bool:
  """Whether a file holds numbers of each example, not images.

  Raises:
    ValueError: If it is an .npy that cannot be read.
  """
  suffix = path.suffix.lower()
  if suffix != ".npy" or not path.is_file():
    return suffix == ".csv"
  try:
    array = np.lib.format.open_memmap(path, mode="r")
  except (OSError, ValueError) as error:
    raise ValueError(
      f"cannot read {path}: {sources.one_line(error)}; save it by np.save"
    ) from error
  return array.ndim < 3 or (array.ndim == 3 and array.dtype.kind == "f")


def attach_named(
  source: sources.Source,
  named: Mapping[str, Path],
  *,
  random_crop: bool = False,
  max_bytes: int = sources.MAX_BYTES,
) -> sources.Source:
  """The source with the conditions of some files.

  Args:
    source: The data.
    named: Files by name; the columns of a .csv have their own names.
    random_crop: As for the data.
    max_bytes: As for the data, for each file.

  Returns:
    The source with ``vectors`` and ``pictures``.

  Raises:
    ValueError: If a file cannot be read, or does not fit the data.
  """
  numbers: dict[str, np.ndarray] = {}
  pictures: dict[str, sources.Source] = {}
  for name, path in named.items():
    if is_vectors(path):
      found = vectors.read(path)
      if path.suffix.lower() == ".npy":
        found = {name: next(iter(found.values()))}
    else:
      if len(source.image_shape) != 3:
        raise ValueError(
          f"{path}: pictures lie beside pictures, and {source.name} are"
          f" {shapes.noun(source.image_shape)}s: condition on numbers instead"
        )
      found = {}
      pictures[name] = load(
        path, size=source.image_shape[:2], random_crop=random_crop,
        max_bytes=max_bytes,
      )  # fmt: skip
    twice = found.keys() & numbers.keys()
    if twice:
      raise ValueError(f"two conditions are named {min(twice)}: rename one")
    numbers |= found
  source = vectors.attach(source, numbers) if numbers else source
  return attach(source, pictures) if pictures else source


def attach(
  source: sources.Source, pictures: Mapping[str, sources.Source]
) -> sources.Source:
  """The source with further images of each example.

  If both come from files, images with the same path without its suffix belong
  together, and there may be more of the further ones; otherwise those with the
  same index do.

  Args:
    source: The data.
    pictures: Sources of images by name, of the same size as the data.

  Returns:
    The source, whose batches have these images too, cropped and mirrored alike,
    with a fingerprint of all.

  Raises:
    ValueError: If one is missing, has another size, or its name is taken.
  """
  found, prints = {}, []
  for name, other in sorted(pictures.items()):
    if name in (*vectors.TAKEN, *source.vectors, *source.pictures):
      raise ValueError(f"a picture cannot be named {name!r}: rename it")
    height, width, _ = other.image_shape
    if (height, width) != tuple(source.image_shape[:2]):
      raise ValueError(
        f"{name} has pictures of {height} x {width}, {source.name} of"
        f" {source.image_shape[0]} x {source.image_shape[1]}: make them one"
        " size"
      )
    if other.random_words != source.random_words:
      raise ValueError(
        f"either {name} or {source.name} is cut anew each time, the other not:"
        " load both with random_crop or neither"
      )
    found[name] = _in_order(source, name, other)
    prints += [name, found[name].fingerprint]
  return dataclasses.replace(
    source,
    pictures={**source.pictures, **found},
    fingerprint=sources.fingerprint(source.fingerprint, *prints),
  )


def _in_order(
  source: sources.Source, name: str, other: sources.Source
) -> sources.Source:
  """The other's images in the order of the source's examples."""
  if not (source.stems and other.stems):
    if len(other) != len(source):
      raise ValueError(
        f"{name} has {len(other):,} pictures, {source.name} {len(source):,}"
        " examples: one for each is needed, in their order"
      )
    return other
  for one in (source, other):
    stem, count = collections.Counter(one.stems).most_common(1)[0]
    if count > 1:
      raise ValueError(
        f"{one.name} has {count} pictures named {stem}, and names tell what of"
        f" {name} belongs to each: rename or remove one"
      )
  number = {stem: k for k, stem in enumerate(other.stems)}
  missing = [stem for stem in source.stems if stem not in number]
  if missing:
    raise ValueError(
      f"{name} has no picture for {len(missing):,} of {len(source):,} examples,"
      f" such as {missing[0]}: give each one of the same name"
    )
  if other.stems == source.stems:
    return other
  chosen = np.array([number[stem] for stem in source.stems])
  return views.part(other, chosen, other.name)
