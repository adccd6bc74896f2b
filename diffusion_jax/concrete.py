"""Checks of what is known before tracing, and that nothing is traced.

JAX does not report an index beyond its table: it takes the nearest end, counts
from the last, or returns NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def known(value: Any) -> np.ndarray | None:
  """The values; None for a traced array."""
  if value is None or isinstance(value, Tracer):
    return None
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None
  return np.asarray(value)


def check_outside(what: str, *values: Any) -> None:
  """Checks that what works on files is not called while JAX traces.

  Args:
    what: Its name in the message.
    *values: Its arguments.

  Raises:
    ValueError: If it is called inside ``jax.jit`` or the like, or with an array
      that is traced.
  """
  if any(isinstance(x, Tracer) for x in (jnp.zeros(()), *values)):
    raise ValueError(
      f"{what} works on files, which JAX cannot trace: call it outside, and "
      "pass in what it returns"
    )


def check_range(name: str, value: Any, least: int, most: int) -> None:
  """Checks that indices are in least..most, if they are known before tracing.

  Args:
    name: The name of the index in the message.
    value: One or many; a traced array is not checked.
    least: The smallest valid index.
    most: The largest.

  Raises:
    ValueError: If one is out of range; the message has the first.
  """
  array = known(value)
  if array is None:
    return
  if array.dtype.kind not in "iu" and array.size:
    raise ValueError(
      f"{name} is {array.dtype}; pass whole numbers, {least}..{most}"
    )
  wrong = array[~((array >= least) & (array <= most))]
  if wrong.size:
    raise ValueError(f"{name}={wrong.flat[0]} is not in {least}..{most}")
