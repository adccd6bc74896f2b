"""Configurations: the defaults with changes, and those of published models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from diffusion_jax import models
from diffusion_jax.models import presets
from diffusion_jax.runs import defaults

# A locked ml_collections.ConfigDict. Any, because its values have no static
# type.
Config = Any

# jax.random.key takes the lowest 32 bits of a seed.
MOST_SEED = 2**32 - 1

# Types in which a section may be given.
_SECTION = Mapping | ml_collections.ConfigDict

# Settings of ``model`` that say how to compute the same network.
COMPUTE = ("dtype", "remat", "attention_kernel")
# Those that do not depend on the kind of network.
KEPT = ("num_classes", "time_scale", "time_origin", *COMPUTE)


def make(**changes: Mapping[str, Any] | Any) -> Config:
  """The defaults with changes. An unknown key is an error.

  Args:
    **changes: New values by key; a dict changes the keys of a section.

  Returns:
    The configuration, which can be changed further.

  Raises:
    ValueError: If there is no such key, or a value has a wrong type.
  """
  given = changes.get("model", {})
  if not isinstance(given, _SECTION):
    raise ValueError(
      f"model={given!r} must be a dict, such as {{'name': 'dit'}}"
    )
  model = {"name": "unet", **given}
  model["name"] = models.named.placed(model["name"])
  config: Config = ml_collections.ConfigDict(
    {
      **defaults.run(),
      **defaults.images(),
      **defaults.conditions(),
      **defaults.process(),
      **defaults.learning(),
      "objective": defaults.objective(),
      # The network: unet, dit, jit, path/to/mine.py:MyNet or module:MyNet, and
      # its settings, the fields of its class (docs/networks.md). Every network
      # has num_classes: 0 takes those of the data, None is unconditional.
      "model": network(model["name"]),
      "preview": defaults.preview(),
      "sampling": defaults.sampling(),
    }
  )
  config.lock()
  # Schedules and weights have their own arguments.
  with config.schedule.unlocked(), config.loss.unlocked():
    _change(config, {**changes, "model": model})
  return config


def is_classifier(config: Config) -> bool:
  """Whether a run is of a classifier, and not of a diffusion model."""
  return config.get("kind") == "classifier"


def _change(config: Config, changes: Mapping[str, Any]) -> None:
  """Changes values; an error of ConfigDict becomes a ValueError of one line."""
  for key, value in changes.items():
    section = config.get(key)
    is_section = isinstance(section, config_dict.ConfigDict)
    if is_section and not isinstance(value, _SECTION):
      raise ValueError(
        f"{key}={value!r} must be a dict of {', '.join(section)}"
      )
  try:
    config.update(changes)
  except (KeyError, TypeError) as error:
    text, _, _ = str(error.args[0]).partition(" Other fields present")
    raise ValueError(" ".join(text.split())) from error


def network(name: str) -> dict[str, Any]:
  """The section ``model`` of a network: its settings at their defaults.

  Args:
    name: See ``models.named.find``.

  Returns:
    The section, in which values that may be None have a type.

  Raises:
    ValueError: If there is no such network.
  """
  found = models.named.settings(models.named.find(name))
  section = {
    key: config_dict.placeholder(setting.kind) if setting.value is None
    else setting.value
    for key, setting in found.items()
  }  # fmt: skip
  return {"name": name, **section, "num_classes": config_dict.placeholder(int)}


def exchange_network(config: Config, name: str) -> None:
  """Gives a configuration another network, with its default settings.

  The settings in ``KEPT`` do not change.

  Raises:
    ValueError: If there is no such network.
  """
  name = models.named.placed(name)
  old, new = config.model, network(name)
  if name == old.name:
    return
  with config.unlocked():
    config.model = new
    for key in KEPT:
      if key in new and key in old:
        config.model[key] = old[key]


def make_classifier(**changes: Mapping[str, Any] | Any) -> Config:
  """As ``make``, for a classifier of noisy images.

  Args:
    **changes: As for ``make``; ``model`` has the settings of
      ``models.Classifier``.

  Returns:
    The configuration.
  """
  config = make(
    ema={"rates": ()},
    optim={"warmup_steps": 0, "clip": None},
    model={"name": "classifier"},
  )
  with config.unlocked():
    config.kind = "classifier"
    # Hold out every n-th example, to measure accuracy on; 0 holds out none.
    config.held_out = 0
    config.loss = {"name": "cross_entropy"}
  with config.schedule.unlocked():
    _change(config, changes)
  return config


def check_variant(variant: str, allowed: Sequence[str]) -> None:
  """Checks the part of --config after the colon.

  Raises:
    ValueError: If it is unknown; the message has those allowed.
  """
  if variant not in ("", *allowed):
    raise ValueError(
      f"unknown variant {variant!r}; this configuration has "
      f"{', '.join(allowed) or 'none'}"
    )


def published(name: str, **changes: Mapping[str, Any] | Any) -> Config:
  """The configuration that trains a published model, see ``models.presets``.

  Args:
    name: Name of the preset.
    **changes: As for ``make``.

  Returns:
    The configuration.
  """
  preset = presets.PRESETS[name]
  training, low_res = dict(preset.training), preset.low_res
  rescale = training.pop("rescale_vlb", True)
  loss: dict[str, Any] = {"name": preset.loss, "weight": "none"}
  if preset.loss == "hybrid":
    loss["vlb_weight"] = 1e-3 if rescale else 1 / preset.schedule["T"]
  optim = {"warmup_steps": 0, "clip": None}
  optim |= {
    key: training.pop(key)
    for key in ("lr", "warmup_steps", "clip", "weight_decay")
    if key in training
  }
  sampling = {
    key: preset.sampling[key]
    for key in ("sampler", "steps")
    if key in preset.sampling
  }
  return make(
    **{
      "schedule": preset.schedule,
      "target": preset.target,
      "variance": preset.variance,
      "loss": loss,
      "model": settings(preset.net),
      "optim": optim,
      "ema": {"rates": (training.pop("ema"),), "warmup": False},
      "every": {"log": 100, "preview": 10_000, "checkpoint": 5_000},
      "sampling": sampling,
      "low_res": {"size": () if low_res is None else (low_res,)},
      **training,
      **changes,
    }
  )


def published_classifier(name: str, **changes: Mapping[str, Any] | Any):
  """As ``published``, for a classifier."""
  preset = presets.PRESETS[name]
  training = dict(preset.training)
  optim = {
    key: training.pop(key)
    for key in ("lr", "weight_decay", "decay", "decay_steps")
  }
  return make_classifier(
    **{
      "schedule": preset.schedule,
      "model": settings(preset.net),
      "optim": optim,
      **training,
      **changes,
    }
  )


def settings(net: Any) -> dict[str, Any]:
  """The settings of a network that ``config.model`` holds."""
  # What follows from the data or the variance is not a setting.
  derived = {*models.named.DERIVED, *COMPUTE, "parent", "name"}
  return {
    field.name: getattr(net, field.name)
    for field in dataclasses.fields(net)
    if field.name not in derived
  }
