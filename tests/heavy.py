"""Which tests are left to the gate, so that the others take minutes.

  python -m tests.heavy

Runs all tests but the slow ones and writes heavy.txt: those whose call took
more than SECONDS of CPU time, which does not depend on how busy the machine is.
They get the mark "heavy" as they are collected; `pytest -m heavy` runs them.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import pytest

SECONDS = 1.2
LIST = pathlib.Path(__file__).with_name("heavy.txt")
TIMES = "DIFFUSION_JAX_TEST_TIMES"  # the file that calls are noted in
# pytest's: all passed, or some failed. Otherwise not all tests were run.
HAVE_RUN = (0, 1)


def listed() -> set[str]:
  """The names in heavy.txt."""
  return set(LIST.read_text().splitlines())


def mark(items: list[pytest.Item]) -> None:
  """Marks what is listed."""
  names = listed()
  for item in items:
    if item.nodeid in names:
      item.add_marker(pytest.mark.heavy)


def cpu_seconds() -> float:
  """Of this process and of those that it has waited for."""
  both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  return sum(
    used.ru_utime + used.ru_stime for used in map(resource.getrusage, both)
  )


def note(item: pytest.Item, seconds: float) -> None:
  """Appends a line to the file of times, which all processes share."""
  with open(os.environ[TIMES], "a") as file:
    file.write(json.dumps([item.nodeid, seconds]) + "\n")


def main() -> None:
  """The command."""
  with tempfile.NamedTemporaryFile("r") as file:
    env = os.environ | {TIMES: file.name}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow"]
    if subprocess.run(command, env=env, check=False).returncode not in HAVE_RUN:
      sys.exit("the list is as before: not all tests were run")
    rows = [json.loads(line) for line in file]
  names = sorted(name for name, seconds in rows if seconds > SECONDS)
  LIST.write_text("".join(f"{name}\n" for name in names))
  whole = sum(seconds for _, seconds in rows)
  left = sum(seconds for _, seconds in rows if seconds <= SECONDS)
  print(  # noqa: T201
    f"{len(rows)} tests took {whole:.0f} s of CPU time, without the "
    f"{len(names)} that are listed {left:.0f} s"
  )


if __name__ == "__main__":
  main()
