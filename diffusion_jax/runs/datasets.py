"""Loads the data of a configuration."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax import shapes
from diffusion_jax.data import loading
from diffusion_jax.runs import choices, console, networks
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.options import PathLike

# Hints, by the option of dj.data.load that would help.
REMEDIES = {
  "size": "have all resized, by `config.data.size=64`",
  "data_dir": "name another folder, by `config.data.data_dir=PATH`",
  "skip_broken": "leave it out, by `config.data.skip_broken=True`",
}


def training_source(config: Config) -> dj.data.Source:
  """``source`` for a command that trains; prints a summary of the data.

  Raises:
    ValueError: If they cannot be read; the message has the flag that would
      help, if there is one.
  """
  try:
    data = source(config)
  except dj.data.Unfit as error:
    raise ValueError(f"{error}, or {REMEDIES[error.option]}") from error
  except dj.data.values.WrongRange as error:
    raise ValueError(f'{error}, by `config.data.range="(low,high)"`') from error
  console.say_first(f"data: {dj.data.summary(data)}")
  if not data.values.bounded and config.get("sampling", {}).get("clip"):
    raise ValueError(
      f"the data have no range ({data.values}), so that samples must not be "
      "clipped to one: pass `config.sampling.clip=False`"
    )
  if config.get("augment") and len(data.image_shape) != 3:
    raise ValueError(
      f"augment={config.augment} moves pictures, and the data are of "
      f"{shapes.by(data.image_shape)}: pass `config.augment=0`"
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
  """The data of ``config.data``; prints a line if reading them takes long.

  Args:
    config: The run's configuration.
    elsewhere: The flag that names other data.

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
      # A pattern of shards is not a path; its own error names what is missing.
      if not path.is_absolute() or path.exists() or "{" in name:
        raise
      raise ValueError(
        f"no data at {path}: if they have moved, name where they are as "
        f"{elsewhere}=PATH"
      ) from error
  if numbers is None:
    return data
  return dj.data.beside.attach_named(
    data,
    named_paths(numbers),
    random_crop=options["random_crop"],
  )


# What ``in_units_of`` has to name the units of, and the dtype.
_FILES = ("folder", "tar", "table", "hub")


def in_units_of(
  values: dj.data.values.Values, option: str, name: PathLike, **fit: Any
) -> dj.data.Source:
  """Pictures that a user names beside a run, in the units of its data.

  Beside a run of bytes, other integers have their own whole range.

  Args:
    values: The units of the run's data.
    option: The option that names them, for errors.
    name: The pictures.
    **fit: Further arguments of ``dj.data.load``.

  Raises:
    ValueError: If they are in other units, or cannot be read.
  """
  known = values == dj.data.values.BYTES
  kind = loading.find(os.path.expanduser(os.fspath(name)))
  if not known and kind in ("array", *_FILES):
    fit |= (
      {"range": (values.low, values.high)}
      if values.bounded
      else {"mean": values.centre, "std": values.scale}
    )
  if not known and kind in _FILES:
    fit |= {"dtype": values.dtype}
  wrong = f"`{option}={name}` must have the units of the data, {values}"
  try:
    source = dj.data.load(name, **fit)
  except dj.data.values.NoRange as error:
    raise ValueError(f"{wrong}, and are floats") from error
  if not known and not source.values.like(values):
    raise ValueError(f"{wrong}, and are {source.values}")
  return source


def named_paths(text: str) -> dict[str, pathlib.Path]:
  """The files of ``data.cond``, by name.

  >>> {k: str(v) for k, v in named_paths("angles.csv,mask=faces").items()}
  {'angles': 'angles.csv', 'mask': 'faces'}

  Raises:
    ValueError: If two have the same name.
  """
  found: dict[str, pathlib.Path] = {}
  for one in text.split(","):
    name, equals, place = one.partition("=")
    path = pathlib.Path(place if equals else one).expanduser()
    name = name if equals else path.stem
    if name in found or not str(path).strip():
      raise ValueError(
        f"data.cond={text!r} must be paths, or NAME=PATH, with commas between,"
        " each of another name"
      )
    found[name] = path
  return found


def low_res(config: Config, source: dj.data.Source, num: int) -> np.ndarray:
  """The first images of an upsampling run's data, downsampled."""
  x0 = jnp.asarray(source.floats(np.arange(min(num, len(source)))))
  small = (
    networks.low_res_shape(config, source.image_shape) or source.image_shape
  )
  return np.asarray(dj.upsampling.shrink(x0, small[:-1]))


def pictures(
  source: dj.data.Source, names: Iterable[str], num: int
) -> dict[str, np.ndarray]:
  """The images to condition on of the first examples, [N, H, W, C] by name."""
  first = np.arange(min(num, len(source)))
  return {name: source.pictures[name].floats(first) for name in names}


def given_pictures(
  config: Config,
  asked: Sequence[str],
  image_shape: tuple[int, int, int],
  num: int | None,
) -> dict[str, np.ndarray]:
  """The images to condition samples on, [N, H, W, C] by name.

  Args:
    config: The run's configuration.
    asked: The option `cond`, which may name some.
    image_shape: That of the run.
    num: How many samples to draw; None for as many as there are.

  Returns:
    Those that are named; and those of the data, for parts without a dropout.
  """
  found = networks.pictures(config, asked, image_shape[:2])
  parts = networks.planes(config)
  needed = [p.name for p in parts if not p.dropout and p.name not in found]
  if not needed:
    return found
  data = source(config, elsewhere="`cond`")
  return found | pictures(data, needed, num or len(data))


def count_classes(config: Config, source: dj.data.Source) -> None:
  """Replaces 0 classes in the configuration by the number in the data."""
  for name in ("num_classes", "num_labels"):
    if config.model.get(name) == 0:
      if not source.num_classes:
        raise ValueError(
          f"model.{name}=0 takes the number of classes from the data, but "
          f"{source.name} has none; sort the pictures into one folder each"
        )
      config.model[name] = source.num_classes


def note_parts(config: Config, source: dj.data.Source) -> None:
  """Writes the parts of the data's conditions into the configuration.

  Raises:
    ValueError: If the dropout does not fit them.
  """
  names = [*source.vectors, *source.pictures]
  rates = _rates(tuple(config.cond_dropout), names)
  parts = dj.conditions.standardised(
    source.vectors, {name: rates[name] for name in source.vectors}
  )
  config.vectors = tuple(map(tuple, parts))
  config.planes = tuple(
    (name, other.image_shape[-1], rates[name])
    for name, other in source.pictures.items()
  )
  if config.planes and config.get("augment"):
    raise ValueError(
      f"augment={config.augment} moves pictures, but not what data.cond has"
      " beside them: set augment=0"
    )


def _rates(asked: tuple[Any, ...], names: list[str]) -> dict[str, float]:
  """The dropout of each part, from ``cond_dropout``.

  Raises:
    ValueError: If the number of rates is wrong, or one is not in [0, 1).
  """
  wrong = ValueError(
    f"cond_dropout={asked} must be one number, or one for each of "
    f"{', '.join(names) or 'no parts: name them by data.cond'}, in this order "
    "or as NAME=NUMBER"
  )
  rates: dict[str, Any] = dict.fromkeys(names, 0.0)
  if asked and not names:
    raise wrong
  if asked and all(isinstance(one, str) for one in asked):
    given = dict(
      one.split("=", 1) if "=" in one else (one, "") for one in asked
    )
  elif len(asked) in (0, 1, len(names)):
    every = asked * len(names) if len(asked) == 1 else asked
    given = dict(zip(names, every, strict=False))
  else:
    raise wrong
  try:
    rates |= {name: float(rate) for name, rate in given.items()}
  except (TypeError, ValueError):
    raise wrong from None
  if rates.keys() != set(names):
    raise wrong
  for name, rate in rates.items():
    if not 0 <= rate < 1:
      raise ValueError(f"cond_dropout of {name} is {rate}: must be in [0, 1)")
  return rates
