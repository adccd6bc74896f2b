"""A run directory: everything about one training run, described by itself.

config.json      the configuration, as it was run
data.json        what it was trained on: name, shape, classes, fingerprint
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
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import filelock
import jax
from jax.experimental import multihost_utils

from experiments.cli import Config
from experiments.configs import common

# Keys that may change between one part of a run and the next: they steer how
# long it goes on, what it shows and where it is computed, not what is learnt.
MAY_CHANGE = (
  "num_steps", "every", "preview", "sampling", "keep_checkpoints", "fsdp",
  "steps_per_dispatch", "model.remat",
)  # fmt: skip

SECTIONS = (
  "data", "schedule", "model", "optim", "ema", "target", "variance", "preview",
  "sampling",
)  # fmt: skip

# What a data.json must have.
DATA = {
  "name": lambda x: isinstance(x, str),
  "examples": lambda x: isinstance(x, int),
  "image_shape": lambda x: (
    isinstance(x, list) and len(x) == 3 and all(isinstance(n, int) for n in x)
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


def describe(source) -> dict[str, Any]:
  """What later commands need to know of the data."""
  return {
    "name": source.name,
    "examples": len(source),
    "image_shape": list(source.image_shape),
    "num_classes": source.num_classes,
    "class_names": list(source.class_names),
    "fingerprint": source.fingerprint,
  }


def start(workdir: pathlib.Path, config: Config, data: dict) -> None:
  """Opens a run directory: a new one, or an old one of the same run.

  Of several processes, which see one directory, the first writes it.

  Raises:
    ValueError: If the directory holds something else, or a run whose
      configuration or data differ; the message names the differences.
  """
  new = json.loads(config.to_json_best_effort())
  if is_run(workdir):
    # With the usual values of keys that are newer than the run.
    old = json.loads(changeable(workdir).to_json_best_effort())
    old_data = read_json(workdir, "data")
    if old_data["fingerprint"] is None:
      # Imported weights, which have seen no data here: what is learnt from
      # now on is free, what the weights are for is not.
      old, new_part = _network(old), _network(new)
      old_data, data_part = _images(old_data), _images(data)
    else:
      new_part, data_part = new, data
    _check_same("configuration", workdir, old, new_part)
    _check_same("data", workdir, old_data, data_part)
  elif workdir.exists() and any(workdir.iterdir()):
    raise ValueError(
      f"{workdir} is not empty and not a run directory; choose another "
      "--workdir"
    )
  multihost_utils.sync_global_devices("run directory looked at")
  if jax.process_index() == 0:
    describe_run(workdir, new, data)
  multihost_utils.sync_global_devices("run directory written")


def describe_run(workdir: pathlib.Path, config: dict, data: dict) -> None:
  """Writes the files that say what a run is.

  A new directory appears whole, and a file is replaced by a whole one: a
  process killed at any moment leaves a run, or nothing.
  """
  files = {
    f"{name}.json": json.dumps(content, indent=2) + "\n"
    for name, content in (
      ("data", data), ("versions", versions()), ("config", config),
    )
  }  # fmt: skip
  if workdir.is_dir() and any(workdir.iterdir()):
    for name, text in files.items():  # The last is what makes it a run.
      replace(workdir / name, text)
    return
  workdir.parent.mkdir(parents=True, exist_ok=True)
  new = pathlib.Path(
    tempfile.mkdtemp(prefix=f".{workdir.name}-", dir=workdir.parent)
  )
  try:
    for name, text in files.items():
      (new / name).write_text(text)
    new.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner alone
    new.rename(workdir)
  except OSError:
    shutil.rmtree(new, ignore_errors=True)
    if not is_run(workdir):  # of two that start at once the second is late
      raise


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that is at all times the old one or the new one, whole."""
  new = path.with_name(f".{path.name}.new")
  new.write_text(text)
  new.replace(path)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from training in the same directory.

  The system lets go of the lock when the process ends, however it ends. Of
  the processes of one run, the first holds it.

  Raises:
    ValueError: If another holds it.
  """
  if jax.process_index() > 0:
    yield
    return
  lock = filelock.FileLock(workdir / "lock")
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    raise ValueError(
      f"another process is training in {workdir}: wait for it or stop it, or "
      "choose another --workdir"
    ) from None
  try:
    yield
  finally:
    lock.release()


def _network(config: dict) -> dict:
  """What imported weights are for: these networks and this process."""
  part = {k: config[k] for k in ("model", "schedule", "target", "variance")}
  free = ("dropout", "dtype", "remat")
  part["model"] = {k: v for k, v in part["model"].items() if k not in free}
  return part


def _images(data: dict) -> dict:
  return {"image_shape": data["image_shape"]}


def load(workdir: pathlib.Path) -> tuple[Config, dict]:
  """Reads the configuration and the data description of a run.

  Raises:
    ValueError: If this is not a run directory; names the nearest that is.
  """
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
  config = read_json(workdir, "config")
  make = (
    common.make_classifier
    if config.get("kind") == "classifier"
    else common.make
  )
  # Keys that are newer than the run have their usual values; a section of old
  # that is missing was lost.
  missing = [name for name in SECTIONS if name not in config]
  if missing:
    raise ValueError(f"{workdir / 'config.json'} has no {missing[0]}")
  try:
    return make(**config)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{workdir} is no run of experiments.train: {error}"
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
    raise ValueError(f"{path} holds a {type(content).__name__}, no object")
  return content


def _nearest(workdir: pathlib.Path) -> str:
  """The end of an error line: the runs of similar name in its folder."""
  runs = [str(p.parent) for p in workdir.parent.glob("*/config.json")]
  near = difflib.get_close_matches(str(workdir), runs, n=3, cutoff=0.3)
  return f"; there is {', '.join(near)}" if near else ""


def _check_same(kind: str, workdir: pathlib.Path, old: dict, new: dict):
  """Names every key in which the two differ."""
  old, new = flat(old), flat(new)
  differing = [
    f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and not {key, key.split(".")[0]} & set(MAY_CHANGE)
  ]
  if differing:
    raise ValueError(
      f"{workdir} holds a run with another {kind}: {'; '.join(differing)}. "
      "Change it back, or choose another --workdir"
    )


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
  """Nested keys joined by dots.

  >>> flat({"optim": {"lr": 0.1}, "seed": 0})
  {'optim.lr': 0.1, 'seed': 0}
  """
  result = {}
  for key, value in values.items():
    if isinstance(value, dict):
      result |= flat(value, f"{prefix}{key}.")
    else:
      result[prefix + key] = value
  return result
