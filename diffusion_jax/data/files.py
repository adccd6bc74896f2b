"""Picture files: where they are in a folder or .zip, and their classes."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from diffusion_jax.data import pictures, sources

# The files by which a run directory describes itself.
RUN = {"config.json", "data.json", "versions.json"}


class File(NamedTuple):
  """A picture file: its path inside the folder, and how to read it."""

  path: PurePosixPath
  open: Callable[[], IO[bytes]]
  num_bytes: int
  label: int = 0


def find(path: Path) -> list[File]:
  """The picture files of a folder or .zip, in the order of their paths."""
  files = _in_folder(path) if path.is_dir() else _in_zip(path)
  files = [file for file in files if _is_picture(file.path)]
  if not files:
    raise ValueError(
      f"no pictures in {path}: need files that end in one of"
      f" {' '.join(sorted(pictures.EXTENSIONS))}; a TFDS data set of that name"
      f" is 'tfds:{path.name}'"
    )
  return sorted(files, key=lambda file: file.path.parts)


def _is_picture(path: PurePosixPath) -> bool:
  hidden = any(part[0] == "." or part == "__MACOSX" for part in path.parts)
  return path.suffix.lower() in pictures.EXTENSIONS and not hidden


def _in_folder(folder: Path) -> list[File]:
  """All files but those of runs, whose samples are no data of the next."""
  files, runs = [], []
  for root, folders, names in os.walk(folder, followlinks=True):
    if set(names) >= RUN and Path(root) != folder:
      runs.append(Path(root))
      folders.clear()
      continue
    for name in names:
      path = Path(root, name)
      inside = PurePosixPath(path.relative_to(folder).as_posix())
      if _is_picture(inside) and path.is_file():
        opener = _opener(path)
        files.append(File(inside, opener, path.stat().st_size))
  if runs:
    warnings.warn(
      f"{folder} also holds runs, whose pictures are left out: "
      + ", ".join(str(path.relative_to(folder)) for path in sorted(runs)),
      stacklevel=5,
    )
  return files


def _opener(path: Path) -> Callable[[], IO[bytes]]:
  return lambda: path.open("rb")


def _in_zip(path: Path) -> list[File]:
  if not path.is_file():
    raise ValueError(f"no file {path}: {sources.ACCEPTED}")
  try:
    # Stays open as long as the source; reading from threads is safe.
    archive = zipfile.ZipFile(path)
  except pictures.BROKEN as error:
    raise ValueError(
      f"cannot read {path}: {sources.one_line(error)}; it is damaged or no"
      " .zip, make or download it again"
    ) from error

  def opener(info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)

  return [
    File(PurePosixPath(info.filename), opener(info), info.file_size)
    for info in archive.infolist()
    if not info.is_dir()
  ]


def label(path: Path, files: list[File]) -> tuple[list[File], tuple[str, ...]]:
  """Labels the files by the first folder of their paths.

  A single folder that holds only folders is no class but a wrapper, as in a
  .zip that was made of a folder and not of what is in it.
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
  if names and top:
    raise ValueError(
      f"{path} has pictures both at its top ({top[0].path}) and in sub-folders"
      f" ({names[0]}): put every picture into the sub-folder of its class, or"
      " all of them at the top"
    )
  number = {name: index for index, name in enumerate(names)}
  if names:
    files = [f._replace(label=number[f.path.parts[level]]) for f in files]
  return files, tuple(names)
