"""Every key of a configuration, with what it means and its usual value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from diffusion_jax import models
from diffusion_jax.models import presets

# A locked ml_collections.ConfigDict. Any, because what its keys hold has no
# static type.
Config = Any

# jax.random.key takes the lowest 32 bits of a seed.
MOST_SEED = 2**32 - 1

# What a section may be given as.
_SECTION = Mapping | ml_collections.ConfigDict

# What does not depend on the kind of network.
KEPT = ("num_classes", "time_scale", "time_origin", "dtype", "remat")


def make(**changes: Mapping[str, Any] | Any) -> Config:
  """The usual values, changed. An unknown key is an error.

  Args:
    **changes: By key; a dict changes the keys of a section.

  Returns:
    The configuration, to be changed further or returned.

  Raises:
    ValueError: If there is no such key, or its value is of another kind.
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
      **_run(),
      **_images(),
      **_conditions(),
      **_process(),
      **_learning(),
      "objective": _objective(),
      # The network: unet, dit, jit, path/to/mine.py:MyNet or module:MyNet,
      # and its settings, the fields of its class (docs/networks.md). Of any:
      # num_classes to condition on; 0 is as many as the data have, None not to.
      "model": network(model["name"]),
      "preview": _preview(),
      "sampling": _sampling(),
    }
  )
  config.lock()
  # A schedule or a weight brings arguments of its own.
  with config.schedule.unlocked(), config.loss.unlocked():
    _change(config, {**changes, "model": model})
  return config


def _run() -> dict[str, Any]:
  """How long a run is, in which steps, and what it leaves."""
  return {
    "seed": 0,  # of parameters, data order, noise: everything
    "num_steps": 100_000,
    "batch_size": 128,  # images per step, over all devices
    "micro_batches": 1,  # pieces of a batch in memory one after another
    "steps_per_dispatch": 1,  # steps in one program, for small networks
    # Each device holds its part of the parameters, averages and optimizer
    # state only, and gathers parameters while it uses them.
    "fsdp": False,
    # Steps between logged lines, sample grids, checkpoints.
    "every": {"log": 100, "preview": 5_000, "checkpoint": 5_000},
    "keep_checkpoints": 3,
  }


def _images() -> dict[str, Any]:
  """What a run learns from."""
  return {
    "data": {
      "name": "digits",  # or whatever diffusion_jax.data.load takes
      "split": "train",  # of a TFDS data set
      "size": (),  # (), (n,) or (height, width); () is as stored
      "channels": config_dict.placeholder(int),  # 1 or 3 to convert
      "rank": 2,  # axes of an array's size: 1 of signals, 3 of volumes
      # Cut each time anew, at 0.8 to 1 of a picture; needs a size.
      "random_crop": False,
      "skip_broken": False,  # leave out pictures that cannot be read
      # Decode pictures to uint8, uint16 or float32; arrays have theirs.
      "dtype": config_dict.placeholder(str),
      "range": (),  # (low, high) of the values; bytes have 0 to 255
      "mean": config_dict.placeholder(float),  # of values without a range
      "std": config_dict.placeholder(float),
      "data_dir": config_dict.placeholder(str),  # of TFDS
      # What else is known of each example, to condition on: files of
      # numbers, embeddings or pictures, "angles.csv,mask=masks".
      "cond": config_dict.placeholder(str),
    },
    "flip": False,  # mirror half of the images
    # Probability of each motion of diffusion_jax.augmentation, whose mirrors
    # make flip needless; the network takes its labels.
    "augment": 0.0,
  }


def _conditions() -> dict[str, Any]:
  """What its network is conditioned on, beside classes."""
  return {
    # Part of the labels that training hides, for classifier-free guidance.
    "label_dropout": 0.0,
    # As much of each part of data.cond, numbers first; or one for all; or by
    # name, ("angle=0.1", "mask=0.2").
    "cond_dropout": (),
    # These parts, (name, mean, std, dropout) of numbers, (name, channels,
    # dropout) of pictures, filled in from the data.
    "vectors": (),
    "planes": (),
    # To enlarge pictures of this size, () is not to. The network learns of
    # pictures made small and noised to random steps 0..noise.
    "low_res": {"size": (), "noise": 0},
  }


def _process() -> dict[str, Any]:
  """How noise grows, and what the network predicts."""
  return {
    # A function of diffusion_jax.schedules, and its arguments; or ve, vp,
    # flow, trig of diffusion_jax.continuous, whose real time has no T.
    "schedule": {"name": "linear", "T": 1000},
    "target": "eps",  # the network predicts: eps, x0, mean, v, flow, jit, edm
    "sigma_data": 0.5,  # standard deviation of the data, for target edm
    # Of p(x_s | x_t): fixed_small, fixed_large, learned, learned_range.
    "variance": "fixed_large",
  }


def _learning() -> dict[str, Any]:
  """What is minimised, and how."""
  return {
    # Starts from another run's average, by default the slowest.
    "init": {
      "run": config_dict.placeholder(str),
      "ema": config_dict.placeholder(str),
    },
    # simple, with a weight of the error: bound, p2, min_snr, truncated_snr,
    # edm, sigmoid, at a log-SNR moved by shift=k; or in a space, the target
    # whose error counts. hybrid or vlb, which learn the variance.
    "loss": {
      "name": "simple",
      "weight": "none",
      "space": config_dict.placeholder(str),
      "uncertainty": False,  # learnt with it, divides it (EDM2)
    },
    # Or antithetic; importance, by past losses; in real time also log_normal
    # (of sigma) and logit_normal (of t / T), with this mean and deviation.
    "timesteps": "uniform",
    "time_mean": config_dict.placeholder(float),
    "time_std": config_dict.placeholder(float),
    # Arguments of diffusion_jax.training.optimizer.
    "optim": {
      "name": "adam",  # also AdamW; or muon, schedule_free
      "lr": 2e-4,
      "warmup_steps": 5000,
      "decay_steps": config_dict.placeholder(int),  # to 0 at this step
      # Or linear; stable, linear in the last fifth; inverse_sqrt from
      # decay_steps on. Without decay_steps constant.
      "decay": "cosine",
      "clip": config_dict.FieldReference(1.0),  # or None
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 0.0,
    },
    # Rates; and stds, such as (0.05, 0.1), widths of EDM2's averages: each
    # checkpoint leaves them behind, small, and others are made of these by
    # --ema=std:0.07.
    "ema": {"rates": (0.9999,), "warmup": False, "stds": ()},
  }


def _objective() -> dict[str, Any]:
  """Diffusion or, in one to four network calls, docs/one-step.md."""
  return {
    "name": "diffusion",  # consistency, meanflow, distillation
    # Learn from the run of init.run, not from data; distillation always
    # does. Guided with this scale.
    "teacher": False,
    "guidance": config_dict.placeholder(float),
    "steps": 1,  # distillation: the student's, half of its teacher's
    "stage": 25_000,  # consistency: updates until neighbours are nearer
    "huber": 0.0,  # consistency: c of the pseudo-Huber distance
    "equal": 0.75,  # meanflow: part of the steps from t to t
    "power": 1.0,  # meanflow: of the adaptive weight
    "improved": False,  # meanflow: derive along the network's velocity
    # meanflow: guidance that is learnt, of scale omega / (1 - kappa).
    "omega": 1.0,
    "kappa": 0.0,
  }


def _preview() -> dict[str, Any]:
  """Sample grids while training: few steps."""
  return {
    "num": 64,  # 0 is none
    "sampler": "unipc",
    "steps": 20,
    "spacing": config_dict.placeholder(str),
    # Measure their Frechet distance to the data, in random features.
    "frechet": False,
  }


def _sampling() -> dict[str, Any]:
  """What experiments.sample does by default."""
  return {
    "sampler": "ancestral",
    "steps": 1000,
    "spacing": config_dict.placeholder(str),  # by default the sampler's
    "guidance": config_dict.placeholder(float),  # scale; 1 is off
    # With an eta, guidance is projected (APG), its update no longer than
    # the radius, and carried from step to step by the momentum, usually
    # below 0.
    "apg": {
      "eta": config_dict.placeholder(float),
      "radius": config_dict.placeholder(float),
      "momentum": config_dict.placeholder(float),
    },
    "clip": True,  # x0_hat to [-1, 1]
    # Noise that edm_heun adds on its way, see diffusion_jax.edm.
    "churn": {
      "S_churn": 0.0,
      "S_min": 0.0,
      "S_max": config_dict.placeholder(float),
      "S_noise": 1.0,
    },
  }


def is_classifier(config: Config) -> bool:
  """Whether a run is of a classifier, and not of a diffusion model."""
  return config.get("kind") == "classifier"


def _change(config: Config, changes: Mapping[str, Any]) -> None:
  """Changes values; what ConfigDict says of one that it cannot, in a line."""
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
  """The section ``model`` of a network: its settings, at their usual values.

  Args:
    name: See ``models.named.find``.

  Returns:
    The section, in which what may be None has a type.

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
  """Gives a configuration another network, at its usual settings.

  What is said of classes, of time and of the precision stays.

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
  """As ``make``, of a classifier of noisy images.

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
    # Every how many-th example is not learnt from but measured; 0 is none.
    config.held_out = 0
    config.loss = {"name": "cross_entropy"}
  with config.schedule.unlocked():
    _change(config, changes)
  return config


def check_variant(variant: str, allowed: Sequence[str]) -> None:
  """Checks the part of --config after the colon.

  Raises:
    ValueError: Naming what is allowed.
  """
  if variant not in ("", *allowed):
    raise ValueError(
      f"unknown variant {variant!r}; this configuration has "
      f"{', '.join(allowed) or 'none'}"
    )


def published(name: str, **changes: Mapping[str, Any] | Any) -> Config:
  """The configuration that trains a published model, see ``models.presets``.

  Args:
    name: Of the preset.
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
  """As ``published``, of a classifier."""
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
  derived = {*models.named.DERIVED, "dtype", "remat", "parent", "name"}
  return {
    field.name: getattr(net, field.name)
    for field in dataclasses.fields(net)
    if field.name not in derived
  }
