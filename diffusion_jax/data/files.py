"""Image files in a folder or .zip, and their classes."""

import collections
import io
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from diffusion_jax.data import pictures, sources

# Parts of a data set, which are no classes.
_SPLITS = frozenset(
  {"train", "training", "val", "valid", "validation", "test", "testing"}
)
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z"})
# Compressions that Python's zipfile unpacks.
_METHODS = frozenset(
  {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
  }
)
# Files that identify a run directory.
RUN = {"config.json", "data.json", "versions.json"}


class File(NamedTuple):
  """A picture file: its path inside the folder, and how to read it."""

  path: PurePosixPath
  open: Callable[[], IO[bytes]]
  num_bytes: int
  label: int = 0


class Found(NamedTuple):
  """What is in a folder or .zip.

  Attributes:
    files: The images, in the order of their paths.
    left_out: Numbers of other files, by kind, such as ".txt".
    unreadable: Paths that the system does not let us read, with the reason.
  """

  files: list[File]
  left_out: collections.Counter[str]
  unreadable: list[str]


def find(path: Path, *, skip_broken: bool = False) -> tuple[list[File], str]:
  """The picture files of a folder or .zip, in the order of their paths.

  Args:
    path: The folder or .zip.
    skip_broken: Whether to warn of what cannot be read instead of failing.

  Returns:
    The files, and a description of what was left out.

  Raises:
    ValueError: If there are none, or none that can be read.
  """
  found = _in_folder(path) if path.is_dir() else _in_zip(path)
  if found.unreadable:
    some = sources.some(found.unreadable)
    if not skip_broken:
      raise sources.Unfit(
        f"{path} has what cannot be read: {some}; repair or remove it",
        "skip_broken",
      )
    warnings.warn(f"{path}: left out {some}", stacklevel=5)
  left_out = ", ".join(
    f"{kind} ({count:,})" for kind, count in sorted(found.left_out.items())
  )
  if not found.files:
    raise ValueError(
      f"no pictures in {path}: {_why_none(path, found.left_out, left_out)}"
    )
  return sorted(found.files, key=lambda file: file.path.parts), left_out


def _why_none(path: Path, kinds: Collection[str], listed: str) -> str:
  """An error line: what is there instead of images, and what to do."""
  if not kinds:
    where = f"; a TFDS data set of that name is 'tfds:{path.name}'"
    return f"it is empty{where if path.is_dir() else ''}"
  if _ARCHIVES.intersection(kinds):
    return f"it holds {listed}; unpack the archive that is in it"
  if {".npz", ".npy"}.intersection(kinds):
    return f"it holds {listed}; arrays are read of a .npz or .npy by its name"
  return (
    f"it holds {listed}; pictures are .png, .jpg and what else Pillow reads"
  )


def _sort(files: Iterable[File], found: Found) -> None:
  """Adds the images to what was found, and counts all others."""
  for file in files:
    if any(p[0] == "." or p == "__MACOSX" for p in file.path.parts):
      found.left_out["hidden"] += 1
    elif file.path.suffix.lower() in pictures.extensions():
      found.files.append(file)
    else:
      suffix = file.path.suffix.lower()
      found.left_out[sources.visible(suffix) or "no suffix"] += 1


def _in_folder(folder: Path) -> Found:
  """The files below a folder, following links; each folder is read once.

  Links come last, so that a folder keeps its own path if it has one here, and a
  link to a folder above it finds nothing new.
  """
  found = Found([], collections.Counter(), [])
  here, linked, seen, runs = [folder], [], set(), []
  while here or linked:
    current = here.pop() if here else linked.pop(0)
    try:
      status = current.stat()
      entries = sorted(os.scandir(current), key=lambda entry: entry.name)
    except OSError as error:
      found.unreadable.append(_reason(folder, current, error))
      continue
    if (status.st_dev, status.st_ino) in seen:
      found.left_out["links to the same folder"] += 1
      continue
    seen.add((status.st_dev, status.st_ino))
    if current != folder and {entry.name for entry in entries} >= RUN:
      found.left_out["runs"] += 1
      runs.append(current.relative_to(folder).as_posix())
      continue
    if not entries and current != folder:
      found.left_out["empty folders"] += 1
    files = []
    for entry in entries:
      if not _is_folder(entry):
        files.append(entry)
      elif entry.name[0] == ".":
        found.left_out["hidden"] += 1
      else:
        (linked if entry.is_symlink() else here).append(Path(entry.path))
    _sort(_regular(folder, files, found), found)
  if runs:
    warnings.warn(
      f"{folder} also holds runs, whose pictures are left out: "
      + ", ".join(sorted(runs)),
      stacklevel=6,
    )
  return found


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself, or to where we have no access
    return False


def _regular(
  folder: Path, entries: Iterable[os.DirEntry], found: Found
) -> Iterator[File]:
  """The regular files among the entries of a folder."""
  for entry in entries:
    path = Path(entry.path)
    if entry.name[0] == ".":
      found.left_out["hidden"] += 1
      continue
    try:
      status = entry.stat()
    except OSError as error:  # a broken link
      # To a picture, or perhaps to a folder of them.
      if path.suffix.lower() in {"", *pictures.extensions()}:
        found.unreadable.append(_reason(folder, path, error))
      else:
        found.left_out["dead links"] += 1
      continue
    if entry.is_file():
      inside = PurePosixPath(path.relative_to(folder).as_posix())
      yield File(inside, _opener(path), status.st_size)
    else:
      found.left_out["special files"] += 1


def _reason(folder: Path, path: Path, error: OSError) -> str:
  name = sources.visible(path.relative_to(folder).as_posix())
  return f"{name} ({error.strerror or error})"


def _opener(path: Path) -> Callable[[], IO[bytes]]:
  return lambda: path.open("rb")


def _in_zip(path: Path) -> Found:
  if not path.is_file():
    raise ValueError(f"no file {path}: {sources.ACCEPTED}")
  try:
    # Stays open as long as the source.
    archive = zipfile.ZipFile(path)
  except pictures.BROKEN as error:
    raise ValueError(
      f"cannot read {path}: {sources.one_line(error)}; it is damaged or no"
      " .zip, make or download it again"
    ) from error

  # One reader at a time: since 3.12 Python skips the extra field that zip
  # programs add to a member by a seek from where the archive's file stands,
  # which may be where another thread has left it.
  lock = threading.Lock()

  def opener(info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def read() -> IO[bytes]:
      with lock:
        return io.BytesIO(archive.read(info))

    return read

  # If several files have one name, the last counts.
  members = {_inside(info.filename): info for info in archive.infolist()}
  members = {
    PurePosixPath(*inside): info
    for inside, info in members.items()
    if info.filename[-1:] not in ("/", "\\")
  }
  found = Found([], collections.Counter(), [])
  _sort(
    (File(to, opener(info), info.file_size) for to, info in members.items()),
    found,
  )
  infos = [members[file.path] for file in found.files]
  locked = any(info.flag_bits & 1 for info in infos)
  unknown = any(info.compress_type not in _METHODS for info in infos)
  if locked or unknown or not infos:
    archive.close()
  if locked or unknown:
    why = "needs a password" if locked else "is packed in a way of its own"
    raise ValueError(
      f"{path} {why}, which is not supported: unpack it and name the folder"
    )
  return found


def _inside(name: str) -> tuple[str, ...]:
  r"""The path of a file in a .zip; some of Windows' have backslashes.

  >>> _inside(r"./pets\cat/a.png")
  ('pets', 'cat', 'a.png')
  """
  return tuple(p for p in re.split(r"[/\\]", name) if p not in ("", ".", ".."))


def label(path: Path, files: list[File]) -> tuple[list[File], tuple[str, ...]]:
  """Labels the files by the first folder of their paths.

  A single folder that holds only folders is a wrapper and not a class, as in a
  .zip of a folder instead of its contents.

  Raises:
    ValueError: If only some files have a folder, or the folders are parts of
      a data set.
  """
  level = 0
  while (
    len({file.path.parts[: level + 1] for file in files}) == 1
    and min(len(file.path.parts) for file in files) > level + 2
  ):
    level += 1
  depth = level + 1
  top = [f for f in files if len(f.path.parts) == depth]
  names = sorted(
    {f.path.parts[level] for f in files if len(f.path.parts) > depth}
  )
  _check_names(path, names)
  if names and top:
    one = sources.visible(top[0].path)
    raise ValueError(
      f"{path} has pictures both at its top ({one}) and in sub-folders"
      f" ({names[0]}): put every picture into the sub-folder of its class, or"
      " all of them at the top"
    )
  _check_no_splits(path, names, Path(*files[-1].path.parts[:depth]))
  number = {name: index for index, name in enumerate(names)}
  if names:
    files = [f._replace(label=number[f.path.parts[level]]) for f in files]
  return files, tuple(names)


def _check_names(path: Path, names: Sequence[str]) -> None:
  """Raises for class names that cannot be printed on a line, or saved."""
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError:
      raise ValueError(
        f"{path} has the folder {os.fsencode(name)!r}, whose name is not UTF-8:"
        " rename it"
      ) from None
    if sources.CONTROL.search(name):
      raise ValueError(
        f"{path} has the folder {name!r}, whose name has a control character:"
        " rename it"
      )


def _check_no_splits(path: Path, names: Sequence[str], last: Path) -> None:
  """Raises for splits in the place of classes; ``last`` is one of the files."""
  if len(names) < 2 or not {name.lower() for name in names} <= _SPLITS:
    return
  name_one = f"name one of them, such as {path / last}"
  if not path.is_dir():
    name_one = f"unpack it and name one of them, such as {last}"
  raise ValueError(
    f"{path} has the folders {', '.join(names)}, which are parts of a data set"
    f" and no classes: {name_one}"
  )
