"""Whether a run can resume with the configuration of a command line.

Anything that changes what the model learns must stay the same. The length of a
run, what it shows and its devices may change. So may the path of its data, and
two things that do change what it learns: the end of the learning rate's decay,
and other data. These are printed, and recorded in changes.jsonl.
"""

import json
import pathlib
from typing import Any

from diffusion_jax.runs import directory
from diffusion_jax.runs.configuration import COMPUTE, Config
from diffusion_jax.runs.training import objectives

# The section "data" has the path of the data; a fingerprint identifies them,
# but not how training crops them.
MAY_CHANGE = (
  "num_steps", "every", "preview", "sampling", "keep_checkpoints", "fsdp",
  "steps_per_dispatch", "model.remat", "model.attention_kernel", "data",
)  # fmt: skip
NOTED = ("optim.decay_steps",)
CROPS = "data.random_crop"

Changes = dict[str, tuple[Any, Any]]
"""Old and new values by key."""


def check(
  workdir: pathlib.Path, config: Config, data: dict, *, new_data: bool = False
) -> Changes:
  """Compares a run directory with the configuration to resume it with.

  In a run without a checkpoint everything may change; with imported weights,
  everything but the network and its process.

  Args:
    workdir: The run directory, perhaps empty.
    config: The new configuration.
    data: The new data, see ``directory.describe``.
    new_data: Whether to resume with other data than before.

  Returns:
    The changes, to print and to record.

  Raises:
    ValueError: If it cannot resume; the message names the differences.
  """
  if not directory.is_run(workdir):
    return {}
  # With the defaults of keys that are newer than the run.
  old = directory.config_json(directory.changeable(workdir))
  new = directory.config_json(config)
  old_data = directory.read_json(workdir, "data")
  learnt_from = (CROPS, *objectives.of_sampling(config))
  changed = {
    key: pair
    for key, pair in differences(old, new).items()
    if key in learnt_from or not {key, key.split(".")[0]} & set(MAY_CHANGE)
  }
  same_data = old_data.get("fingerprint") == data["fingerprint"]
  data_changed = {} if same_data else differences(old_data, data)
  moved = {"path": (old_data.get("path"), data["path"])}
  moved = moved if old_data.get("path") not in (None, data["path"]) else {}
  if not has_learnt(workdir):
    if not (workdir / "imported.json").is_file():
      return changed | data_changed
    _refuse("configuration", workdir, differences(_network(old), _network(new)))
    _refuse("data", workdir, differences(_shape(old_data), _shape(data)))
    return {}
  noted = {key: changed.pop(key) for key in NOTED if key in changed}
  _refuse("configuration", workdir, changed)
  _refuse("data", workdir, differences(_shape(old_data), _shape(data)))
  if not new_data:
    _refuse(
      "data",
      workdir,
      data_changed,
      ", or pass `new_data` to go on with these from the newest checkpoint",
    )
  return noted | moved | data_changed


def has_learnt(workdir: pathlib.Path) -> bool:
  """Whether a directory has checkpoints of training, even damaged ones."""
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return any(
    name.startswith("damaged-") or (name.isdigit() and int(name) > 0)
    for name in names
  )


def describe(changes: Changes) -> str:
  """Changes in words.

  >>> describe({"optim.decay_steps": (1500, 3000)})
  'optim.decay_steps was 1500 and is 3000'
  """
  return "; ".join(
    f"{key} was {old!r} and is {new!r}" for key, (old, new) in changes.items()
  )


def note(workdir: pathlib.Path, step: int, changes: Changes) -> None:
  """Appends changes after a step to changes.jsonl."""
  row = {"step": step} | {key: list(pair) for key, pair in changes.items()}
  with (workdir / "changes.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")


def differences(old: dict, new: dict) -> Changes:
  """The keys, nested ones joined by dots, whose values differ, and the values.

  >>> differences({"optim": {"lr": 0.1}, "seed": 0}, {"optim": {"lr": 1.0}})
  {'optim.lr': (0.1, 1.0), 'seed': (0, None)}
  """
  old, new = flat(old), flat(new)
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  }


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


def _network(config: dict) -> dict:
  """What imported weights depend on: the network and the process."""
  part = {k: config[k] for k in ("model", "schedule", "target", "variance")}
  free = ("dropout", *COMPUTE)
  part["model"] = {k: v for k, v in part["model"].items() if k not in free}
  return part


def _shape(data: dict) -> dict:
  """What two data sets must share to train the same network."""
  return {"image_shape": data["image_shape"]}


def _refuse(
  kind: str, workdir: pathlib.Path, changes: Changes, remedy: str = ""
) -> None:
  """Raises for changes, if there are any, and names them all."""
  if changes:
    named = "; ".join(
      f"{key} is {old!r} there and {new!r} here"
      for key, (old, new) in changes.items()
    )
    raise ValueError(
      f"{workdir} holds a run with another {kind}: {named}. Change it back, or "
      f"choose another `workdir`{remedy}"
    )
