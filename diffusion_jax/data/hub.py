"""Data sets of the Hugging Face hub, by name."""

import importlib
from pathlib import Path
from typing import Any

from diffusion_jax.data import folders, sources, tables

PREFIX = "hf:"


def load(path: Path, split: str, how: folders.Decoding) -> sources.Source:
  """See ``loading.load``; downloads the data set the first time.

  Args:
    path: hf:OWNER/NAME, or hf:OWNER/NAME/CONFIG.
    split: As for ``datasets``, such as "test" or "train[:90%]".
    how: How to decode the images.

  Raises:
    ValueError: If ``datasets`` is missing, or has no such data set.
  """
  name = str(path).removeprefix(PREFIX)
  found = _downloaded(name, split)
  if found._indices is not None:
    found = found.flatten_indices()
  # Its name identifies it: its files may be anywhere.
  table = tables.of_arrow(
    f"{name} {split}", found.data.table, found.num_rows, Path()
  )
  return tables.of_tables(path, [table], how)


def _downloaded(name: str, split: str) -> Any:
  try:
    datasets: Any = importlib.import_module("datasets")
  except ImportError:
    raise ValueError(
      f"{PREFIX}{name} needs Hugging Face datasets: pip install -e '.[hf]'"
    ) from None
  owner, config = name, None
  if name.count("/") == 2 and name[0] not in "/.":
    owner, _, config = name.rpartition("/")
  try:
    return datasets.load_dataset(owner, config, split=split)
  except Exception as error:  # also of networks and of the data's own code
    raise ValueError(
      f"cannot load {PREFIX}{name}, split {split!r}: {sources.one_line(error)}"
    ) from error
