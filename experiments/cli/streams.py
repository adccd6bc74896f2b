"""Standard output that may be closed or broken, or lack some characters.

Messages are the least important part of a command: a closed terminal, a pipe
into ``head`` or a full disk under a log must not end it.
"""

import errno
import io
import os
import sys
from typing import TextIO

# The reader has gone, and will not be back.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Steady(io.TextIOWrapper):
  """A text stream that drops what it cannot write."""

  def write(self, text: str, /) -> int:
    """Writes if possible."""
    try:
      return super().write(text)
    except OSError as error:
      self._without(error)
      return len(text)

  def flush(self) -> None:
    """Flushes if possible."""
    try:
      super().flush()
    except OSError as error:
      self._without(error)

  def _without(self, error: OSError) -> None:
    """Discards everything from now on, if the reader is gone."""
    if error.errno in _GONE:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self.fileno())
      os.close(nowhere)


def steady() -> None:
  """Makes standard output and error drop what they cannot write."""
  sys.stdout, sys.stderr = _steadied(sys.stdout, 1), _steadied(sys.stderr, 2)


def _steadied(stream: TextIO | None, number: int) -> TextIO:
  if stream is None:
    return os.fdopen(number, "w", closefd=False)
  stream.flush()
  return Steady(
    io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
    encoding=stream.encoding,
    errors="backslashreplace",
    line_buffering=bool(stream.line_buffering) or number == 2,
  )
