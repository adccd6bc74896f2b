"""Conditions beside the class: numbers, images, masks.

Each is a part with its own name and dropout. A network gets all numbers in one
row, and all images as channels beside x_t; each part is followed by a 1, and
both are zeros where it is hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from diffusion_jax import concrete, process


class Vector(NamedTuple):
  """Numbers of an example as a condition: an angle, a position, a dose.

  Attributes:
    name: Its key in the batch.
    mean: The mean of each number over the data, subtracted from it.
    std: Their standard deviations, divided by.
    dropout: Fraction of examples in which training hides it.
  """

  name: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  dropout: float = 0.0

  @property
  def width(self) -> int:
    """The length of the network's input: the numbers, and a 1 if given."""
    return len(self.mean) + 1


class Plane(NamedTuple):
  """An image of each example as a condition: a mask, a sketch, a neighbour.

  Attributes:
    name: Its key in the batch.
    channels: Channels of the image.
    dropout: Fraction of examples in which training hides it.
  """

  name: str
  channels: int
  dropout: float = 0.0

  @property
  def width(self) -> int:
    """Channels of the network's input: the image's, and one of 1 if given."""
    return self.channels + 1


def standardised(
  numbers: Mapping[str, np.ndarray], dropout: Mapping[str, float] | float = 0.0
) -> tuple[Vector, ...]:
  """The ``Conditions.vectors`` of a data source's ``vectors``.

  Args:
    numbers: [N, n] by name, of all examples.
    dropout: Fraction of examples in which training hides each; one number, or
      by name.

  Returns:
    The parts, with mean and standard deviation over the data.

  Raises:
    ValueError: If a rate is not in [0, 1) or names no part, or a part is
      constant or not finite.
  """
  rates = dropout
  if not isinstance(rates, Mapping):
    rates = dict.fromkeys(numbers, rates)
  for name, rate in rates.items():
    if name not in numbers or not 0 <= rate < 1:
      raise ValueError(
        f"dropout of {name!r} is {rate}: must be in [0, 1), of one of "
        f"{', '.join(numbers) or 'no vectors'}"
      )
  parts = []
  for name, array in numbers.items():
    wide = np.asarray(array, np.float64)
    if wide.ndim != 2 or not np.isfinite(wide).all():
      raise ValueError(
        f"{name} is {list(wide.shape)}: must be [N, n], and all of it finite"
      )
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    if not (std > 0).all():
      raise ValueError(
        f"{name} is the same in all examples and says nothing: leave it out"
      )
    rate = rates.get(name, 0.0)
    parts.append(Vector(name, tuple(mean.tolist()), tuple(std.tolist()), rate))
  return tuple(parts)


def vector(
  parts: Sequence[Vector], numbers: Mapping[str, Any], count: int
) -> Float[Array, "B width"]:
  """All parts in a row, each standardised and followed by 1; zeros if hidden.

  The 1 distinguishes an average value from a hidden one.

  Args:
    parts: The parts in the order of the row.
    numbers: Given values by name: [B, n], or [n] for the whole batch.
    count: B.

  Returns:
    The row of each example.

  Raises:
    ValueError: If the values of a part have a wrong shape or are not finite.
  """
  row = []
  for part in parts:
    n = len(part.mean)
    given = numbers.get(part.name)
    if given is None:
      row.append(jnp.zeros((count, n + 1)))
      continue
    _check_finite(part.name, given)
    given = jnp.asarray(given, jnp.float32)
    if given.shape in ((), (count,)) and n == 1:
      given = given[..., None]
    if given.shape not in ((count, n), (n,)):
      raise ValueError(
        f"{part.name} is {list(given.shape)}: must be [{count}, {n}], or [{n}]"
        " for all alike"
      )
    given = jnp.broadcast_to(given, (count, n))
    scaled = (given - jnp.array([part.mean])) / jnp.array([part.std])
    row.append(jnp.concatenate([scaled, jnp.ones((count, 1))], axis=1))
  return jnp.concatenate(row, axis=1)


def _check_finite(name: str, values: Any) -> None:
  known = concrete.known(values)
  if known is not None and not np.isfinite(known).all():
    raise ValueError(f"{name} has values that are NaN or infinite")


def planes(
  parts: Sequence[Plane],
  pictures: Mapping[str, Any],
  count: int,
  size: tuple[int, ...] | None,
) -> Float[Array, "B H W width"]:
  """All images as channels, each followed by a channel of 1; zeros if hidden.

  The 1 distinguishes a grey image from a hidden one.

  Args:
    parts: The parts in the order of the channels.
    pictures: Given images by name: [B, H, W, C] in [-1, 1], or [H, W, C] for
      the whole batch.
    count: B.
    size: (H, W); None takes that of the first image given.

  Returns:
    The channels of each example.

  Raises:
    ValueError: If an image has a wrong shape, integers or values that are not
      finite, or there is neither a size nor an image.
  """
  known = [pictures[p.name] for p in parts if pictures.get(p.name) is not None]
  if size is None and not known:
    raise ValueError(
      f"all of {', '.join(part.name for part in parts)} are hidden, so that"
      " their size is not known: name it as size=(H, W)"
    )
  height, width = jnp.shape(known[0])[-3:-1] if size is None else size
  row = []
  for part in parts:
    shape = (count, height, width, part.channels)
    given = pictures.get(part.name)
    if given is None:
      row.append(jnp.zeros((*shape[:3], part.width)))
      continue
    given = jnp.asarray(given)
    process.check_floats(given, part.name)
    _check_finite(part.name, given)
    if given.shape not in (shape, shape[1:]):
      raise ValueError(
        f"{part.name} is {list(given.shape)}: must be {list(shape)}, or"
        f" {list(shape[1:])} for all alike"
      )
    given = jnp.broadcast_to(given.astype(jnp.float32), shape)
    row.append(jnp.concatenate([given, jnp.ones((*shape[:3], 1))], axis=-1))
  return jnp.concatenate(row, axis=-1)


def width(parts: Sequence[Vector | Plane]) -> int:
  """The total width of parts, that of ``vector`` or ``planes``."""
  return sum(part.width for part in parts)


def drop(
  key: Key[Array, ""],
  row: Float[Array, "B ... width"],
  parts: Sequence[Vector | Plane],
) -> Float[Array, "B ... width"]:
  """Hides each part of each example with the part's own probability."""
  known = [
    ~jax.random.bernoulli(jax.random.fold_in(key, k), part.dropout, (len(row),))
    for k, part in enumerate(parts)
  ]
  return hide(parts, row, known)


def hide(
  parts: Sequence[Vector | Plane],
  row: Float[Array, "B ... width"],
  known: Sequence[Bool[Array, " B"]],
) -> Float[Array, "B ... width"]:
  """The row, or the channels, with the parts that are not known set to 0."""
  widths = [part.width for part in parts]
  mask = jnp.repeat(
    jnp.stack(known, axis=1), np.array(widths), axis=1,
    total_repeat_length=sum(widths),
  )  # fmt: skip
  whole = (len(row), *(1,) * (row.ndim - 2), sum(widths))
  return jnp.where(mask.reshape(whole), row, 0)
