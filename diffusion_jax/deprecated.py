"""Names that have moved; the old ones work for one more release."""

import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
  """The ``__getattr__`` of a module whose names have moved.

  Args:
    module: Its name.
    places: The new place of each old name, "module:name".

  Returns:
    A function that returns the new one with a ``DeprecationWarning``.
  """

  def __getattr__(name: str) -> Any:
    if name not in places:
      raise AttributeError(f"module {module!r} has no attribute {name!r}")
    now = places[name]
    warn(f"{module}.{name}", now.replace(":", "."))
    return pkgutil.resolve_name(now)

  return __getattr__


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
  """Warns that a name is deprecated, with the new name."""
  warnings.warn(
    f"{old} is now {new}; the old name goes with 0.3",
    DeprecationWarning,
    stacklevel=stacklevel,
  )
