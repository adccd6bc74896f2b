"""Messages for the person at the terminal."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import jax

_quiet = contextvars.ContextVar("quiet", default=False)


def say(*words: object) -> None:
  """Prints a line for the person at the terminal, at once."""
  if not _quiet.get():
    print(*words, flush=True)  # noqa: T201


def say_first(*words: object) -> None:
  """As ``say``, by the first of several processes only."""
  if jax.process_index() == 0:
    say(*words)


def warn(words: str) -> None:
  """As ``say_first``, also inside ``quiet``."""
  if jax.process_index() == 0:
    print(words, flush=True)  # noqa: T201


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Prints only warnings inside the context."""
  before = _quiet.set(True)
  try:
    yield
  finally:
    _quiet.reset(before)


@contextlib.contextmanager
def said_if_slow(words: str, *, seconds: float = 3.0) -> Iterator[None]:
  """Prints ``words`` if the context takes longer than ``seconds``."""
  said = contextvars.copy_context().run  # so that ``quiet`` holds in the thread
  timer = threading.Timer(seconds, said, (say_first, words))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
