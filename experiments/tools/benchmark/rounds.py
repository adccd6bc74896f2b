"""Runs contenders in turn, each in its own process; compares their times."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tools.benchmark import quiet
from experiments.tools.benchmark.worker import Facts


class Contender:
  """A warm worker process that waits for requests.

  Args:
    module: "ours" or "peers", of ``experiments.tools.benchmark``.
    job: Its job.
    env: Environment variables to add to ours.

  Raises:
    RuntimeError: If the worker ends before it is ready; with its last line.
  """

  def __init__(self, module: str, job: Facts, env: Mapping[str, str]):
    self._process = subprocess.Popen(
      [sys.executable, "-m", f"experiments.tools.benchmark.{module}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE if not sys.stderr.isatty() else None,
      text=True,
      env=os.environ | env,
    )
    self.facts: dict[str, Any] = self._ask(json.dumps(job))
    self.seconds: list[float] = []

  @property
  def pid(self) -> int:
    """Of its process."""
    return self._process.pid

  def repeat(self) -> None:
    """Runs the job once more."""
    self.seconds.append(self._ask("go"))

  def end(self) -> dict[str, Any]:
    """Stops the worker; returns the memory that it used."""
    memory = self._ask("end")
    self._process.communicate()
    return memory

  def kill(self) -> None:
    """Stops the worker at once, if it still runs."""
    self._process.kill()
    self._process.communicate()

  def _ask(self, line: str) -> Any:
    stdin, stdout = self._process.stdin, self._process.stdout
    assert stdin is not None and stdout is not None
    try:
      stdin.write(line + "\n")
      stdin.flush()
      return json.loads(stdout.readline())
    except (OSError, ValueError):
      _, errors = self._process.communicate()
      last = (errors or "see above").strip().splitlines()[-1]
      raise RuntimeError(f"a worker ended: {last}") from None


def race(
  contenders: Mapping[str, tuple[str, Facts, Mapping[str, str]]], repeats: int
) -> dict[str, dict[str, Any]]:
  """Lets contenders repeat the same job in turn.

  They get ready one after another, so that none compiles while another is
  measured, and then take turns: what slows the machine down slows all.

  Args:
    contenders: By name, the arguments of ``Contender``.
    repeats: How often each is timed.

  Returns:
    By name, the facts, "seconds" of each repetition, "peak_bytes", and what
    share of the machine "others" used meanwhile.
  """
  ready: dict[str, Contender] = {}
  try:
    for name, arguments in contenders.items():
      ready[name] = Contender(*arguments)
    watch = quiet.Watch([contender.pid for contender in ready.values()])
    for _ in range(repeats):
      for contender in ready.values():
        contender.repeat()
    others = watch.others()
    return {
      name: c.facts | {"seconds": c.seconds, "others": others} | c.end()
      for name, c in ready.items()
    }
  finally:
    for contender in ready.values():
      contender.kill()


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, smallest and largest.

  >>> spread([3.0, 1.0, 2.0])
  {'median': 2.0, 'min': 1.0, 'max': 3.0}
  """
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
  }


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
  """Their time divided by ours, turn by turn.

  >>> ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0])
  {'median': 2.0, 'min': 1.0, 'max': 3.0}
  """
  return spread([a / b for a, b in zip(theirs, ours, strict=True)])
