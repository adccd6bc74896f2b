"""Indices that are known before tracing, held against what they index.

Where one is beyond its table JAX takes the nearest end, counts from the last or
answers NaN, and says nothing.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def known(value: Any) -> np.ndarray | None:
  """The values, if they are here to be looked at; None of a traced array."""
  if value is None or isinstance(value, Tracer):
    return None
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None
  return np.asarray(value)


def check_range(name: str, value: Any, least: int, most: int) -> None:
  """Refuses an index out of least..most, where it is known before tracing.

  Args:
    name: What is indexed, as the message has it.
    value: One or many; a traced array is taken as it is.
    least: The smallest that is right.
    most: The largest.

  Raises:
    ValueError: With the first that is wrong.
  """
  array = known(value)
  if array is None:
    return
  wrong = array[~((array >= least) & (array <= most))]
  if wrong.size:
    raise ValueError(f"{name}={wrong.flat[0]} is not in {least}..{most}")
