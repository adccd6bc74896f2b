"""Commands: thin programs around the library. Run with python -m.

Each file here is one command; cli/ has what they share, configs/ what they
train, and tools/ commands for developers.
"""

import importlib
import os
import signal
import sys

from experiments import moved


def fill() -> None:
  """Opens those of the three standard streams that are closed.

  Otherwise the next open file would take their place, and a checkpoint could
  receive what a library prints.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def end_at_once() -> None:
  """Lets Ctrl-C end a command that still imports, without a traceback.

  ``cli.run`` undoes it. A program that only imports the package keeps its own.
  """
  command = sys.argv[:1] == ["-m"]  # as long as Python looks for the module
  if command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_installed() -> None:
  """Exits if the library is installed without its extra."""
  try:
    importlib.import_module("ml_collections")
  except ModuleNotFoundError as error:
    sys.stderr.write(
      f"the commands need {error.name}: pip install 'diffusion_jax[runs]'\n"
    )
    raise SystemExit(2) from None


fill()
end_at_once()
check_installed()
sys.meta_path.append(moved.Finder())
