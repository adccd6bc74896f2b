"""Old names of commands that have moved to ``tools``."""

import importlib.abc
import importlib.util
import warnings

# For one release.
MOVED = (
  "benchmark", "efficientnet", "figures", "protocol", "soak", "solvers",
  "solvers_diffusers",
)  # fmt: skip


class Finder(importlib.abc.MetaPathFinder):
  """Finds ``experiments.NAME`` in ``experiments.tools``, with a warning."""

  def find_spec(self, fullname, path=None, target=None):
    """The old name, made of the new one's file."""
    package, _, name = fullname.rpartition(".")
    if package != "experiments" or name not in MOVED:
      return None
    new = f"experiments.tools.{name}"
    # In the name of the program: others are not shown.
    warnings.warn_explicit(
      f"{fullname} is now {new}; the old name goes with 0.3",
      DeprecationWarning, filename=fullname, lineno=1, module="__main__",
    )  # fmt: skip
    spec = importlib.util.find_spec(new)
    if spec is not None and spec.submodule_search_locations is not None:
      spec = importlib.util.find_spec(f"{new}.__main__")
    if spec is None or spec.origin is None:
      return None
    return importlib.util.spec_from_file_location(fullname, spec.origin)
