"""Whether a checkpoint is damaged, or the system does not let it be read."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

# Errors of Orbax and tensorstore for a file that has changed.
UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError)
MOST = 200  # characters of a message of theirs
# For these errors the file is to blame; for all others the system.
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Damaged(ValueError):
  """A checkpoint differs from what was written."""


@contextlib.contextmanager
def as_damage() -> Iterator[None]:
  """Turns Orbax's errors into ``Damaged``, unless the system is to blame.

  Raises:
    Damaged: If a file differs from what was written.
    OSError: If the system does not let it be read.
  """
  try:
    yield
  except UNREADABLE as error:
    line = first_line(error)[:MOST]
    # tensorstore puts the system's refusals into words of its own.
    refused = isinstance(error, OSError) and error.errno not in _MISSING
    if refused or "PERMISSION_DENIED" in str(error):
      raise OSError(f"a checkpoint cannot be read: {line}") from error
    raise Damaged(line) from error


def reason(error: Exception) -> str:
  """Why the system refuses something, which tensorstore says last of all."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else first_line(error)[:MOST]


def first_line(error: Exception) -> str:
  """The message of an error, in one line."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
