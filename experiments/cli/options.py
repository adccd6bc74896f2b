"""Flags of options: the fields of a dataclass, see ``runs.options``."""

import dataclasses
import pathlib
from typing import Any, TypeVar

from absl import flags

from diffusion_jax.runs import options
from diffusion_jax.runs.options import SamplingOptions
from experiments.cli import shell

Options = TypeVar("Options", bound=SamplingOptions)

_DEFINE = {
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
  tuple: flags.DEFINE_list,
}


def define(values: flags.FlagValues, kind: type[Options]) -> flags.FlagValues:
  """Defines --workdir and a flag for each option.

  Args:
    values: Where to define them.
    kind: The class of the options.

  Returns:
    ``values``.
  """
  flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
  for field in dataclasses.fields(kind):
    default: Any = field.default
    text = shell.in_flags(field.metadata["text"])
    if among := field.metadata.get("among"):
      flags.DEFINE_enum(
        field.name, default, list(among), text, flag_values=values
      )
      continue
    bounds = {
      name: field.metadata[bound]
      for name, bound in (("lower_bound", "least"), ("upper_bound", "most"))
      if bound in field.metadata
    }
    make = _DEFINE.get(options.kind(kind, field.name), flags.DEFINE_string)
    if "by_name" in field.metadata:
      make = flags.DEFINE_string
    if isinstance(default, tuple):
      default = ",".join(default) or None
    make(field.name, default, text, flag_values=values, **bounds)
  return values


def workdir(values: flags.FlagValues) -> pathlib.Path:
  """The path in --workdir.

  Raises:
    ValueError: If the flag is missing.
  """
  if values.workdir is None:
    raise ValueError("--workdir is missing: the directory of a run")
  return pathlib.Path(values.workdir)


def read(values: flags.FlagValues, kind: type[Options]) -> Options:
  """The options of a command line."""
  names = [field.name for field in dataclasses.fields(kind)]
  said: dict[str, Any] = {name: values[name].value for name in names}
  return kind(**said)
