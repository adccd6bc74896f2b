"""A run directory: everything about one training run, described by itself.

config.json      the configuration, as it was run
data.json        what it was trained on: path, shape, classes, fingerprint
changes.jsonl    what of the two changed on the way, and after which step
versions.json    the packages it was run with
metrics.jsonl    one line per logged step;  tensorboard/ the same
previews.jsonl   one line per preview and average: colours, saturation, ...
imported.json    where the weights came from, if they were not trained here
samples/         pictures made on the way
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
  """Python, the packages and the devices this process runs with."""
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
  """What later commands need to know of the data of a configuration.

  Without "values" they are bytes, as in all runs that are older than it.
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
  """Where data lie, from wherever a command is run; None where no path does."""
  path = pathlib.Path(os.path.expanduser(name))
  named = name == "digits" or not name or not path.exists()
  return None if named else str(path.absolute())


def config_json(config: Config) -> dict[str, Any]:
  """A configuration as config.json has it."""
  return json.loads(config.to_json_best_effort())


@contextlib.contextmanager
def opened(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a run directory, or opens an old one, and keeps others out of it.

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
  """Refuses what can be no run directory, or holds something else.

  An empty volume, a link to a directory and what a killed start left are as
  good as nothing.

  Raises:
    ValueError: Saying what is there.
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
  """Refuses a name that tensorstore cannot open, or no line can hold.

  Raises:
    ValueError: If it is no UTF-8, or has a control character.
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

  The last is what makes it a run: a process killed at any moment leaves a run,
  or what the next start takes for nothing.
  """
  for name, content in (
    ("data", data), ("versions", versions()), ("config", config),
  ):  # fmt: skip
    replace(workdir / f"{name}.json", json.dumps(content, indent=2) + "\n")


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that is at all times the old one or the new one, whole."""
  new = path.with_name(f".{path.name}.new")
  new.write_text(text)
  new.replace(path)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from training in the same directory.

  Raises:
    ValueError: If another does.
  """
  with alone(
    workdir,
    f"another process is training in {workdir}: wait for it or stop it, or "
    "choose another `workdir`",
  ):
    yield


@contextlib.contextmanager
def alone(folder: pathlib.Path, otherwise: str) -> Iterator[None]:
  """Holds the lock of a folder.

  The system lets go of the lock when the process ends, however it ends. Of
  the processes of one command, the first holds it.

  Args:
    folder: The folder.
    otherwise: What to say where another process holds it.

  Raises:
    ValueError: If another does.
  """
  if jax.process_index() > 0:
    yield
    return
  lock = filelock.FileLock(folder / "lock")
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    raise ValueError(otherwise) from None
  try:
    yield
  finally:
    lock.release()


def load(workdir: pathlib.Path) -> tuple[Config, dict]:
  """Reads the configuration and the data description of a run.

  Raises:
    ValueError: If this is not a run directory; names the nearest that is.
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
  """A run's configuration, to be overridden: its keys have their types.

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
    # Where the data were, unless they have come along to another machine.
    were = {"name": data.get("path"), **data.get("beside", {})}
    for key, was in were.items():
      places = [p for p in (was, config["data"].get(key)) if p]
      there = [p for p in places if os.path.exists(os.path.expanduser(p))]
      if was:
        config["data"][key] = (there or places)[0]
    return make(**config)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{workdir} is not a run of experiments.train: {error}"
    ) from error


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
  """The end of an error line: the runs in it, or of similar name beside it."""
  if inside := sorted(str(p.parent) for p in workdir.glob("*/config.json")):
    return f"; in it there is {', '.join(inside[:3])}"
  runs = [str(p.parent) for p in workdir.parent.glob("*/config.json")]
  near = difflib.get_close_matches(str(workdir), runs, n=3, cutoff=0.3)
  return f"; there is {', '.join(near)}" if near else ""


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of a .jsonl file; a line torn or damaged by a kill is skipped."""
  rows = []
  text = path.read_text(errors="replace") if path.exists() else ""
  for line in text.splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return [row for row in rows if isinstance(row, dict)]
