"""How hard to compile, and giving memory back afterwards."""

import ctypes
import os
import platform

import jax

EFFORT = "xla_backend_optimization_level"


def compiler_options(effort: int) -> dict[str, int] | None:
  """Options of ``jax.jit``: how well to compile for a CPU.

  There, compiling is what a newcomer waits for: LLVM's last optimisations
  take a third of it and make no step faster, and a program that runs once
  needs none.

  Args:
    effort: LLVM's level, 0 to 3.

  Returns:
    For jit's ``compiler_options``; None, as usual, on accelerators and where
    XLA_FLAGS say it.
  """
  said = EFFORT in os.environ.get("XLA_FLAGS", "")
  if said or jax.default_backend() != "cpu":
    return None
  return {EFFORT: effort}


def return_memory() -> None:
  """Gives free memory back to the system, after what needs much: compiling.

  The C library would keep it, half a gigabyte, for a next time that does not
  come. Does nothing where that library is not glibc.
  """
  if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).malloc_trim(0)
