"""How much to optimise when compiling, and returning memory afterwards."""

import ctypes
import os
import platform

import jax

EFFORT = "xla_backend_optimization_level"


def compiler_options(effort: int) -> dict[str, int] | None:
  """Options of ``jax.jit``: how much to optimise for a CPU.

  On a CPU, compiling takes most of a first try: LLVM's last optimisations are a
  third of it and make no step faster, and a program that runs once needs none.

  Args:
    effort: LLVM's level, 0 to 3.

  Returns:
    The ``compiler_options`` of jit; None, the default, on accelerators and if
    XLA_FLAGS sets them.
  """
  said = EFFORT in os.environ.get("XLA_FLAGS", "")
  if said or jax.default_backend() != "cpu":
    return None
  return {EFFORT: effort}


def return_memory() -> None:
  """Returns free memory to the system after compiling, which needs much.

  The C library would keep half a gigabyte that is never needed again. Does
  nothing if that library is not glibc.
  """
  if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).malloc_trim(0)
