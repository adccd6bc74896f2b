"""The command line: flags, configuration files, and errors people can read.

A user's mistake is one line on standard error and exit status 2.
"""

import contextlib
import errno
import functools
import math
import operator
import os
import pathlib
import re
import runpy
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from diffusion_jax import models
from experiments import streams
from experiments.configs import common
from experiments.configs.common import Config

CONFIGS = pathlib.Path(__file__).parent

PATHS = (
  FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError,
)  # fmt: skip

# The override that changes which others there are.
NETWORK = "--config.model.name"

# jax.random.key takes the lowest 32 bits of a seed.
MOST_SEED = 2**32 - 1


def run(main: Callable[[list[str]], object]) -> None:
  """Runs a command as a shell knows it.

  Raises:
    SystemExit: After one line, of status 130 where Ctrl-C ends it, 1 where
      the machine has not what it needs.
  """
  streams.steady()
  warnings.formatwarning = _warning
  try:
    main(sys.argv)
  except KeyboardInterrupt:
    fail("stopped by Ctrl-C")
    sys.stdout.flush()
    sys.stderr.flush()
    # XLA's threads still compute; an orderly exit under them crashes.
    os._exit(130)
  except (RuntimeError, AssertionError) as error:
    if line := _missing(error):
      raise fail(line, status=1) from None
    raise


def _missing(error: Exception) -> str | None:
  """What the machine has not, in a line, if that is what an error is of."""
  text = " ".join(str(error).split())
  place = traceback.extract_tb(error.__traceback__)[-1].filename
  if place.endswith("xla_bridge.py"):  # where JAX looks for devices
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return f"JAX_PLATFORMS={platforms!r} is not here: {text or 'no device'}"
  if "home directory" in text:  # pathlib's
    return f"{text} Set HOME"
  return None


def fail(message: object, *, status: int = 2) -> SystemExit:
  """Prints one line on standard error; returns the exit to raise."""
  line = " ".join(str(message).split())
  print(f"error: {line}", file=sys.stderr)  # noqa: T201
  return SystemExit(status)


def say(*words: object) -> None:
  """Prints a line for the person at the terminal, at once."""
  print(*words, flush=True)  # noqa: T201


def say_first(*words: object) -> None:
  """As ``say``, by the first of several processes only."""
  if jax.process_index() == 0:
    say(*words)


def _warning(message: Warning | str, *_: object, **__: object) -> str:
  """A warning as one line, in the place of ``warnings.formatwarning``."""
  return f"warning: {' '.join(str(message).split())}\n"


def command(name: str, **values: object) -> str:
  """A command of ours, as a shell takes it.

  >>> command("sample", workdir="my runs/digits")
  "python -m experiments.sample '--workdir=my runs/digits'"
  """
  named = [f"--{key}={value}" for key, value in values.items()]
  return shlex.join(["python", "-m", f"experiments.{name}", *named])


@contextlib.contextmanager
def said_if_slow(words: str, *, seconds: float = 3.0) -> Iterator[None]:
  """Says what takes so long, if it takes longer than that."""
  timer = threading.Timer(seconds, say_first, (words,))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def check_out(out: pathlib.Path) -> None:
  """Refuses, before any work, a file or folder that could not be written.

  Raises:
    ValueError: Saying why.
  """
  there = next(p for p in (out, *out.parents, pathlib.Path("/")) if p.exists())
  if out.suffix and out.is_dir():
    raise ValueError(f"--out={out} is a folder; name a file")
  if there != out and not there.is_dir():
    raise ValueError(f"--out={out}: {there} is a file; name another place")
  entered = os.W_OK | (os.X_OK if there.is_dir() else 0)
  if not os.access(there, entered):
    raise ValueError(f"--out={out}: {there} cannot be written; name another")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns what a user got wrong into one line and status 2.

  A wrong path is the user's; all else that the system refuses is not, and
  ends with status 1. So do numbers that came out as NaN.
  """
  try:
    yield
  except FloatingPointError as error:
    raise fail(error, status=1) from error
  except ValueError as error:
    raise fail(error) from error
  except OSError as error:
    raise fail(error, status=2 if isinstance(error, PATHS) else 1) from error


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
  """Turns what the system refuses, a full disk, into one line and status 1.

  The process ends there and then: what threads of libraries still hold, they
  would try to write again, and fail with many lines. Pictures that came out
  as NaN are one line and status 1, too.
  """
  try:
    yield
  except FloatingPointError as error:
    raise fail(error, status=1) from error
  except OSError as error:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or any(
      words in str(error) for words in ("No space left", "quota exceeded")
    )
    advice = "; free some space, the same command then goes on" if full else ""
    fail(f"{error}{advice}", status=1)
    sys.stdout.flush()
    os._exit(1)


def parse(argv: Sequence[str], values: flags.FlagValues) -> flags.FlagValues:
  """Parses a command line into ``values``.

  ``--config=PATH`` is looked up in the working directory, then beside this
  file; ``PATH:variant`` passes a variant to its ``get_config``.

  Args:
    argv: The command line, the program's name first.
    values: With the flags defined.

  Returns:
    ``values``, parsed.

  Raises:
    SystemExit: Status 2 after one line that names what is wrong and the
      nearest that is right; status 0 after ``--help``.
  """
  if "--help" in argv or "-h" in argv:
    say(_help(values))
    raise SystemExit(0)
  with _flag_errors():
    given = _canonical(argv)
    known = _overrides(argv) if "config" in values else given
    rest = values([arg for arg in known if not _NONE.fullmatch(arg)])
    if len(rest) > 1:
      raise fail(f"{rest[1]!r} is not a flag; flags look like --name=value")
    for name in values:
      value = values[name].value
      if isinstance(value, float) and not math.isfinite(value):
        raise fail(f"--{name}={value} must be a finite number")
    if "config" in values:
      dict(values.config)  # A broken file is only reported when it is read.
      _set_none(values.config, filter(None, map(_NONE.fullmatch, given)))
  return values


@contextlib.contextmanager
def _flag_errors() -> Iterator[None]:
  """Turns what is wrong with a flag into one line and status 2."""
  try:
    yield
  except flags.Error as error:
    raise fail(error) from error
  except (AttributeError, KeyError) as error:
    # ConfigDict's own words, "'lrr'\nDid you mean "lr" instead of "lrr"?",
    # arrive quoted once or twice.
    text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
    raise fail(f"unknown configuration key {text}") from error
  except (ValueError, TypeError, OSError) as error:
    raise fail(error) from error


# config_flags would read a number, or take the word for a text.
_NONE = re.compile(r"--config\.([\w.]+)=None")


def _set_none(config: Config, found: Iterable[re.Match[str]]) -> None:
  """Sets keys to None, of those that may be None.

  Raises:
    ValueError: For another key; names those.
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
  """Finds the configuration file; of a flag given twice the last counts.

  Without the second rule config_flags joins the tuples of two overrides.
  """
  argv = _plain(argv)
  last = {arg.split("=", 1)[0]: arg for arg in argv if "=" in arg}
  kept = [a for a in argv if "=" not in a or last[a.split("=", 1)[0]] is a]
  return [_find_config(arg) for arg in kept]


def _plain(argv: Sequence[str]) -> list[str]:
  """Spells flags in one way, whichever the user or the shell has chosen.

  ``--config PATH`` becomes ``--config=PATH``, and so do overrides, which are
  looked for before absl can know them.
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

  Shells leave a ~ alone after "=". Overrides keep theirs, which the data layer
  knows, so that a run can move to another home.

  Raises:
    SystemExit: Status 2 where the value is empty: so a shell passes on a
      variable that is not set, and an empty path is the working directory.
  """
  arg = re.sub(r"^-(?=(no)?config\b)", "--", arg)
  name, equals, value = arg.partition("=")
  if name == NETWORK:
    return f"{name}={models.named.placed(value)}"
  override = name.startswith("--config.")
  parts = [value] if override else value.split(",")
  if not arg.strip() or (equals and not all(map(str.strip, parts))):
    raise fail(
      f"{name.strip() or 'a flag'} has an empty value, perhaps that of a "
      "variable that is not set: set it, or leave the flag out"
    )
  if override or not equals:
    return arg
  return f"{name}={','.join(map(os.path.expanduser, parts))}"


def _is_flag(arg: str) -> bool:
  return re.match(r"--?[A-Za-z]", arg) is not None


def _overrides(argv: Sequence[str]) -> list[str]:
  """As ``_canonical``, without the file, which has been read."""
  return [a for a in _canonical(argv) if not a.startswith("--config=")]


def _find_config(arg: str) -> str:
  """Points --config at the file, in the working directory or beside us."""
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
  raise fail(
    f"no configuration file {split_variant(named)[0]}; there are "
    + ", ".join(f"configs/{name}" for name in known)
  )


def split_variant(named: str) -> tuple[str, str, str]:
  """PATH[:variant] in three; the path may have colons of its own.

  >>> split_variant("configs/digits.py:smoke")
  ('configs/digits.py', ':', 'smoke')
  >>> split_variant("/mnt/a:b/digits.py")
  ('/mnt/a:b/digits.py', '', '')
  """
  path, colon, variant = named.partition(".py:")
  return (f"{path}.py", ":", variant) if colon else (named, "", "")


def _read_config(named: str) -> Config:
  """Runs a configuration file; says in a line what is wrong with it.

  Raises:
    SystemExit: Status 2 after the line.
  """
  path, _, variant = split_variant(named)
  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(variant) if variant else get_config()
  except ValueError as error:  # the file's own words
    raise fail(f"{path}: {error}") from error
  except KeyError as error:
    raise fail(f"{path} has no {error}") from error
  except (
    SyntaxError, ImportError, NameError, TypeError, OSError, AttributeError,
  ) as error:  # fmt: skip
    raise fail(f"{path}: {type(error).__name__}: {error}") from error
  begin = "begin with experiments.configs.common.make()"
  if not isinstance(config, ml_collections.ConfigDict):
    raise fail(
      f"{path}: get_config returns no configuration but a "
      f"{type(config).__name__}; {begin}"
    )
  missing = {"seed", "num_steps", "model", "optim"} - set(config.keys())
  if missing:
    raise fail(
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
  """Defines --config; its overrides are looked for in ``argv``."""
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
  """Defines --config with values that are known; only overrides are taken."""
  with _flag_errors():  # unknown keys are found here
    overrides = _overrides(argv)
    for arg in overrides:
      if arg.startswith(f"{NETWORK}="):
        common.exchange_network(config, arg.partition("=")[2])
    config_flags.DEFINE_config_dict(
      "config",
      config,
      text,
      flag_values=values,
      sys_argv=[a for a in overrides if not _NONE.fullmatch(a)],
    )


def peek(argv: Sequence[str], *names: str) -> dict[str, str | None]:
  """What some flags are given as, before all flags can be defined."""
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
