"""Options for sampling, shared by Python, flags and stored samples."""

import dataclasses
import difflib
import math
import operator
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import choices, samplers
from diffusion_jax.runs.configuration import MOST_SEED

PathLike = str | os.PathLike[str]


def option(default: Any, text: str, **bounds: Any) -> Any:
  """A field of options.

  Args:
    default: Its default.
    text: Its description, for --help.
    **bounds: ``least`` and ``most`` for a number, ``among`` for a name.

  Returns:
    The field.
  """
  return dataclasses.field(default=default, metadata={"text": text, **bounds})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
  """How to sample. None takes the value of the run's configuration.

  Raises:
    ValueError: For a value out of its bounds.
  """

  num: int | None = option(64, "how many images", least=1)
  steps: int | None = option(
    None,
    "sampling steps (Heun calls the network twice in each); by default the "
    "configuration's",
    least=1,
  )
  sampler: str | None = option(
    None,
    f"one of {', '.join(samplers.SAMPLERS)}; by default the configuration's, "
    f"and {samplers.FEW_STEPS_SAMPLER} if `steps` is given and at most "
    f"{samplers.FEW}",
  )
  spacing: str | None = option(
    None,
    f"where the steps are: {', '.join(dj.spacing.NAMES)}, or a published "
    "string, like 250, 10,10,15,20 or ddim25; by default what suits the "
    "sampler",
  )
  eta: float | None = option(
    None,
    f"noise of {', '.join(samplers.TAKE_ETA)}: 0 adds none, 1 as much as "
    "ancestral sampling",
    least=0.0,
    most=1.0,
  )
  guidance: float | str | None = option(
    None,
    "scale of classifier-free guidance, if the run was trained with "
    "label_dropout: 1 is off, more follows the class more closely; or one for "
    "each part, such as class=2,mask=1.5. With `classifier`, the scale of its "
    "gradient: 0 is off, 1 the default",
    by_name=True,
  )
  classifier: PathLike | None = option(
    None, "run directory of a classifier to guide with"
  )
  classes: tuple[str | int, ...] = option(
    (),
    "classes to draw in turn, by name; or by number, from 0 on, if no name is "
    "a number; by default all",
  )
  cond: tuple[str, ...] = option(
    (),
    "values to condition on, such as angle=0.3,place=1:2,mask=PATH, for a run "
    "trained with data.cond; the others are hidden, or at their mean",
  )
  upsampler: tuple[PathLike, ...] = option(
    (),
    "run directories of upsamplers, smallest first: each upsamples the images "
    "of the one before",
  )
  low_res: PathLike | np.ndarray | None = option(
    None,
    "images (folder, .zip, .npz, .npy) for `workdir` to upsample, if it is an "
    "upsampler; by default its own data, downsampled",
  )
  low_res_noise: int = option(
    0,
    "step to which the small images are noised, for upsamplers that were "
    "trained on noisy ones: 0 trusts them, more hides their faults",
    least=0,
  )
  seed: int = option(0, "seed of all noise", least=0, most=MOST_SEED)
  ema: str | None = option(
    None,
    "average of the parameters: its rate, std:WIDTH, or raw for none; by "
    "default the slowest",
  )
  checkpoint: int | None = option(
    None, "step of the checkpoint to draw from; by default the newest", least=0
  )
  batch: int = option(64, "images at a time", least=1)
  quantise: str = option(
    "round",
    "how floats become bytes: round to the nearest level, or floor, as in "
    "OpenAI's scripts",
    among=tuple(dj.images.QUANTISE),
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      value = _check(field, kind(type(self), field.name), value)
      object.__setattr__(self, field.name, value)
    if self.ema is not None:  # a rate may be given as a number
      object.__setattr__(self, "ema", str(self.ema))

  @classmethod
  def of(cls, **asked: Any) -> Self:
    """The options with these values.

    Raises:
      ValueError: For an unknown name; suggests the nearest.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for name in asked:
      if name not in names:
        near = difflib.get_close_matches(name, names, n=1) or names
        raise ValueError(f"unknown option {name!r}; try {', '.join(near)}")
    return cls(**asked)


def kind(options: type[SamplingOptions], name: str) -> type:
  """The type of an option that is not None: int, float, str, bool, tuple."""
  hint = typing.get_type_hints(options)[name]
  if typing.get_origin(hint) in (types.UnionType, typing.Union):
    hint = typing.get_args(hint)[0]
  return typing.get_origin(hint) or hint


def _text(given: Any) -> str:
  """A value of `cond` or `guidance`, as a flag would have it.

  >>> _text(0.5), _text([1, 2]), _text("masks")
  ('0.5', '1:2', 'masks')
  """
  if isinstance(given, str | os.PathLike):
    return os.fspath(given)
  return ":".join(str(number) for number in np.ravel(given).tolist())


def _spelled(field: dataclasses.Field, of: type, value: Any) -> Any:
  """A mapping given in Python, as a flag would have it."""
  by_name = of is tuple or "by_name" in field.metadata
  if not (isinstance(value, Mapping) and by_name):
    return value
  listed = tuple(f"{name}={_text(given)}" for name, given in value.items())
  return listed if of is tuple else ",".join(listed)


def _check(field: dataclasses.Field, of: type, value: Any) -> Any:
  """A value of a field, converted to its type.

  Raises:
    ValueError: If it has a wrong type, or is out of bounds.
  """
  if value is None:
    return field.default
  if "among" in field.metadata:
    return choices.named(f"`{field.name}`", value, field.metadata["among"])
  value = _spelled(field, of, value)
  if "by_name" in field.metadata and isinstance(value, str) and "=" in value:
    return value
  if of is tuple:
    if isinstance(value, str | int | float | os.PathLike):
      value = (value,)
    if any(isinstance(x, np.ndarray) for x in value):
      raise ValueError(f"`{field.name}` is an array: pass a name or a path")
    return tuple(
      os.fspath(x) if isinstance(x, os.PathLike) else x for x in value
    )
  if isinstance(value, np.ndarray) and np.ndarray not in typing.get_args(
    field.type
  ):
    wanted = "a name or a path" if of is str else f"one {of.__name__}"
    raise ValueError(f"`{field.name}` is an array: pass {wanted}")
  if isinstance(value, os.PathLike):  # a path, or an opened run
    return os.fspath(value)
  if of is bool and not isinstance(value, bool):
    raise ValueError(f"`{field.name}={value!r}` must be True or False")
  return _number(field, of, value) if of in (int, float) else value


def _number(field: dataclasses.Field, of: type, value: Any) -> int | float:
  """A number within the bounds of a field.

  Raises:
    ValueError: If it is not a number, or out of bounds.
  """
  asked = f"`{field.name}={_said(value)}`"
  try:
    number = operator.index(value) if of is int else float(value)
  except (TypeError, ValueError):
    words = "a whole number" if of is int else "a number"
    raise ValueError(f"{asked} must be {words}") from None
  if not math.isfinite(number):
    raise ValueError(f"`{field.name}={number}` must be a finite number")
  least = field.metadata.get("least", -math.inf)
  most = field.metadata.get("most", math.inf)
  if not least <= number <= most:
    bounds = f"at least {least}" if most == math.inf else f"in {least}..{most}"
    raise ValueError(f"{asked} must be {bounds}")
  return number


def _said(value: Any) -> str:
  """A value in a message: strings are quoted, so that "3" is not a number."""
  return repr(value) if isinstance(value, str) else str(value)
