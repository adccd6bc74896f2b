"""What a network has to be, for everything outside this room."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from diffusion_jax import concrete

# All that a network may be conditioned on, besides x_t and the time.
PARTS = ("y", "low_res", "low_res_t", "augment", "s", "vector", "planes")


@runtime_checkable
class Backbone(Protocol):
  """A network: (x_t, time, cond) -> a prediction of x_t's size.

  Any Flax module with two names more is one. ``init`` and ``apply`` take, after
  what Flax wants first, x_t [B, *size, C], a time for each example, a condition
  or None, and the keyword ``train``, which lets dropout draw with the rng
  "dropout". What comes out is float32.
  """

  @property
  def takes(self) -> Sequence[str]:
    """The parts of a condition that it can be given, out of ``PARTS``."""
    ...

  def check_size(self, size: Sequence[int], /) -> None:
    """Refuses images that it cannot take.

    Args:
      size: (H, W), or (L,) of signals, (D, H, W) of volumes.

    Raises:
      ValueError: In one line: the size, what is allowed, the nearest that is.
    """
    ...

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Parameters, from a key and examples of what ``apply`` takes."""
    ...

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """The prediction."""
    ...


def parts(
  cond: Mapping[str, Any] | None, takes: Sequence[str] = PARTS
) -> tuple[Any, ...]:
  """The parts of a condition, None where one is missing.

  Args:
    cond: The condition.
    takes: The parts that a network can be given.

  Returns:
    One for each of ``takes``.

  Raises:
    ValueError: If there is another, or it is no mapping.
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
      f"the condition {unknown[0]!r} is not one of {', '.join(takes)}"
    )
  return tuple(cond.get(name) for name in takes)


def check_classes(net: Any, y: Any) -> None:
  """Refuses classes for a network without, none for one with, and unknown ones.

  Raises:
    ValueError: Saying which.
  """
  if (y is None) != (net.num_classes is None):
    raise ValueError(
      f"a network with num_classes={net.num_classes} was called with "
      f"{'no classes' if y is None else 'classes'}"
    )
  concrete.check_range("class y", y, 0, (net.num_classes or 0) - 1)


def check_low_res(net: Any, low_res_t: Any) -> None:
  """As ``check_classes``, of the noise on small pictures.

  Raises:
    ValueError: Saying which.
  """
  if net.noisy_low_res != (low_res_t is not None):
    raise ValueError(
      f"a network with noisy_low_res={net.noisy_low_res} was called "
      f"{'with' if low_res_t is not None else 'without'} low_res_t"
    )


def check_vector(net: Any, vector: Any) -> None:
  """As ``check_classes``, of the numbers of each example.

  Raises:
    ValueError: Saying how many are expected.
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
    t: Where a step begins.
    s: Where it leads; by default nowhere.

  Returns:
    The length; None for a network without spans.

  Raises:
    ValueError: If such a network was called with s.
  """
  if s is not None and not net.spans:
    raise ValueError("a network without spans was called with a second time s")
  return t - (t if s is None else s) if net.spans else None


def beside(
  x_t: jax.Array, low_res: jax.Array | None, planes: jax.Array | None = None
) -> jax.Array:
  """x_t and, in further channels, pictures, and small ones enlarged."""
  joined = [x_t]
  if low_res is not None:
    size = (*x_t.shape[:-1], low_res.shape[-1])
    joined.append(jax.image.resize(low_res, size, "linear"))
  if planes is not None:
    joined.append(planes)
  return jnp.concatenate(joined, axis=-1) if joined[1:] else x_t


def check_halvings(size: Sequence[int], levels: int) -> None:
  """Refuses images that a U-Net of this many levels cannot halve.

  Raises:
    ValueError: Naming the nearest size that will do.
  """
  check_multiple(
    size,
    2 ** (levels - 1),
    f"a U-Net of {levels} levels halves its input {levels - 1} times",
  )


def check_multiple(size: Sequence[int], unit: int, why: str) -> None:
  """Refuses a size of which an axis is no multiple of a number.

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
  below = " x ".join(str(max(n // unit, 1) * unit) for n in size)
  above = " x ".join(str(max(-(-n // unit), 1) * unit) for n in size)
  nearest = below if below == above else f"{below} or {above}"
  raise ValueError(
    f"{why}; {' x '.join(map(str, size))} must be multiples of {unit}: the "
    f"nearest is {nearest}"
  )
