"""Builds a network, its conditions and its state from a configuration."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffusion_jax as dj
from diffusion_jax.runs import choices, processes, starting
from diffusion_jax.runs.configuration import Config, is_classifier


def check_draws(config: Config) -> None:
  """Raises for the configuration of a classifier."""
  if is_classifier(config):
    raise ValueError(
      "this run is a classifier, which draws no images: pass it as "
      "`classifier` of experiments.sample"
    )


def model(
  config: Config,
  image_shape: tuple[int, ...],
  num_classes: int,
) -> Any:
  """The network of ``config.model`` for images of this shape.

  Raises:
    ValueError: If the network does not fit the images or their classes, or
      the run is a classifier.
  """
  check_draws(config)
  outputs = 2 if config.variance.startswith("learned") else 1
  asked = config.model.num_classes
  if asked is not None and asked != num_classes:
    raise ValueError(
      f"model.num_classes={asked}, but the data have {num_classes} classes"
    )
  if hides_labels(config):
    asked = (asked or 0) + 1  # the last is no class
  cond = [] if asked is None else ["y"]
  if low_res_shape(config, image_shape) is not None:
    cond.append("low_res")
  if noisy_low_res(config, image_shape):
    cond.append("low_res_t")
  if vectors(config):
    cond.append("vector")
  if planes(config):
    cond.append("planes")
  derived = {
    "out_channels": outputs * image_shape[-1],
    "num_classes": asked,
    "noisy_low_res": "low_res_t" in cond,
    "vector": dj.conditions.width(vectors(config)),
    "spans": config.objective.name == "meanflow",
  }
  return _network(config, image_shape, derived, cond)


def _network(config, image_shape, derived, cond=()) -> Any:
  """The network of ``config.model``, with the fields that are no settings."""
  options = config.model.to_dict() | derived
  if options.get("dtype") == "float16" and jax.default_backend() == "cpu":
    raise ValueError(
      "model.dtype=float16: XLA has no such products on a CPU; name bfloat16"
    )
  name = options.pop("name")
  if (name == "classifier") != is_classifier(config):
    raise ValueError(
      f"model.name={name} is not a network of this configuration: that of a "
      "classifier is configs/classifier.py"
    )
  return dj.models.named.make(name, options, image_shape[:-1], cond)


def low_res_shape(
  config: Config, image_shape: tuple[int, ...]
) -> tuple[int, ...] | None:
  """Shape of the small images that a run upsamples; None if it does not.

  Raises:
    ValueError: If their size does not divide the large one, or is as large.
  """
  size = config.low_res.size if "low_res" in config else ()
  if not size:
    if "low_res" in config and config.low_res.noise:
      raise ValueError(
        f"low_res.noise={config.low_res.noise} is of small pictures, and "
        "low_res.size=() has none: name their size"
      )
    return None
  large = tuple(image_shape[:-1])
  small = tuple(size) * len(large) if len(size) == 1 else tuple(size)
  if len(small) != len(large) or not all(isinstance(n, int) for n in size):
    raise ValueError(
      f"low_res.size={tuple(size)} must be (), (n,) or have the {len(large)} "
      "axes of the data's size"
    )
  if small == large:
    raise ValueError(
      f"low_res.size={tuple(size)} is the size of the data: an upsampler must "
      "enlarge; name a smaller one, or () for no upsampler"
    )
  dj.upsampling.check_size(large, small)
  return *small, image_shape[-1]


def noisy_low_res(config: Config, image_shape: tuple[int, ...]) -> bool:
  """Whether a run upsamples noisy images."""
  enlarges = low_res_shape(config, image_shape) is not None
  return enlarges and _low_res_noise(config) > 0


def _low_res_noise(config: Config) -> int:
  """The largest noise step of the small images."""
  most = config.low_res.noise
  if not 0 <= most <= config.schedule.T:
    raise ValueError(
      f"low_res.noise={most} must be a step in 0..T={config.schedule.T}"
    )
  return most


def classifier(
  config: Config, image_shape: tuple[int, ...], num_classes: int
) -> dj.models.Classifier:
  """The classifier of ``config.model`` for images of this shape.

  Raises:
    ValueError: If it does not fit the images or their classes, or the run is
      not a classifier.
  """
  if not is_classifier(config):
    raise ValueError(
      "this run is not a classifier: train one with experiments.train "
      "--config=configs/classifier.py"
    )
  net = _network(config, image_shape, {})
  if net.num_labels != num_classes:
    raise ValueError(
      f"model.num_labels={net.num_labels}, but the data have {num_classes} "
      "classes"
    )
  return net


def network(
  config: Config, image_shape: tuple[int, ...], num_classes: int
) -> Any:
  """The network of a run, a diffusion model's or a classifier."""
  make = classifier if is_classifier(config) else model
  return make(config, image_shape, num_classes)


def hides_labels(config: Config) -> bool:
  """Whether training hides labels, which classifier-free guidance needs.

  Raises:
    ValueError: If there are no labels to hide, or the rate is not in [0, 1].
  """
  rate = config.get("label_dropout", 0.0)
  if not 0 <= rate < 1:
    raise ValueError(f"label_dropout={rate} must be in [0, 1)")
  if rate and config.model.num_classes is None:
    raise ValueError(
      f"label_dropout={rate} hides labels, but the network takes none: "
      "set model.num_classes"
    )
  return rate > 0


def conditions(
  config: Config,
  noise: dj.schedules.Schedule,
  image_shape: tuple[int, ...],
) -> dj.conditions.Conditions:
  """The conditions of a run's network.

  The class, if it has any; the small image, if it upsamples; and the parts of
  data.cond.
  """
  small = low_res_shape(config, image_shape)
  return dj.conditions.Conditions(
    noise,
    num_classes=config.model.num_classes,
    label_dropout=config.label_dropout if hides_labels(config) else 0.0,
    low_res=None if small is None else small[:-1],
    noise=0 if small is None else _low_res_noise(config),
    vectors=vectors(config),
    planes=planes(config),
  )


def planes(config: Config) -> tuple[dj.conditions.Plane, ...]:
  """The images that a run conditions on."""
  return tuple(dj.conditions.Plane(*part) for part in config.get("planes", ()))


def vectors(config: Config) -> tuple[dj.conditions.Vector, ...]:
  """The vectors that a run conditions on."""
  return tuple(
    dj.conditions.Vector(name, tuple(mean), tuple(std), rate)
    for name, mean, std, rate in config.get("vectors", ())
  )


def numbers(config: Config, asked: Sequence[str]) -> dict[str, list[float]]:
  """The numbers of `cond=("angle=0.3", "place=1:2")`, by name.

  Raises:
    ValueError: If the run has no numbers of that name, or not as many; or if a
      name comes twice.
  """
  names = [one.partition("=")[0] for one in asked]
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(
      f"`cond` names {twice[0]} more than once: all images are given the same"
    )
  widths = {part.name: len(part.mean) for part in vectors(config)}
  numbers = {}
  for one in asked:
    name, _, text = one.partition("=")
    if text and name in {part.name for part in planes(config)}:
      continue  # of ``pictures``
    try:
      values = [float(number) for number in text.split(":")]
    except ValueError:
      values = []
    if widths.get(name) != len(values) or not all(map(math.isfinite, values)):
      known = ", ".join(
        [f"{k} ({n} numbers)" for k, n in widths.items()]
        + [f"{part.name} (pictures)" for part in planes(config)]
      )
      raise ValueError(
        f"`cond={one}` must be NAME=NUMBER, NAME=NUMBER:NUMBER and so on, for "
        f"all images alike, or NAME=PATH, of what the run has learnt: "
        f"{known or 'nothing, it has no data.cond'}"
      )
    numbers[name] = values
  return numbers


def pictures(
  config: Config, asked: Sequence[str], size: tuple[int, int]
) -> dict[str, np.ndarray]:
  """The images of `cond=("mask=PATH",)`, [N, H, W, C] by name.

  Raises:
    ValueError: If they cannot be read, or have a wrong number of channels.
  """
  channels = {part.name: part.channels for part in planes(config)}
  found = {}
  for one in asked:
    name, _, path = one.partition("=")
    if name not in channels:
      continue  # of ``numbers``
    source = dj.data.load(path, size=size)
    if source.image_shape[-1] != channels[name]:
      raise ValueError(
        f"`cond={one}` has {source.image_shape[-1]} channels, the run has "
        f"learnt {name} of {channels[name]}: convert the pictures"
      )
    found[name] = source.floats(np.arange(len(source)))
  return found


def optimizer(
  config: Config,
) -> optax.GradientTransformation:
  """The optimizer of ``config.optim``."""
  tx = choices.call("optim", dj.training.optimizer, config.optim.to_dict())
  return dj.models.edm2.forced(tx)  # no effect on other networks' weights


def init(config, net, image_shape, tx, key, start=None) -> dj.state.TrainState:
  """The state before the first step; a pure function of the key.

  ``start`` are another run's parameters to start from, if any.
  """
  x, one = jnp.zeros((1, *image_shape)), jnp.ones((1,), jnp.int32)
  cond = None
  if not is_classifier(config):
    cond = conditions(config, processes.schedule(config), image_shape).of(
      x, one - 1
    )
  params = net.init(key, x, one, cond)["params"]
  if config.loss.get("uncertainty"):
    own = processes.UNCERTAINTY.init(jax.random.fold_in(key, 1), jnp.ones(1))
    params = {**params, "uncertainty": own["params"]}
  if start is not None:
    params = starting.grafted(params, start)
  return state(config, params, tx)


def averages(config: Config) -> list[str]:
  """The names of a run's averages: by rate, the slowest last, then by width."""
  return [
    *(str(rate) for rate in sorted(config.ema.rates)),
    *(dj.averages.name(std) for std in sorted(config.ema.get("stds", ()))),
  ]


def state(config, params, tx) -> dj.state.TrainState:
  """The state before the first step, with given parameters."""
  history = (
    dj.importance.history(
      dj.objectives.BINS
      if processes.is_continuous(config)
      else config.schedule.T
    )
    if config.get("timesteps") == "importance"
    else None
  )
  names = averages(config)
  rates = config.ema.rates
  taught = not is_classifier(config) and starting.taught(config)
  return dj.state.create(
    params, tx, (*rates, *names[len(rates) :]), history,
    jax.tree.map(jnp.copy, params) if taught else None,
  )  # fmt: skip
