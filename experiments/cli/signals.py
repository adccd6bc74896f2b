"""Signals at the terminal: the second one ends a command at once."""

import contextlib
import os
import select
import signal
import threading

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds that a command may take to stop before it prints what it is doing.
PATIENCE = 3.0


def watch() -> None:
  """From now on SIGINT raises, and the second signal ends this process.

  Python runs its handlers between two of its own instructions, which may be
  minutes apart while XLA compiles, so a thread watches the signals instead. It
  ends the process like a kill, after which a run resumes from its newest
  checkpoint: files appear whole or not at all. Signals that end the process
  anyway are not watched.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until here
    signal.signal(signal.SIGINT, signal.default_int_handler)
  heard, told = os.pipe()
  os.set_blocking(told, False)
  signal.set_wakeup_fd(told, warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=(heard,), daemon=True).start()


def _listen(heard: int) -> None:
  first = _next(heard)
  # An exception is lost if it meets a callback that JAX calls from C++, or the
  # garbage collector: it is then raised again. A handler that notes the signal
  # loses nothing, and would take the same one for a second.
  again = first == signal.SIGINT and _raises()
  said = False
  while not select.select([heard], [], [], PATIENCE)[0]:
    if not said:
      _say(f"{first.name}: ends when what runs now is done; again ends at once")
      said = True
    if again:
      again = _raises()
      signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
      _next(heard)  # this one
  second = _next(heard)
  _say(f"error: stopped at once by a second signal, {second.name}")
  os._exit(128 + second)


def _raises() -> bool:
  """Whether Ctrl-C raises KeyboardInterrupt now."""
  return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _next(heard: int) -> signal.Signals:
  """Waits for the next signal to stop."""
  while (number := os.read(heard, 1)[0]) not in ENDS:
    pass
  return signal.Signals(number)


def _say(line: str) -> None:
  """Writes past Python's streams, which another thread may hold."""
  with contextlib.suppress(OSError):  # SIGHUP: the terminal is gone
    os.write(2, f"{line}\n".encode())
