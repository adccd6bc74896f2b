"""Whether a checkpoint is damaged, or the system does not let it be read."""

import contextlib
import errno
from collections.abc import Iterator

# What reading a file that is not what it was can come to, in Orbax and in
# tensorstore.
UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError)
# Of these the file is to blame; of all others the system.
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Damaged(ValueError):
  """A checkpoint is not what was written."""


@contextlib.contextmanager
def as_damage() -> Iterator[None]:
  """Takes what Orbax cannot read for damage, unless the system refuses it.

  Raises:
    Damaged: If a file is not what it was.
    OSError: If the system does not let it be read.
  """
  try:
    yield
  except UNREADABLE as error:
    line = first_line(error)
    # tensorstore puts the system's refusals into words of its own.
    refused = isinstance(error, OSError) and error.errno not in _MISSING
    if refused or "PERMISSION_DENIED" in str(error):
      raise OSError(f"a checkpoint cannot be read: {line}") from error
    raise Damaged(line) from error


def first_line(error: Exception) -> str:
  """What an error says, in one line."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
