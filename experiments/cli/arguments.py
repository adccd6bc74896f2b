"""The command line: flags and configuration files."""

import contextlib
import functools
import math
import operator
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Sequence

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from diffusion_jax import models
from diffusion_jax.runs import configuration, console
from diffusion_jax.runs.configuration import Config
from experiments.cli import shell

CONFIGS = pathlib.Path(__file__).parents[1]

# The override that decides which others exist.
NETWORK = "--config.model.name"


def asks_help(argv: Sequence[str]) -> bool:
  """Whether a command line asks what there is to ask for."""
  return "--help" in argv or "-h" in argv


def parse(argv: Sequence[str], values: flags.FlagValues) -> flags.FlagValues:
  """Parses a command line into ``values``.

  ``--config=PATH`` is looked up in the working directory, then in
  experiments/; ``PATH:variant`` passes a variant to its ``get_config``.

  Args:
    argv: The command line, the program's name first.
    values: With the flags defined.

  Returns:
    ``values``, parsed.

  Raises:
    SystemExit: Status 2 after one line with the mistake and the nearest valid
      name; status 0 after ``--help``.
  """
  if asks_help(argv):
    console.say(_help(values))
    raise SystemExit(0)
  with _flag_errors():
    given = _canonical(argv)
    known = _overrides(argv) if "config" in values else given
    rest = values([arg for arg in known if not _NONE.fullmatch(arg)])
    if len(rest) > 1:
      raise shell.fail(
        f"{rest[1]!r} is not a flag; flags look like --name=value"
      )
    for name in values:
      value = values[name].value
      if isinstance(value, float) and not math.isfinite(value):
        raise shell.fail(f"--{name}={value} must be a finite number")
    if "config" in values:
      dict(values.config)  # A broken file is only reported when it is read.
      _set_none(values.config, filter(None, map(_NONE.fullmatch, given)))
  return values


@contextlib.contextmanager
def _flag_errors() -> Iterator[None]:
  """Turns an error in a flag into one line and status 2."""
  try:
    yield
  except flags.Error as error:
    raise shell.fail(error) from error
  except (AttributeError, KeyError) as error:
    # ConfigDict's own words, "'lrr'\nDid you mean "lr" instead of "lrr"?",
    # arrive quoted once or twice.
    text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
    raise shell.fail(f"unknown configuration key {text}") from error
  except (ValueError, TypeError, OSError) as error:
    raise shell.fail(error) from error


# config_flags would expect a number, or take the word as a string.
_NONE = re.compile(r"--config\.([\w.]+)=None")


def _set_none(config: Config, found: Iterable[re.Match[str]]) -> None:
  """Sets keys to None.

  Raises:
    ValueError: If a key cannot be None; the message has those that can.
  """
  optional = list(_optional(config))
  for match in found:
    name = match[1]
    if name not in optional:
      raise ValueError(
        f"--config.{name}=None: only {', '.join(optional)} can be None"
      )
    *sections, key = name.split(".")
    functools.reduce(operator.getitem, sections, config)[key] = None


def _optional(config: Config, prefix: str = "") -> Iterator[str]:
  """The keys that are references with a type, in configs.common.make."""
  for key, value in config.items(preserve_field_references=True):
    if isinstance(value, config_dict.ConfigDict):
      yield from _optional(value, f"{prefix}{key}.")
    elif isinstance(value, config_dict.FieldReference):
      yield prefix + key


def _canonical(argv: Sequence[str]) -> list[str]:
  """Finds the configuration file; if a flag is given twice, the last counts.

  Otherwise config_flags would join the tuples of two overrides.
  """
  argv = _plain(argv)
  last = {arg.split("=", 1)[0]: arg for arg in argv if "=" in arg}
  kept = [a for a in argv if "=" not in a or last[a.split("=", 1)[0]] is a]
  return [_find_config(arg) for arg in kept]


def _plain(argv: Sequence[str]) -> list[str]:
  """Brings flags to one spelling.

  ``--config PATH`` becomes ``--config=PATH``; so do overrides, which are needed
  before absl knows them.
  """
  joined = list(argv[:1])
  for arg in argv[1:]:
    if re.fullmatch(r"--?config[\w.]*", joined[-1]) and not _is_flag(arg):
      joined[-1] += f"={arg}"
    else:
      joined.append(arg)
  return joined[:1] + [_spelled(arg) for arg in joined[1:]]


def _spelled(arg: str) -> str:
  """One argument, with -config as --config and the home directory for a ~.

  Shells do not expand a ~ after "=". Overrides keep theirs, which the data
  layer expands, so that a run can move to another home.

  Raises:
    SystemExit: Status 2 if the value is empty: it comes from a shell variable
      that is not set, and an empty path would be the working directory.
  """
  arg = re.sub(r"^-(?=(no)?config\b)", "--", arg)
  name, equals, value = arg.partition("=")
  if name == NETWORK:
    return f"{name}={models.named.placed(value)}"
  override = name.startswith("--config.")
  parts = [value] if override else value.split(",")
  if not arg.strip() or (equals and not all(map(str.strip, parts))):
    raise shell.fail(
      f"{name.strip() or 'a flag'} has an empty value, perhaps that of a "
      "variable that is not set: set it, or leave the flag out"
    )
  if override or not equals:
    return arg
  return f"{name}={','.join(map(os.path.expanduser, parts))}"


def _is_flag(arg: str) -> bool:
  return re.match(r"--?[A-Za-z]", arg) is not None


def _overrides(argv: Sequence[str]) -> list[str]:
  """As ``_canonical``, without the file, which is read already."""
  return [a for a in _canonical(argv) if not a.startswith("--config=")]


def _find_config(arg: str) -> str:
  """Finds the file of --config, in the working directory or in experiments/."""
  if not arg.startswith("--config="):
    return arg
  named = arg.split("=", 1)[1]
  for folder in (pathlib.Path(), CONFIGS):
    path, colon, variant = split_variant(str(folder / named))
    if pathlib.Path(path).is_file():
      return f"--config={path}{colon}{variant}"
  known = sorted(
    p.name
    for p in (CONFIGS / "configs").glob("*.py")
    if p.stem not in ("__init__", "common")
  )
  raise shell.fail(
    f"no configuration file {split_variant(named)[0]}; there are "
    + ", ".join(f"configs/{name}" for name in known)
  )


def split_variant(named: str) -> tuple[str, str, str]:
  """Splits PATH[:variant] in three; the path may contain colons.

  >>> split_variant("configs/digits.py:smoke")
  ('configs/digits.py', ':', 'smoke')
  >>> split_variant("/mnt/a:b/digits.py")
  ('/mnt/a:b/digits.py', '', '')
  """
  path, colon, variant = named.partition(".py:")
  return (f"{path}.py", ":", variant) if colon else (named, "", "")


def _read_config(named: str) -> Config:
  """Runs a configuration file; prints one line if it has an error.

  Raises:
    SystemExit: Status 2 after the line.
  """
  path, _, variant = split_variant(named)
  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(variant) if variant else get_config()
  except ValueError as error:  # the file's own words
    raise shell.fail(f"{path}: {error}") from error
  except KeyError as error:
    raise shell.fail(f"{path} has no {error}") from error
  except (
    SyntaxError, ImportError, NameError, TypeError, OSError, AttributeError,
  ) as error:  # fmt: skip
    raise shell.fail(f"{path}: {type(error).__name__}: {error}") from error
  begin = "begin with experiments.configs.common.make()"
  if not isinstance(config, ml_collections.ConfigDict):
    raise shell.fail(
      f"{path}: get_config returns no configuration but a "
      f"{type(config).__name__}; {begin}"
    )
  missing = {"seed", "num_steps", "model", "optim"} - set(config.keys())
  if missing:
    raise shell.fail(
      f"{path}: the configuration has no {', '.join(sorted(missing))}; {begin}"
    )
  return config


def _help(values: flags.FlagValues) -> str:
  module = sys.modules["__main__"]
  lines = [(module.__doc__ or "").strip(), "", "flags:"]
  for name in sorted(values):
    lines.append(f"  --{name}: {values[name].help}")
  return "\n".join(lines)


def define_config(
  values: flags.FlagValues, argv: Sequence[str], default: str
) -> None:
  """Defines --config, with its overrides in ``argv``."""
  given = [a for a in _canonical(argv) if a.startswith("--config=")]
  named = given[-1] if given else _find_config(f"--config={default}")
  config = _read_config(named.split("=", 1)[1])
  text = (
    "configuration file, PATH[:variant]; override a value with "
    "--config.key.subkey=value"
  )
  define_known_config(values, argv, config, text)


def define_known_config(
  values: flags.FlagValues,
  argv: Sequence[str],
  config: Config,
  text: str = "changes a value, as --config.key.subkey=value",
) -> None:
  """Defines --config with given values, which flags can only override."""
  with _flag_errors():  # unknown keys are found here
    overrides = _overrides(argv)
    for arg in overrides:
      if arg.startswith(f"{NETWORK}="):
        configuration.exchange_network(config, arg.partition("=")[2])
    config_flags.DEFINE_config_dict(
      "config",
      config,
      text,
      flag_values=values,
      sys_argv=[a for a in overrides if not _NONE.fullmatch(a)],
    )


def peek(argv: Sequence[str], *names: str) -> dict[str, str | None]:
  """The values of some flags, before all flags can be defined."""
  values = flags.FlagValues()
  for name in names:
    flags.DEFINE_string(name, None, "", flag_values=values)
  with _flag_errors():
    values(_plain(argv), known_only=True)
  return {name: values[name].value for name in names}


def config_name(argv: Sequence[str], default: str) -> str:
  """A short name for a run: configs/digits.py:smoke -> digits-smoke."""
  start = "--config="
  given = [a.removeprefix(start) for a in _plain(argv) if a.startswith(start)]
  path, _, variant = split_variant(given[-1] if given else default)
  stem = pathlib.Path(path).stem
  return f"{stem}-{variant}" if variant else stem
