"""Values: the units of data, and their conversion for a network and back.

  x = (v - centre) / scale

maps bytes, 16-bit integers or floats of a known range to [-1, 1], or floats of
a known mean and standard deviation to 0 +- 1; ``restore`` inverts it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diffusion_jax import images

# Whose levels a float32 in [-1, 1] tells apart.
INTEGERS = ("uint8", "int8", "uint16", "int16")
FLOATS = ("float16", "float32", "float64")
_CHUNK = 2**24  # values that are looked at at a time


@dataclasses.dataclass(frozen=True)
class Values:
  """The numbers of one set of data.

  Attributes:
    dtype: The stored dtype, one of ``INTEGERS`` or ``FLOATS``.
    centre: The value that becomes 0.
    scale: The divisor: half a range, or a standard deviation.
    bounded: Whether they lie in [centre - scale, centre + scale].
  """

  dtype: str = "uint8"
  centre: float = 127.5
  scale: float = 127.5
  bounded: bool = True

  @property
  def levels(self) -> int | None:
    """The number of possible values; None for floats, which have a density."""
    whole = self.dtype in INTEGERS and self.bounded
    return round(2 * self.scale) + 1 if whole else None

  @property
  def low(self) -> float:
    """The lower end of the range."""
    return self.centre - self.scale

  @property
  def high(self) -> float:
    """The upper end of the range."""
    return self.centre + self.scale

  def floats(self, v: np.ndarray) -> np.ndarray:
    """Values as a network takes them, float32."""
    # As (2 v - 2 centre) / (2 scale): for bytes and 16-bit integers all but
    # the division is exact in float32.
    exact = np.float32 if self.dtype in INTEGERS else np.float64
    x = v.astype(exact)
    x *= 2
    x -= exact(2 * self.centre)
    x /= exact(2 * self.scale)
    return x.astype(np.float32, copy=False)

  def restore(self, x: np.ndarray, *, floor: bool = False) -> np.ndarray:
    """The inverse of ``floats``: in the data's own units and dtype.

    Args:
      x: Output of a network; values outside the range are clipped.
      floor: Take the integer below instead of the nearest, see
        ``images.to_uint8``.

    Returns:
      The values.

    Raises:
      FloatingPointError: If a value is NaN or infinite.
    """
    if self == BYTES:
      return images.to_uint8(x, "floor" if floor else "round")
    x = np.asarray(x)
    images.check_finite(x)
    v = x.astype(np.float64) * self.scale + self.centre
    if self.bounded:
      v = np.clip(v, self.low, self.high)
    if self.dtype in INTEGERS:
      v = np.floor(v) if floor else np.rint(v)
      ends = np.iinfo(self.dtype)
      v = np.clip(v, ends.min, ends.max)
    return v.astype(self.dtype)

  def check(self, v: np.ndarray, where: str) -> None:
    """Checks that values are finite and in the range.

    Raises:
      ValueError: If not; says what was found.
    """
    rows = max(1, _CHUNK // max(1, math.prod(v.shape[1:])))
    least, most = math.inf, -math.inf
    for start in range(0, len(v), rows):
      part = v[start : start + rows]
      ends = float(part.min()), float(part.max())
      if not all(map(math.isfinite, ends)):
        wrong = int(part.size - np.isfinite(part).sum())
        raise ValueError(
          f"{where} has {wrong:,} values that are NaN or infinite"
          + f" among images {start:,} to {start + len(part) - 1:,}: repair or"
          " leave out those images" * (len(v) > 1)
        )
      least, most = min(least, ends[0]), max(most, ends[1])
    # Ends that are no floats of the data's own kind are rounded there.
    slack = 0 if self.dtype in INTEGERS else 1e-6 * self.scale
    below, above = self.low - slack, self.high + slack
    if self.bounded and not below <= least <= most <= above:
      raise WrongRange(
        f"{where} has values from {least:g} to {most:g}, outside the range "
        f"{self.low:g} to {self.high:g}: name a range that holds all, as "
        f"range=({least!r}, {most!r})"
      )

  def like(self, other: "Values") -> bool:
    """Whether equal numbers mean the same; floats may differ in precision."""
    ours, theirs = np.dtype(self.dtype), np.dtype(other.dtype)
    return (
      (ours == theirs or ours.kind == theirs.kind == "f")
      and self.bounded == other.bounded
      and np.allclose(
        (self.centre, self.scale), (other.centre, other.scale), atol=0
      )
    )

  def agrees(self, other: "Values") -> bool:
    """Whether a network sees the same, as of bytes and of 16 bits in full."""
    full = all(
      x.dtype in INTEGERS and (x.low, x.high) == (0, np.iinfo(x.dtype).max)
      for x in (self, other)
    )
    return full or self.like(other)

  def to_json(self) -> dict[str, Any]:
    """The form in data.json."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    """A short description.

    >>> str(Values()), str(of("float32", mean=1.5, std=0.5))
    ('uint8 0 to 255', 'float32 1.5 +- 0.5')
    """
    if self.bounded:
      return f"{self.dtype} {self.low:g} to {self.high:g}"
    return f"{self.dtype} {self.centre:g} +- {self.scale:g}"


BYTES = Values()


class WrongRange(ValueError):
  """Numbers that need another range than is given."""


class NoRange(WrongRange):
  """Numbers whose type has no range of its own, and none is given."""


@runtime_checkable
class Meaning(Protocol):
  """The units that a user gives: ``of`` with all arguments but the dtype."""

  def __call__(self, dtype: Any, /, *, where: str = ...) -> Values:
    """The values of arrays of this dtype."""
    ...


def from_json(kept: dict[str, Any] | None) -> Values:
  """The inverse of ``to_json``; bytes, for an older data.json without it.

  Raises:
    ValueError: If it is not valid.
  """
  if kept is None:
    return BYTES
  try:
    values = Values(**kept)
    _check(values.dtype, values.centre, values.scale)
  except TypeError as error:
    raise ValueError(f"the values {kept} are damaged: {error}") from None
  return values


def of(
  dtype: Any,
  range: Sequence[float] | None = None,
  mean: float | None = None,
  std: float | None = None,
  *,
  where: str = "the data",
) -> Values:
  """The units of stored numbers.

  Args:
    dtype: The stored dtype.
    range: (low, high), which become -1 and 1. The default for unsigned integers
      is that of their type.
    mean: For data without a range, with ``std``: the value that becomes 0.
    std: Their standard deviation, which becomes 1.
    where: The data, for errors.

  Returns:
    The values.

  Raises:
    ValueError: If they are missing, or contradict one another.
  """
  name = np.dtype(dtype).name
  if name not in (*INTEGERS, *FLOATS):
    raise ValueError(
      f"{where} are {name}: must be one of {', '.join((*INTEGERS, *FLOATS))}"
    )
  if (mean is None) != (std is None) or (range and std is not None):
    raise ValueError(
      f"{range=}, {mean=}, {std=}: name either the range, or mean and std"
    )
  if std is not None:
    _check(name, mean, std)
    return Values(name, float(mean or 0), float(std), bounded=False)
  if not range:
    if not name.startswith("uint"):
      raise NoRange(
        f"{where} are {name}, whose range is not known: name it as "
        "range=(low, high), or mean=M and std=S"
      )
    range = (0, np.iinfo(name).max)
  if len(range) != 2 or not all(isinstance(n, int | float) for n in range):
    raise ValueError(f"{range=} must be two numbers, (low, high)")
  low, high = map(float, range)
  if not low < high:
    raise ValueError(f"{range=}: the first must be below the second")
  if name in INTEGERS and (low % 1 or high % 1):
    raise ValueError(f"{range=} of {name} must be two integers")
  _check(name, (low + high) / 2, (high - low) / 2)
  return Values(name, (low + high) / 2, (high - low) / 2)


def _check(name: str, centre: float | None, scale: float) -> None:
  if not (math.isfinite(centre or 0) and 0 < scale < math.inf):
    raise ValueError(
      f"{name} values of centre {centre} and half-range or std {scale}: both "
      "must be finite and the latter above 0"
    )
