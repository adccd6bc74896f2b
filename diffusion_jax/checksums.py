"""Checksums of a folder's files when they were written.

Only these files count: file managers and network file systems leave others
beside them.
"""

import hashlib
import json
import pathlib

NAME = "checksums.json"
# Orbax's mark of a complete checkpoint, which it writes last.
_MARK = "commit_success.txt"


def write(folder: pathlib.Path) -> None:
  """Writes the checksums of a folder into it."""
  (folder / NAME).write_text(json.dumps(_checksums(folder), indent=1))


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  """BLAKE2 of each saved file below a folder."""
  return {
    path.relative_to(folder).as_posix(): _checksum(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in (NAME, _MARK)
  }


def _checksum(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def difference(folder: pathlib.Path) -> str | None:
  """The first difference from what was written; None if there is none.

  Raises:
    OSError: If the system does not let a file be read.
  """
  if not folder.is_dir():
    return "its files are missing"
  try:
    written = json.loads((folder / NAME).read_text())
  except FileNotFoundError:  # older than checksums
    return None
  except ValueError as error:
    return f"{NAME}: {error}"
  if not isinstance(written, dict):
    return f"{NAME} lists no files"
  for name in sorted(written):
    try:
      if written[name] != _checksum(folder / name):
        return f"{name} has changed since it was written"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return f"{name} is missing"
  return None
