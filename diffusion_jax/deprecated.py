"""Names that have moved, which stay where they were for one release."""

import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
  """The ``__getattr__`` of a module that names have left.

  Args:
    module: Its name.
    places: Where each old name is now, "module:name".

  Returns:
    A function that answers with the new one, and a ``DeprecationWarning``.
  """

  def __getattr__(name: str) -> Any:
    if name not in places:
      raise AttributeError(f"module {module!r} has no attribute {name!r}")
    now = places[name]
    warn(f"{module}.{name}", now.replace(":", "."))
    return pkgutil.resolve_name(now)

  return __getattr__


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
  """Says that a name is deprecated, and what to write instead."""
  warnings.warn(
    f"{old} is now {new}; the old name goes with 0.3",
    DeprecationWarning,
    stacklevel=stacklevel,
  )
