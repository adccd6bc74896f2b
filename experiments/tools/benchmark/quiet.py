"""Whether a machine is quiet enough for a comparison to mean anything."""

import os
import pathlib
import time
from collections.abc import Collection, Mapping

# Share of all cores that others may use, and how far apart the smallest and
# the largest ratio may lie.
OTHERS, WIDE = 0.1, 1.25


class Watch:
  """How much of the machine others use from now on.

  Args:
    pids: The processes that are measured.
  """

  def __init__(self, pids: Collection[int]):
    self._pids = pids
    self._start = self._read()

  def others(self) -> float | None:
    """Their share of all cores; None where there is no /proc to say it."""
    if self._start is None or (now := self._read()) is None:
      return None
    wall, all_of_it, measured = (
      b - a for a, b in zip(self._start, now, strict=True)
    )
    cores = os.cpu_count() or 1
    return max(all_of_it - measured, 0.0) / (wall * cores)

  def _read(self) -> tuple[float, float, float] | None:
    try:
      measured = sum(map(_of_process, self._pids))
      return time.monotonic(), _of_machine(), measured
    except OSError:
      return None


def _of_machine() -> float:
  """CPU seconds of all processes so far, and what other guests took of us."""
  first = pathlib.Path("/proc/stat").read_text().partition("\n")[0]
  user, nice, system, _idle, _waiting, irq, softirq, steal = (
    int(word) for word in first.split()[1:9]
  )
  return (user + nice + system + irq + softirq + steal) / _ticks()


def _of_process(pid: int) -> float:
  """CPU seconds of a process so far."""
  # Its name, in brackets, may hold anything.
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  return sum(int(ticks) for ticks in fields.split()[11:13]) / _ticks()


def _ticks() -> int:
  return os.sysconf("SC_CLK_TCK")


def verdict(ratio: Mapping[str, float], others: float | None) -> str:
  """Who is ahead, if that can be said.

  >>> verdict({"median": 1.2, "min": 1.1, "max": 1.3}, 0.02)
  'ahead'
  >>> verdict({"median": 1.02, "min": 0.95, "max": 1.1}, 0.02)
  'level'
  >>> verdict({"median": 1.2, "min": 1.1, "max": 1.3}, 0.4)
  'none: others used 40 % of the machine'
  >>> verdict({"median": 1.2, "min": 0.8, "max": 1.3}, None)
  'none: ratios differ by a factor of 1.62'

  Args:
    ratio: "min" and "max" over the turns of their time to ours.
    others: See ``Watch``.

  Returns:
    "ahead" where ours was faster in every turn, "behind" where it was slower
    in each, "level" between; or why there is none.
  """
  if others is not None and others > OTHERS:
    return f"none: others used {100 * others:.0f} % of the machine"
  if (apart := ratio["max"] / ratio["min"]) > WIDE:
    return f"none: ratios differ by a factor of {apart:.3g}"
  if ratio["min"] > 1:
    return "ahead"
  return "behind" if ratio["max"] < 1 else "level"
