"""A run directory: everything about one training run.

config.json      the configuration
data.json        the data: path, shape, classes, fingerprint
changes.jsonl    changes of these two during the run, and after which step
versions.json    the versions of the packages
metrics.jsonl    one line per logged step;  tensorboard/ the same
previews.jsonl   one line per preview and average: colours, saturation, ...
imported.json    where the weights came from, if they were not trained here
samples/         sample grids
checkpoints/     the training state
lock             held by the process that trains
"""

import contextlib
import difflib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import filelock
import jax
from jax.experimental import multihost_utils

from diffusion_jax.data.sources import CONTROL
from diffusion_jax.data.values import BYTES
from diffusion_jax.runs import configuration
from diffusion_jax.runs.configuration import Config, is_classifier

# What an empty directory may hold: a volume's own folder, a file manager's
# file, and, beside the lock, what a killed start has written.
_NOTHING = {"lost+found", "Thumbs.db"}
_STARTED = {"lock", "data.json", "versions.json"}

SECTIONS = (
  "data", "schedule", "model", "optim", "ema", "target", "variance", "preview",
  "sampling",
)  # fmt: skip

# Paths in ``config.data`` besides the data's own.
BESIDE = ("cond", "data_dir")

# What a data.json must have.
DATA = {
  "name": lambda x: isinstance(x, str),
  "examples": lambda x: isinstance(x, int),
  "image_shape": lambda x: (
    isinstance(x, list)
    and len(x) in (2, 3, 4)
    and all(isinstance(n, int) and n > 0 for n in x)
  ),
  "num_classes": lambda x: isinstance(x, int),
  "class_names": lambda x: isinstance(x, list),
}

PACKAGES = (
  "diffusion_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint",
  "grain", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
  """Versions of Python and packages, and the devices of this process."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a tree that runs as is
      found[name] = "not installed"
  device = jax.devices()[0]
  found["devices"] = f"{jax.device_count()} x {device.device_kind}"
  return found


def describe(source, config: Config) -> dict[str, Any]:
  """What later commands need to know about the data of a configuration.

  Without "values" they are bytes, as in older runs.
  """
  values = source.values
  meaning = {} if values == BYTES else {"values": values.to_json()}
  beside = {k: _path(config.data[k]) for k in BESIDE if config.data.get(k)}
  if any(beside.values()):
    meaning |= {"beside": beside}
  return {
    "name": source.name,
    "path": _path(config.data.name),
    "examples": len(source),
    "image_shape": list(source.image_shape),
    "num_classes": source.num_classes,
    "class_names": list(source.class_names),
    "fingerprint": source.fingerprint,
  } | meaning


def _path(name: str) -> str | None:
  """The absolute path of data; None if their name is not a path."""
  path = pathlib.Path(os.path.expanduser(name))
  named = name == "digits" or not name or not path.exists()
  return None if named else str(path.absolute())


def config_json(config: Config) -> dict[str, Any]:
  """A configuration in the form of config.json."""
  return json.loads(config.to_json_best_effort())


@contextlib.contextmanager
def opened(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a run directory or opens an existing one, and locks it.

  Raises:
    ValueError: If it holds something else, or another process trains in it.
  """
  check_place(workdir)
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
  multihost_utils.sync_global_devices("run directory made")
  with locked(workdir):
    yield


def check_place(workdir: pathlib.Path) -> None:
  """Checks that a path can become a run directory, or is one.

  An empty volume, a link to a directory and what a killed start left count as
  empty.

  Raises:
    ValueError: If not; the message has what is there.
  """
  check_name(workdir)
  if odd := sorted(set("*?[") & set(str(workdir.absolute()))):
    raise ValueError(
      f"`workdir={workdir}`: Orbax takes {' '.join(odd)} in a path for a "
      "pattern and would lose its checkpoints; choose another"
    )
  if workdir.is_symlink() and not workdir.exists():
    raise ValueError(f"{workdir} is a broken link: create its target")
  for place in (workdir, *workdir.parents):
    if place.exists() and not place.is_dir():
      raise ValueError(f"{place} is a file; choose another `workdir`")
  if is_run(workdir) or not workdir.is_dir():
    return
  names = {path.name for path in workdir.iterdir()} - _NOTHING
  names = {name for name in names if not name.startswith(".")}
  if names - (_STARTED if "lock" in names else set()):
    raise ValueError(
      f"{workdir} is not empty and not a run directory; choose another "
      "`workdir`"
    )


def check_name(workdir: pathlib.Path) -> None:
  """Checks that tensorstore can open the name, and that it fits on a line.

  Raises:
    ValueError: If it is not UTF-8, or has a control character.
  """
  if CONTROL.search(str(workdir)):
    raise ValueError(
      f"`workdir={str(workdir)!r}` has a control character: rename it, or "
      "choose another"
    )
  try:
    str(workdir).encode()
  except UnicodeEncodeError:
    raise ValueError(
      f"`workdir={str(workdir)!r}` is not UTF-8: rename it, or choose another"
    ) from None


def describe_run(workdir: pathlib.Path, config: dict, data: dict) -> None:
  """Writes the three .json files of a run directory.

  Only the last makes it a run: a process killed at any moment leaves a run, or
  a directory that the next start takes as empty.
  """
  for name, content in (
    ("data", data), ("versions", versions()), ("config", config),
  ):  # fmt: skip
    replace(workdir / f"{name}.json", json.dumps(content, indent=2) + "\n")


def replace(path: pathlib.Path, text: str) -> None:
  """Replaces a file atomically."""
  new = path.with_name(f".{path.name}.new")
  new.write_text(text)
  new.replace(path)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from training in the same directory.

  Raises:
    ValueError: If another process trains in it.
  """
  with alone(
    workdir,
    f"another process is training in {workdir}: wait for it or stop it, or "
    "choose another `workdir`",
  ):
    yield


@contextlib.contextmanager
def alone(folder: pathlib.Path, otherwise: str) -> Iterator[None]:
  """As ``lock``, which the first process of a command of several holds."""
  if jax.process_index() > 0:
    yield
    return
  with lock(folder, otherwise):
    yield


@contextlib.contextmanager
def lock(folder: pathlib.Path, otherwise: str) -> Iterator[None]:
  """Holds the lock of a folder, without starting JAX.

  The system releases the lock when the process ends, however it ends.

  Args:
    folder: The folder.
    otherwise: The message if another process holds it.

  Raises:
    ValueError: If another process holds it.
  """
  held = filelock.FileLock(folder / "lock")
  try:
    held.acquire(timeout=0)
  except filelock.Timeout:
    raise ValueError(otherwise) from None
  try:
    yield
  finally:
    held.release()


def load(workdir: pathlib.Path) -> tuple[Config, dict]:
  """Reads the configuration and the data description of a run.

  Raises:
    ValueError: If this is not a run directory; suggests the nearest one.
  """
  check_name(workdir)
  if not workdir.is_dir():
    raise ValueError(f"no run directory {workdir}{_nearest(workdir)}")
  if not (workdir / "config.json").is_file():
    raise ValueError(
      f"{workdir} is not a run directory, it has no config.json"
      f"{_nearest(workdir)}"
    )
  config, data = changeable(workdir), read_json(workdir, "data")
  for key, right in DATA.items():
    if not right(data.get(key)):
      raise ValueError(
        f"{workdir / 'data.json'} is damaged: {key} is {data.get(key)!r}"
      )
  return config, data


def is_run(workdir: pathlib.Path) -> bool:
  """Whether a directory holds a run."""
  return (workdir / "config.json").is_file()


def changeable(workdir: pathlib.Path) -> Config:
  """A run's configuration with typed keys, so that flags can override it.

  Raises:
    ValueError: If its keys are not those of a training command.
  """
  config, data = read_json(workdir, "config"), read_json(workdir, "data")
  make = (
    configuration.make_classifier
    if is_classifier(config)
    else configuration.make
  )
  # Keys that are newer than the run have their usual values; a section of old
  # that is missing was lost.
  missing = [name for name in SECTIONS if name not in config]
  if missing:
    raise ValueError(f"{workdir / 'config.json'} has no {missing[0]}")
  try:
    # The path of the data, unless they were moved to another machine as well.
    were = {"name": data.get("path"), **data.get("beside", {})}
    for key, was in were.items():
      places = [p for p in (was, config["data"].get(key)) if p]
      there = [p for p in places if os.path.exists(os.path.expanduser(p))]
      if was:
        config["data"][key] = (there or places)[0]
    return make(**config)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{workdir} is not a run of experiments.train: {error}"
    ) from error
  except ValueError as error:
    raise ValueError(f"{workdir}: {error}") from error


def read_json(workdir: pathlib.Path, name: str) -> dict:
  """Reads one of the directory's .json files.

  Raises:
    ValueError: If it is missing or not JSON; names the file.
  """
  path = workdir / f"{name}.json"
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise ValueError(f"{path} is missing from the run directory") from None
  except ValueError as error:  # JSON's and Unicode's are kinds of it
    raise ValueError(f"{path} is not valid JSON: {error}") from None
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
  return content


def _nearest(workdir: pathlib.Path) -> str:
  """The end of an error line: runs inside it, or beside it with a like name."""
  if inside := sorted(str(p.parent) for p in workdir.glob("*/config.json")):
    return f"; in it there is {', '.join(inside[:3])}"
  runs = [str(p.parent) for p in workdir.parent.glob("*/config.json")]
  near = difflib.get_close_matches(str(workdir), runs, n=3, cutoff=0.3)
  return f"; there is {', '.join(near)}" if near else ""


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of a .jsonl file; skips lines that a kill left incomplete."""
  rows = []
  text = path.read_text(errors="replace") if path.exists() else ""
  for line in text.splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return [row for row in rows if isinstance(row, dict)]
