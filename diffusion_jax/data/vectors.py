"""Vectors: numbers of each example, from a .csv or .npy, to condition on."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_jax.data import sources

# Names that a batch uses already.
TAKEN = ("image", "label")


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
  with path.open(encoding="utf-8-sig") as file:
    names = [name.strip() for name in file.readline().split(",")]
    rows = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float32)
  if len(names) != rows.shape[1] or len({*names, ""}) <= len(names):
    raise ValueError(
      f"the first line names {names}, the others have {rows.shape[1]} numbers;"
      " each column needs a name of its own"
    )
  return {name: rows[:, k : k + 1] for k, name in enumerate(names)}


def _npy(path: Path) -> dict[str, np.ndarray]:
  array = np.load(path, allow_pickle=False)
  if array.ndim not in (1, 2, 3) or array.dtype.kind not in "iuf":
    raise ValueError(
      f"it is {array.dtype} {list(array.shape)}, must be [N, n], or [N, L, D]"
      " of tokens"
    )
  if array.ndim == 3:
    array = array.mean(axis=1, dtype=np.float64)
  return {path.stem: array.reshape(len(array), -1).astype(np.float32)}


def attach(
  source: sources.Source, numbers: dict[str, np.ndarray]
) -> sources.Source:
  """The source with numbers of each example.

  Args:
    source: The data.
    numbers: [N, n] by name, a row for each example.

  Returns:
    The source, whose batches have the numbers, with a fingerprint of both.

  Raises:
    ValueError: If there are more or fewer rows than examples, or a name is
      taken.
  """
  for name, array in numbers.items():
    if name in TAKEN:
      raise ValueError(f"a vector cannot be named {name!r}: rename it")
    if len(array) != len(source):
      raise ValueError(
        f"{name} has {len(array):,} rows, {source.name} {len(source):,}"
        " examples: one row for each is needed, in their order"
      )
  parts = [part for pair in sorted(numbers.items()) for part in pair]
  return dataclasses.replace(
    source,
    vectors=numbers,
    fingerprint=sources.fingerprint(source.fingerprint, *parts),
  )
