"""The interface of a network, for the rest of the library."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import concrete, shapes

# Everything that a network can be conditioned on, besides x_t and the time.
PARTS = ("y", "low_res", "low_res_t", "augment", "s", "vector", "planes")


@runtime_checkable
class Backbone(Protocol):
  """A network: (x_t, time, cond) -> a prediction of x_t's size.

  Any Flax module with ``takes`` and ``check_size`` is one. Its ``init`` and
  ``apply`` take, after Flax's own arguments, x_t [B, *size, C], a time for each
  example, a condition or None, and the keyword ``train``, which turns on
  dropout (rng "dropout"). The output is float32.
  """

  @property
  def takes(self) -> Sequence[str]:
    """The parts of a condition that it accepts, out of ``PARTS``."""
    ...

  def check_size(self, size: Sequence[int], /) -> None:
    """Checks that it can process images of this size.

    Args:
      size: (H, W), or (L,) for signals, (D, H, W) for volumes.

    Raises:
      ValueError: If it cannot. One line has the size, what is allowed, and the
        nearest allowed size.
    """
    ...

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Parameters, from a key and example arguments of ``apply``."""
    ...

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """The prediction."""
    ...


def parts(
  cond: Mapping[str, Any] | None,
  takes: Sequence[str] = PARTS,
  x_t: jax.Array | None = None,
) -> tuple[Any, ...]:
  """The parts of a condition, None where one is missing.

  Args:
    cond: The condition.
    takes: The parts that a network accepts.
    x_t: The images, if each part is to be of as many: one of a single example
      would be broadcast to them all.

  Returns:
    One for each of ``takes``.

  Raises:
    ValueError: If the condition has another part, one of another number of
      examples than x_t, or is not a mapping.
  """
  cond = {} if cond is None else cond
  if not isinstance(cond, Mapping):
    raise ValueError(
      f"the condition is a {type(cond).__name__}; pass a dict of "
      f"{', '.join(takes)}"
    )
  unknown = [name for name in cond if name not in takes]
  if unknown:
    raise ValueError(
      f"the condition {unknown[0]!r} is not one of "
      + (", ".join(takes) or "those of this network, it takes none")
    )
  for name, value in cond.items():
    if x_t is not None and np.ndim(value) and len(value) != len(x_t):
      raise ValueError(
        f"cond[{name!r}] has {len(value)} examples, the batch has {len(x_t)}"
      )
  return tuple(cond.get(name) for name in takes)


def check_classes(net: Any, y: Any) -> None:
  """Checks that a network with classes gets known ones, and another gets none.

  Raises:
    ValueError: If not; the message says which.
  """
  if (y is None) != (net.num_classes is None):
    raise ValueError(
      f"a network with num_classes={net.num_classes} was called with "
      f"{'no classes' if y is None else 'classes'}"
    )
  if y is not None and np.ndim(y) != 1:
    raise ValueError(
      f"classes y have shape {np.shape(y)}: pass one number for each example"
    )
  concrete.check_range("class y", y, 0, (net.num_classes or 0) - 1)


def check_low_res(net: Any, low_res_t: Any) -> None:
  """As ``check_classes``, for the noise on small images.

  Raises:
    ValueError: If not; the message says which.
  """
  if net.noisy_low_res != (low_res_t is not None):
    raise ValueError(
      f"a network with noisy_low_res={net.noisy_low_res} was called "
      f"{'with' if low_res_t is not None else 'without'} low_res_t"
    )


def check_vector(net: Any, vector: Any) -> None:
  """As ``check_classes``, for the numbers of each example.

  Raises:
    ValueError: If not; the message says how many are expected.
  """
  if (0 if vector is None else vector.shape[-1]) != net.vector:
    raise ValueError(
      f"a network with vector={net.vector} was called with "
      f"{'none' if vector is None else f'one of {vector.shape[-1]} numbers'}"
    )


def span(net: Any, t: jax.Array, s: jax.Array | None) -> jax.Array | None:
  """The length t - s of a step, for a network with ``spans``.

  Args:
    net: The network.
    t: The time where a step begins.
    s: The time it moves to; by default t.

  Returns:
    The length; None for a network without spans.

  Raises:
    ValueError: If a network without spans gets s.
  """
  if s is not None and not net.spans:
    raise ValueError("a network without spans was called with a second time s")
  return t - (t if s is None else s) if net.spans else None


def beside(
  x_t: jax.Array, low_res: jax.Array | None, planes: jax.Array | None = None
) -> jax.Array:
  """x_t and, in further channels, planes and upsampled small images.

  Raises:
    ValueError: If planes are of another size than x_t.
  """
  joined = [x_t]
  if low_res is not None:
    size = (*x_t.shape[:-1], low_res.shape[-1])
    joined.append(jax.image.resize(low_res, size, "linear"))
  if planes is not None:
    size = x_t.shape[1:-1]
    if planes.shape[1:-1] != size:
      raise ValueError(
        f"cond['planes'] are of {shapes.by(planes.shape[1:-1])}, the images of "
        f"{shapes.by(size)}"
      )
    joined.append(planes)
  return jnp.concatenate(joined, axis=-1) if joined[1:] else x_t


def check_halvings(size: Sequence[int], levels: int) -> None:
  """Checks that a U-Net of this many levels can halve images of this size.

  Raises:
    ValueError: If it cannot; the message has the nearest size that works.
  """
  check_multiple(
    size,
    2 ** (levels - 1),
    f"a U-Net of {levels} levels halves its input {levels - 1} times",
  )


def check_multiple(size: Sequence[int], unit: int, why: str) -> None:
  """Raises ValueError unless every axis is a multiple of ``unit``.

  >>> check_multiple((8, 10), 4, "patches are of 4 x 4")
  Traceback (most recent call last):
  ...
  ValueError: patches are of 4 x 4; 8 x 10 must be multiples of 4: the \
nearest is 8 x 8 or 8 x 12
  """
  if not size:
    raise ValueError(
      "x_t has no axis between examples and channels: must be [B, L, C], "
      "[B, H, W, C] or [B, D, H, W, C]"
    )
  if all(n % unit == 0 and n > 0 for n in size):
    return
  below = shapes.by(max(n // unit, 1) * unit for n in size)
  above = shapes.by(max(-(-n // unit), 1) * unit for n in size)
  nearest = below if below == above else f"{below} or {above}"
  raise ValueError(
    f"{why}; {shapes.by(size)} must be multiples of {unit}: the "
    f"nearest is {nearest}"
  )
