"""Loads the data of a configuration."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import choices, console, networks
from diffusion_jax.runs.configuration import Config

# By the option of dj.data.load that would help.
REMEDIES = {
  "size": "have all resized, by `config.data.size=64`",
  "data_dir": "name another folder, by `config.data.data_dir=PATH`",
  "skip_broken": "leave it out, by `config.data.skip_broken=True`",
}


def training_source(config: Config) -> dj.data.Source:
  """``source`` for a command that trains: says what it has found.

  Raises:
    ValueError: With the override that would help, if there is one.
  """
  try:
    data = source(config)
  except dj.data.Unfit as error:
    raise ValueError(f"{error}, or {REMEDIES[error.option]}") from error
  console.say_first(f"data: {dj.data.summary(data)}")
  if not data.values.bounded and config.get("sampling", {}).get("clip"):
    raise ValueError(
      f"the data have no range ({data.values}), so that samples must not be "
      "clipped to one: pass `config.sampling.clip=False`"
    )
  if config.get("augment") and len(data.image_shape) != 3:
    raise ValueError(
      f"augment={config.augment} moves pictures, and the data are of "
      f"{' x '.join(map(str, data.image_shape))}: pass `config.augment=0`"
    )
  return data


def load_options(config: Config) -> dict[str, Any]:
  """The arguments of ``dj.data.load`` that ``config.data`` gives."""
  options = config.data.to_dict()
  del options["cond"]  # of ``vectors``
  # (), (n,), (h, w): as stored, square, any.
  size = tuple(options["size"])
  options["size"] = size[0] if len(size) == 1 else size or None
  return options


def source(
  config: Config, *, elsewhere: str = "`config.data.name`"
) -> dj.data.Source:
  """The data of ``config.data``; says so if they take long to read.

  Args:
    config: Of the run.
    elsewhere: The flag that names data instead.

  Raises:
    ValueError: If they cannot be read; says what to do if they have moved.
  """
  options, numbers = load_options(config), config.data.cond
  name = options["name"]
  if not name:
    raise ValueError(
      "no data are named; imported weights come without any, name them as "
      "`config.data.name=...`, of experiments.import_weights or of "
      "experiments.train"
    )
  with console.said_if_slow(f"reading {name} ..."):
    try:
      data = choices.call("data", dj.data.load, options)
    except ValueError as error:
      path = pathlib.Path(name)
      if not path.is_absolute() or path.exists():
        raise
      raise ValueError(
        f"no data at {path}: if they have moved, name where they are as "
        f"{elsewhere}=PATH"
      ) from error
  if numbers is None:
    return data
  return dj.data.vectors.attach(data, dj.data.vectors.read(numbers))


def low_res(config: Config, source: dj.data.Source, num: int) -> np.ndarray:
  """The first images of the data of a run that enlarges, made small."""
  images = source.gather(np.arange(min(num, len(source))))["image"]
  x0 = jnp.asarray(source.values.floats(images))
  small = (
    networks.low_res_shape(config, source.image_shape) or source.image_shape
  )
  return np.asarray(dj.upsampling.shrink(x0, small[:-1]))


def count_classes(config: Config, source: dj.data.Source) -> None:
  """Writes the number of the data's classes where the configuration has 0."""
  for name in ("num_classes", "num_labels"):
    if config.model.get(name) == 0:
      if not source.num_classes:
        raise ValueError(
          f"model.{name}=0 takes the number of classes from the data, but "
          f"{source.name} has none; sort the pictures into one folder each"
        )
      config.model[name] = source.num_classes


def note_vectors(config: Config, source: dj.data.Source) -> None:
  """Writes what a run needs to know of its data's vectors into ``vectors``.

  Raises:
    ValueError: If the dropout does not fit them.
  """
  rates, names = tuple(config.cond_dropout), list(source.vectors)
  if len(rates) not in (0, 1, len(names)):
    raise ValueError(
      f"cond_dropout={rates} must be one number, or one for each of "
      f"{', '.join(names) or 'no parts: name them by data.cond'}"
    )
  rates = (
    rates * len(names) if len(rates) == 1 else rates or (0.0,) * len(names)
  )
  dropout = dict(zip(names, rates, strict=True))
  parts = dj.conditions.standardised(source.vectors, dropout)
  config.vectors = tuple(map(tuple, parts))
