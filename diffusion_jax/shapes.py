"""How messages name shapes."""

from collections.abc import Iterable, Sequence


def by(shape: Iterable[int]) -> str:
  """The sides of a shape.

  >>> by((32, 32, 3))
  '32 x 32 x 3'
  """
  return " x ".join(map(str, shape))


def noun(shape: Sequence[int], count: int = 1) -> str:
  """The word for examples of a shape.

  >>> noun((32, 32, 3)), noun((64, 1), count=2)
  ('image', 'signals')
  """
  kinds = {2: "signal", 3: "image", 4: "volume"}
  return kinds[len(shape)] + ("" if count == 1 else "s")
