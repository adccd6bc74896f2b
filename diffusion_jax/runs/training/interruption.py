"""Stopping between two steps.

SIGTERM comes from a preemption, SIGINT from Ctrl-C, SIGHUP from a closed
terminal.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# And the exit status that each is expected to leave.
STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGHUP: 0}


class Interrupted(Exception):
  """A signal arrived while waiting for the end would take too long."""


class Interruption:
  """Notes the first signal; a second one ends the process at once.

  Several processes all stop after the same step: JAX passes the SIGTERM of one
  host on to the others. Ctrl-C is then left to the launcher. Python gives
  signals to the main thread alone: in another, nothing is noted.
  """

  def __init__(self):
    self.signal: signal.Signals | None = None
    self._raises = False
    self._before = {}

  def __enter__(self):
    main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and main:
      for number in STATUS:
        before = signal.getsignal(number)
        # Under nohup SIGHUP is ignored, and must stay so.
        if number != signal.SIGHUP or before != signal.SIG_IGN:
          signal.signal(number, self._note)
          self._before[number] = before
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, frame) -> None:
    del frame
    again = self.signal is not None
    self.signal = signal.Signals(number)
    if again:
      raise SystemExit(128 + number)
    if self._raises:
      raise Interrupted

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Ends its body at once on a signal: for figures, not for steps."""
    self._raises = True
    try:
      yield
    except Interrupted:
      pass
    finally:
      self._raises = False

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; every process calls it after each."""
    if (
      jax.process_count() > 1
      and multihost_utils.reached_preemption_sync_point(step)
    ):
      self.signal = signal.SIGTERM
    return self.signal is not None

  @property
  def status(self) -> int:
    """The exit status of the signal."""
    return 0 if self.signal is None else STATUS[self.signal]
