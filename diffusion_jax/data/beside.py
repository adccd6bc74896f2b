"""Pictures beside pictures: masks and the like, to condition on.

What condition data a file holds follows from what it is: numbers of a .csv or
of an array [N], [N, n]; a text embedding of an array of floats [N, L, D], of
which the mean over the L tokens is kept; pictures of all else.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.data import sources, vectors, views
from diffusion_jax.data.loading import load


def is_vectors(path: Path) -> bool:
  """Whether a file holds numbers of each example, and not pictures.

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
    named: What to attach, by name; the columns of a .csv have their own.
    random_crop: As the data were loaded with.
    max_bytes: As the data were loaded with, of each.

  Returns:
    The same with ``vectors`` and ``pictures``.

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
          f" {sources.noun(source.image_shape)}s: condition on numbers instead"
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
  """The source with further pictures of each example.

  Where both come from files, pictures with the same path, but for its suffix,
  belong together, and there may be more of the further ones; else those of
  the same number do.

  Args:
    source: The data.
    pictures: By name, as high and wide as the data.

  Returns:
    The same, whose batches have them, too, cut and mirrored alike, with a
    fingerprint of all.

  Raises:
    ValueError: If one is missing, of another size, or its name is taken.
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
  """The other's pictures in the order of the source's examples."""
  if not (source.stems and other.stems):
    if len(other) != len(source):
      raise ValueError(
        f"{name} has {len(other):,} pictures, {source.name} {len(source):,}"
        " examples: one for each is needed, in their order"
      )
    return other
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
