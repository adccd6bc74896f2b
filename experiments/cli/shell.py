"""A command as a shell sees it: one line of error, an exit status."""

import contextlib
import errno
import logging
import os
import pathlib
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from diffusion_jax.data import sources
from experiments.cli import signals, streams

PATHS = (
  FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError,
)  # fmt: skip


def run(main: Callable[[list[str]], object]) -> None:
  """Runs a command, with errors of one line.

  Raises:
    SystemExit: After one line: status 130 if Ctrl-C ends it, 1 if the machine
      lacks something it needs.
  """
  streams.steady()
  signals.watch()
  warnings.formatwarning = _warning
  try:
    main(sys.argv)
  except KeyboardInterrupt:
    fail("stopped by Ctrl-C")
    sys.stdout.flush()
    sys.stderr.flush()
    # XLA's threads still compute; an orderly exit under them crashes.
    os._exit(130)
  except (RuntimeError, AssertionError) as error:
    if line := _missing(error):
      raise fail(line, status=1) from None
    raise


def _missing(error: Exception) -> str | None:
  """What the machine lacks, in a line, if the error says so."""
  text = " ".join(str(error).split())
  place = traceback.extract_tb(error.__traceback__)[-1].filename
  if place.endswith("xla_bridge.py"):  # where JAX looks for devices
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return f"JAX_PLATFORMS={platforms!r} is not here: {text or 'no device'}"
  if "home directory" in text:  # pathlib's
    return f"{text} Set HOME"
  return None


def fail(message: object, *, status: int = 2) -> SystemExit:
  """Prints one line on standard error; returns the exit to raise."""
  line = in_flags(" ".join(str(message).split()))
  print(f"error: {sources.visible(line)}", file=sys.stderr)  # noqa: T201
  return SystemExit(status)


def in_flags(text: str) -> str:
  """A message about options, with these written as flags.

  >>> in_flags("kid of 8 samples: pass `num=20` or more")
  'kid of 8 samples: pass --num=20 or more'
  """
  return re.sub(r"`([a-z][\w.]*(?:=[^`]*)?)`", r"--\1", text)


def _warning(message: Warning | str, *_: object, **__: object) -> str:
  """A warning as one line, for ``warnings.formatwarning``."""
  return f"warning: {sources.visible(' '.join(str(message).split()))}\n"


def command(name: str, **values: object) -> str:
  """The shell line of one of our commands.

  >>> command("sample", workdir="my runs/digits")
  "python -m experiments.sample '--workdir=my runs/digits'"
  """
  named = [f"--{key}={value}" for key, value in values.items()]
  return shlex.join(["python", "-m", f"experiments.{name}", *named])


def check_out(out: pathlib.Path, *suffixes: str, flag: str = "out") -> None:
  """Checks, before any work, that a file or folder can be written.

  Args:
    out: Its path.
    suffixes: What a file may end in; by default in anything.
    flag: The flag that names it.

  Raises:
    ValueError: If not; says why.
  """
  if suffixes and out.suffix.lower() not in suffixes:
    raise ValueError(f"--{flag}={out} must end in {' or '.join(suffixes)}")
  there = next(p for p in (out, *out.parents, pathlib.Path("/")) if p.exists())
  if sources.CONTROL.search(str(out)):
    raise ValueError(
      f"--{flag}={str(out)!r} has a control character; choose another"
    )
  if out.suffix and out.is_dir():
    raise ValueError(f"--{flag}={out} is a folder; name a file")
  if there != out and not there.is_dir():
    raise ValueError(f"--{flag}={out}: {there} is a file; name another place")
  if not _writable(there):
    raise ValueError(f"--{flag}={out}: {there} cannot be written; name another")


def _writable(there: pathlib.Path) -> bool:
  """Whether a file, or one in a folder, can be written."""
  if not there.is_dir():
    return os.access(there, os.W_OK)
  if not os.access(there, os.W_OK | os.X_OK):
    return False
  try:  # an administrator may write everywhere, except where nobody can
    tempfile.TemporaryFile(dir=there).close()
  except OSError as error:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)  # it may be freed
  return True


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns a user's mistake into one line and status 2.

  A wrong path is the user's mistake; other errors of the system are not, and
  end with status 1. So do results that are NaN.
  """
  try:
    yield
  except FloatingPointError as error:
    raise fail(error, status=1) from error
  except ValueError as error:
    raise fail(error) from error
  except OSError as error:
    raise fail(error, status=2 if isinstance(error, PATHS) else 1) from error


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
  """Has Orbax say nothing of a failed save, which it raises as well.

  Its threads log each failure with a traceback; writes of tensorstore that end
  after the first failure find its event loop closed, and Python prints that.
  """

  def new(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)

  def hook(lost: Any) -> None:
    if str(lost.exc_value) != "Event loop is closed":
      before(lost)

  logger, before = logging.getLogger("absl"), sys.unraisablehook
  logger.addFilter(new)
  sys.unraisablehook = hook
  try:
    yield
  finally:
    logger.removeFilter(new)
    sys.unraisablehook = before


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
  """Turns an error of the system, such as a full disk, into one line, status 1.

  The process ends at once: otherwise threads of libraries would try again to
  write what they hold, and fail with many lines. Images that are NaN are one
  line and status 1, too.
  """
  with _said_once():
    try:
      yield
    except FloatingPointError as error:
      raise fail(error, status=1) from error
    except OSError as error:
      full = error.errno in (errno.ENOSPC, errno.EDQUOT) or any(
        words in str(error) for words in ("No space left", "quota exceeded")
      )
      then = "; free some space, the same command then goes on" if full else ""
      fail(f"{error}{then}", status=1)
      sys.stdout.flush()
      os._exit(1)
