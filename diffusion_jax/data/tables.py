"""Images in tables: .parquet and .arrow files, as Hugging Face writes them.

One column has the images, as bytes or as {"bytes", "path"}; another may have
their classes. An .arrow file is mapped from disk. A .parquet file is read in
whole groups of rows, which is fast in order and slow at random: prepare a cache
of data that do not fit in memory.
"""

import functools
import io
import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from diffusion_jax.data import classes, folders, sources
from diffusion_jax.data.files import File

SUFFIXES = (".parquet", ".arrow")
# Written by datasets.save_to_disk.
_SAVED = ("state.json", "dataset_info.json")
_SAVED_SPLITS = "dataset_dict.json"
# Words that a file's name begins with, as on the Hugging Face hub.
_SPLITS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}
_GROUPS = 16  # of a .parquet file that stay in memory


class Table(NamedTuple):
  """One table: a file, or part of one.

  Attributes:
    name: Its name in messages.
    num_bytes: Size of the file; with the name it identifies the table.
    schema: The pyarrow schema.
    rows: The number of rows.
    column: ``name -> column``.
    cell: ``(name, row) -> value``.
    folder: The folder to which its paths are relative.
  """

  name: str
  num_bytes: int
  schema: Any
  rows: int
  column: Callable[[str], Any]
  cell: Callable[[str, int], Any]
  folder: Path


def are_in(path: Path) -> bool:
  """Whether a folder holds tables, not images."""
  return (path / _SAVED_SPLITS).is_file() or bool(_listed(path))


def load(path: Path, split: str, how: folders.Decoding) -> sources.Source:
  """See ``loading.load``; the rows in the order of their files."""
  needs_pyarrow(str(path))
  return of_tables(path, [_open(file) for file in _files(path, split)], how)


def needs_pyarrow(name: str) -> None:
  """Checks that pyarrow is installed.

  Raises:
    ValueError: If not; says what to install.
  """
  try:
    import pyarrow.parquet  # noqa: F401
  except ImportError:
    raise ValueError(
      f"{name} needs pyarrow: pip install -e '.[parquet]'"
    ) from None


def of_tables(
  path: Path, tables: Sequence[Table], how: folders.Decoding
) -> sources.Source:
  """A source of the rows of tables with the same columns."""
  tables = [table for table in tables if table.rows]
  if not tables:
    raise ValueError(f"no pictures in {path}: its tables have no rows")
  schema = tables[0].schema
  image, label, names = columns(str(path), schema)
  for table in tables[1:]:
    if columns(str(path), table.schema) != (image, label, names):
      raise ValueError(
        f"{tables[0].name} and {table.name} in {path} have different columns:"
        " name one of them"
      )
  labels, names = _labels(path, tables, label, names)
  files = [
    File(
      PurePosixPath(table.name, str(row)),
      functools.partial(_picture, table, image, row),
      table.num_bytes,
    )
    for table in tables
    for row in range(table.rows)
  ]
  files = [
    file._replace(label=int(k)) for file, k in zip(files, labels, strict=True)
  ]
  others = [name for name in schema.names if name not in (image, label)]
  left_out = sources.visible(
    f"columns {sources.some(others)}" if others else ""
  )
  return folders.of_files(path, files, names, left_out, how)


def columns(
  where: str, schema: Any
) -> tuple[str, str | None, tuple[str, ...] | None]:
  """The columns of images and classes, and the names of the classes.

  Args:
    where: The data, for errors.
    schema: The pyarrow schema, with Hugging Face's metadata, if any.

  Raises:
    ValueError: If there is no column of images, or several.
  """
  features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
  features = features.get("info", {}).get("features", {})
  images = [f.name for f in schema if _has_bytes(f.type)]
  image = next((name for name in ("image", "img") if name in images), None)
  if image is None and len(images) != 1:
    kinds = ", ".join(f"{field.name} ({field.type})" for field in schema)
    kinds = sources.visible(kinds)
    raise ValueError(
      f"{where} has the columns {kinds[:200]}: one must hold pictures, as bytes"
      ' or {"bytes", "path"}, named image if there are several'
    )
  named = [
    name
    for name, one in features.items()
    if isinstance(one, dict) and one.get("_type") == "ClassLabel"
  ]
  label = "label" if "label" in schema.names else None
  if label is None and len(named) == 1:
    label = named[0]
  names = features[label]["names"] if label in named else None
  return image or images[0], label, None if names is None else tuple(names)


def _has_bytes(kind: Any) -> bool:
  import pyarrow as pa

  if pa.types.is_struct(kind):
    inside = [kind.field(k) for k in range(kind.num_fields)]
    return any(f.name == "bytes" and _has_bytes(f.type) for f in inside)
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _labels(path, tables, label, names) -> tuple[np.ndarray, tuple[str, ...]]:
  if label is None:
    return np.zeros(sum(table.rows for table in tables), np.int32), ()
  stored = [one for table in tables for one in table.column(label).to_pylist()]
  wrong = next((x for x in stored if not isinstance(x, int | str | None)), None)
  if wrong is not None:
    raise ValueError(
      f"{path} has a {label} of {type(wrong).__name__}: must be an integer or a"
      " name for each picture"
    )
  if names is None or None in stored:
    return classes.of(str(path), stored)
  labels = np.array(stored, np.int32)
  return labels, classes.named(str(path), labels, names)


def _picture(table: Table, image: str, row: int) -> IO[bytes]:
  """The file of an image, in the table or beside it."""
  cell = table.cell(image, row)
  if isinstance(cell, dict):
    data, path = cell.get("bytes"), cell.get("path")
    if data is None and path:
      return (table.folder / path).open("rb")
    cell = data
  if not cell:
    raise ValueError("it is empty")
  return io.BytesIO(cell)


# ------------------------------------------------------------------- files


def _listed(folder: Path) -> list[Path]:
  """The tables of a folder, or of its data/, as in a clone from the hub."""
  for inside in (folder, folder / "data"):
    if not inside.is_dir():
      continue
    found = sorted(
      f
      for f in inside.iterdir()
      # Beside images, metadata.parquet has their captions.
      if f.suffix.lower() in SUFFIXES and f.stem.lower() != "metadata"
    )
    if found:
      return found
  return []


def _files(path: Path, split: str) -> list[Path]:
  """The files of a split.

  Raises:
    ValueError: If there is no such file or split.
  """
  if path.suffix.lower() in SUFFIXES and not path.is_dir():
    if not path.is_file():
      raise ValueError(f"no file {path}: {sources.ACCEPTED}")
    return _of_split(path, split, {"train": [path]})
  if (path / _SAVED_SPLITS).is_file():
    known = json.loads((path / _SAVED_SPLITS).read_text())["splits"]
    return _of_split(path, split, {n: _saved(path / n) for n in known})
  if all((path / name).is_file() for name in _SAVED):
    return _of_split(path, split, {"train": _saved(path)})
  listed = _listed(path)
  by_split: dict[str, list[Path]] = {}
  for file in listed:
    word = re.split(r"[-_. ]", file.stem.lower())[0]
    of = next((n for n, words in _SPLITS.items() if word in words), "")
    by_split.setdefault(of, []).append(file)
  if by_split.keys() <= {"", "train"}:  # no name says that it is another part
    by_split = {"train": listed}
  if "" in by_split:
    known = ", ".join(name for name in by_split if name)
    raise ValueError(
      f"{path} has {by_split[''][0].name} beside tables of {known}: begin its"
      " name with its split, as in train-0.parquet, or move it away"
    )
  return _of_split(path, split, by_split)


def _of_split(path: Path, split: str, known: dict[str, list[Path]]):
  if split not in known:
    raise ValueError(
      f"split is {split!r}, but {path} has {', '.join(known)}: use one of these"
    )
  return known[split]


def _saved(folder: Path) -> list[Path]:
  """The files of a data set that was saved to disk, in their order."""
  state = json.loads((folder / _SAVED[0]).read_text())
  return [folder / one["filename"] for one in state["_data_files"]]


def _open(path: Path) -> Table:
  """A file as a table.

  Raises:
    ValueError: If it is damaged.
  """
  import pyarrow as pa

  try:
    is_parquet = path.suffix.lower() == ".parquet"
    return _parquet(path) if is_parquet else _arrow(path)
  except (pa.ArrowException, OSError) as error:
    raise ValueError(
      f"cannot read {path}: {sources.one_line(error)}; it is damaged or no"
      f" {path.suffix}, make or download it again"
    ) from error


def _arrow(path: Path) -> Table:
  import pyarrow as pa

  file = pa.memory_map(str(path))
  try:
    table = pa.ipc.open_stream(file).read_all()
  except pa.ArrowInvalid:
    file.seek(0)
    table = pa.ipc.open_file(file).read_all()
  return of_arrow(path.name, table, path.stat().st_size, path.parent)


def of_arrow(name: str, table: Any, num_bytes: int, folder: Path) -> Table:
  """A table of pyarrow."""
  return Table(
    name,
    num_bytes,
    table.schema,
    table.num_rows,
    table.column,
    lambda column, row: table.column(column)[row].as_py(),
    folder,
  )


def _parquet(path: Path) -> Table:
  from pyarrow import parquet

  file = parquet.ParquetFile(path)
  kinds = [
    file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)
  ]
  starts = np.cumsum([0, *kinds])
  lock = threading.Lock()

  @functools.lru_cache(maxsize=_GROUPS)
  def group(column: str, k: int) -> Any:
    return file.read_row_group(k, columns=[column]).column(column)

  def cell(column: str, row: int) -> Any:
    k = int(np.searchsorted(starts, row, side="right")) - 1
    with lock:
      found = group(column, k)
    return found[row - int(starts[k])].as_py()

  return Table(
    path.name,
    path.stat().st_size,
    file.schema_arrow,
    file.metadata.num_rows,
    lambda column: file.read(columns=[column]).column(column),
    cell,
    path.parent,
  )
