"""A process that repeats one job on request.

The parent writes one line of JSON, the job; the worker gets ready and answers
with a line of facts. To each line "go" it answers with the seconds that one
repetition took, to "end" with the memory it has used. Nothing here imports a
library of networks: every contender brings only its own.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Facts = Mapping[str, Any]


class Ready(NamedTuple):
  """A contender that is compiled and warm.

  Attributes:
    repeat: Does the thing once, and waits for it.
    facts: What is known beforehand.
    memory: Peak bytes so far, on the device; None asks the system for those
      of the process.
  """

  repeat: Callable[[], object]
  facts: dict[str, Any]
  memory: Callable[[], int] | None = None


def serve(prepare: Callable[[Facts], Ready]) -> None:
  """Runs the worker until its end.

  Args:
    prepare: Gets ready for a job.
  """
  # Libraries print anything, so the answers have their own channel.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  ready = prepare(json.loads(sys.stdin.readline()))
  answers.write(json.dumps(ready.facts) + "\n")
  for line in sys.stdin:
    if line.strip() != "go":
      break
    begin = time.perf_counter()
    ready.repeat()
    answers.write(json.dumps(time.perf_counter() - begin) + "\n")
  memory = ready.memory() if ready.memory else process_peak()
  answers.write(json.dumps({"peak_bytes": memory}) + "\n")


def process_peak() -> int:
  """Peak memory of this process, in bytes."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Stopwatch:
  """Seconds of one thing after another."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    """Records the time since the last lap as ``name``."""
    now = time.perf_counter()
    self.seconds[name], self._last = now - self._last, now
