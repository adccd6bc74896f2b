"""Vectors: numbers of each example, from a .csv or .npy, to condition on."""

import csv
import dataclasses
import warnings
from pathlib import Path

import numpy as np

from diffusion_jax.data import sources

# Names that a batch uses already, and that of the label among conditions.
TAKEN = ("image", "label", "augment", "class")


def read(path: str | Path) -> dict[str, np.ndarray]:
  """The numbers of a file, a row for each example in the data's order.

  Args:
    path: A .csv whose first line names its columns, each of which becomes a
      part of one number; or a .npy [N] or [N, n], which becomes one part with
      the file's name. From [N, L, D], a text embedding of L tokens, the mean
      over tokens is kept: the order of words is lost.

  Returns:
    float32 [N, n], by name.

  Raises:
    ValueError: If the file cannot be read, or has values that are not finite.
  """
  path = Path(path).expanduser()
  if not path.is_file() or path.suffix.lower() not in (".csv", ".npy"):
    raise ValueError(f"no vectors in {path}: give a .csv or a .npy file")
  try:
    found = _csv(path) if path.suffix.lower() == ".csv" else _npy(path)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"cannot read vectors of {path}: {sources.one_line(error)}"
    ) from error
  for name, numbers in found.items():
    wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if wrong.size:
      raise ValueError(
        f"{path}: {name} of example {wrong[0]:,} is no finite number"
        f" ({wrong.size:,} such examples): fill it in or leave the example out"
      )
  return found


def _csv(path: Path) -> dict[str, np.ndarray]:
  with path.open(encoding="utf-8-sig", newline="") as file:
    lines = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
  names, rows = (lines or [[]])[0], lines[1:]
  if len({*names, ""}) <= len(names) or any(map(_is_number, names)):
    raise ValueError(
      f"its first line is {names}, and must give each column a name of its own"
    )
  if not rows:
    raise ValueError("below its first line there are no numbers")
  for k, row in enumerate(rows):
    if len(row) != len(names):
      raise ValueError(
        f"example {k:,} has {len(row)} numbers, its first line {len(names)}"
        " names"
      )
    for name, cell in zip(names, row, strict=True):
      if not _is_number(cell):
        raise ValueError(f"{name} of example {k:,} is {cell!r}, no number")
  columns = np.array(rows, np.float64).T[..., None]
  return {
    name: _single(name, column)
    for name, column in zip(names, columns, strict=True)
  }


def _single(name: str, numbers: np.ndarray) -> np.ndarray:
  """As float32; warns if differences are lost."""
  rounded = _rounded(numbers)
  if (rounded == numbers).all():  # as of float32, which need not be sorted
    return rounded
  before, after = len(np.unique(numbers)), len(np.unique(rounded))
  if after < 0.99 * before:
    warnings.warn(
      f"{name} has {before:,} different numbers, and {after:,} in 32 bits:"
      " subtract what they have in common",
      stacklevel=5,
    )
  return rounded


def _rounded(numbers: np.ndarray) -> np.ndarray:
  with np.errstate(over="ignore"):  # what becomes infinite is refused
    return numbers.astype(np.float32)


def _is_number(cell: str) -> bool:
  try:
    float(cell)
  except ValueError:
    return False
  return True


def _npy(path: Path) -> dict[str, np.ndarray]:
  array = np.load(path, allow_pickle=False)
  fits = array.dtype.kind in "iuf" and array.ndim in (1, 2, 3)
  if not fits or 0 in array.shape:
    raise ValueError(
      f"it is {array.dtype} {list(array.shape)}, must be [N, n], or [N, L, D]"
      " of tokens"
    )
  if array.ndim == 3:
    return {path.stem: _rounded(array.mean(axis=1, dtype=np.float64))}
  return {path.stem: _single(path.stem, array.reshape(len(array), -1))}


def attach(
  source: sources.Source, numbers: dict[str, np.ndarray]
) -> sources.Source:
  """The source with numbers of each example.

  Args:
    source: The data.
    numbers: [N, n] by name, a row for each example.

  Returns:
    The source, whose batches have these numbers too, with a fingerprint of all.

  Raises:
    ValueError: If there are more or fewer rows than examples, or a name is
      taken.
  """
  for name, array in numbers.items():
    if name in (*TAKEN, *source.vectors, *source.pictures):
      raise ValueError(f"a vector cannot be named {name!r}: rename it")
    if array.ndim != 2 or not np.isfinite(array).all():
      raise ValueError(
        f"{name} is {list(array.shape)}: must be finite numbers [N, n]"
      )
    if len(array) != len(source):
      raise ValueError(
        f"{name} has {len(array):,} rows, {source.name} {len(source):,}"
        " examples: one row for each is needed, in their order"
      )
  parts = [part for pair in sorted(numbers.items()) for part in pair]
  return dataclasses.replace(
    source,
    vectors={**source.vectors, **numbers},
    fingerprint=sources.fingerprint(source.fingerprint, *parts),
  )
