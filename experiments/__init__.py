"""Commands: thin programs around the library. Run with python -m.

Each file here is one; cli/ is what they share, configs/ what they train, and
tools/ is for developers.
"""

import os


def fill() -> None:
  """Opens those of the three standard files that are closed.

  The next file that is opened would take their place otherwise, and a
  checkpoint get what a library prints.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


fill()
