"""Commands: thin programs around the library. Run with python -m.

Each file here is one command; cli/ has what they share, configs/ what they
train, and tools/ commands for developers.
"""

import importlib
import os
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
check_installed()
sys.meta_path.append(moved.Finder())
