"""The classes to draw, and a classifier that guides towards them."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import diffusion_jax as dj
from diffusion_jax.runs import (
  directory,
  networks,
  processes,
  restoring,
  samplers,
)
from diffusion_jax.runs.configuration import Config, is_classifier
from diffusion_jax.runs.options import SamplingOptions


class GuidingClassifier(NamedTuple):
  """A classifier to guide with.

  Attributes:
    name: Name of its run.
    net: Its network.
    params: Its parameters.
  """

  name: str
  net: dj.models.Classifier
  params: Any


def class_count(
  config: Config, classifier: GuidingClassifier | None
) -> int | None:
  """How many classes can be drawn; None if there are none."""
  if classifier is None:
    return config.model.num_classes
  return classifier.net.num_labels


def classes_in_turn(
  config: Config,
  options: SamplingOptions,
  classifier: GuidingClassifier | None,
) -> tuple[int, ...]:
  """The classes to draw in turn; empty if there are none."""
  count = class_count(config, classifier)
  return tuple(map(int, options.classes)) or tuple(range(count or 0))


def class_numbers(names: Sequence[str], count: int) -> dict[str, int]:
  """The valid entries of `classes`, and the class that each means.

  A number counts from 0, unless the classes' names are numbers: with folders 3,
  7 and 10, sorted as text, number 1 would be "3", which nobody expects.

  >>> class_numbers(["cat", "dog"], 2)
  {'0': 0, '1': 1, 'cat': 0, 'dog': 1}
  >>> class_numbers(["10", "3", "7"], 3)
  {'10': 0, '3': 1, '7': 2}
  """
  named = {name: number for number, name in enumerate(names)}
  if any(name.isdecimal() for name in names):
    return named
  return {str(number): number for number in range(count)} | named


def scales(guidance: float | str | None) -> dict[str, float]:
  """The scales of "class=2,mask=1.5", in their order; empty for a number.

  Raises:
    ValueError: If it is neither.
  """
  if not isinstance(guidance, str):
    return {}
  found: dict[str, float] = {}
  for one in guidance.split(","):
    name, _, text = one.partition("=")
    try:
      found[name.strip()] = float(text)
    except ValueError:
      found = {}
      break
  if len(found) < guidance.count(",") + 1 or not all(
    map(math.isfinite, found.values())
  ):
    raise ValueError(
      f"`guidance={guidance}` must be a number, or NAME=NUMBER of each part, "
      "such as class=2,mask=1.5"
    )
  return found


def numbers(guidance: float | str | None) -> float | tuple[float, ...] | None:
  """The scales of guidance, which are data and not compiled in."""
  if isinstance(guidance, str):
    return tuple(scales(guidance).values())
  return guidance


def guided_by_name(
  predict: dj.prediction.Predict,
  schedule: dj.schedules.Schedule,
  conditions: dj.conditions.Conditions,
  asked: float | str | None,
  scale: Any,
) -> tuple[dj.prediction.Predict, Any]:
  """The network, guided if each part has its own scale.

  Args:
    predict: The network, which takes a condition.
    schedule: The noise schedule.
    conditions: The run's conditions.
    asked: The option `guidance`.
    scale: Its ``numbers``.

  Returns:
    The network, and the scale that remains to be applied.
  """
  names = tuple(scales(asked))
  if not names or scale is None:
    return predict, scale
  each = dict(zip(names, scale, strict=True))
  return dj.composition.composed(
    predict, schedule, conditions.without, each
  ), None


def hidden_parts(config: Config) -> list[str]:
  """The parts of the condition that training hides now and then."""
  parts = (*networks.vectors(config), *networks.planes(config))
  label = [dj.conditions.CLASS] if networks.hides_labels(config) else []
  return label + [part.name for part in parts if part.dropout]


def given_parts(config: Config, cond: Sequence[str]) -> list[str]:
  """Those that samples have: what training never hides is no direction.

  Args:
    config: The configuration.
    cond: The option `cond`.
  """
  given = [dj.conditions.CLASS, *(one.partition("=")[0] for one in cond)]
  return [name for name in hidden_parts(config) if name in given]


def no_direction(asked: str, part: str) -> ValueError:
  """The error of guidance towards a part that samples are not given."""
  return ValueError(
    f"{asked} guides towards what images are given, and these are given no "
    f"{part}: pass `cond={part}=VALUE`"
  )


def check_scales(config: Config, guidance: str, given: Sequence[str]) -> None:
  """Checks that each part to guide is given, and had a dropout in training.

  Raises:
    ValueError: If not; the message has the parts that can be guided.
  """
  if samplers.projects(config):
    raise ValueError(
      f"`guidance={guidance}`: sampling.apg projects guidance of one scale: "
      "name a number, or set sampling.apg.eta=None"
    )
  known = hidden_parts(config)
  wrong = [name for name in scales(guidance) if name not in known]
  if wrong:
    raise ValueError(
      f"`guidance={guidance}`: this run's training hides "
      f"{', '.join(known) or 'nothing'}, and not {wrong[0]}; only what it "
      "hides can be guided"
    )
  for name in scales(guidance):
    if name not in given:
      raise no_direction(f"`guidance={guidance}`", name)


def check_guidable(config: Config, asked: str) -> None:
  """Refuses to guide a network that always had its condition, or has none.

  Raises:
    ValueError: Beginning with what was asked.
  """
  if not hidden_parts(config):
    raise ValueError(
      f"{asked} needs a network that can draw without a class, and one "
      "trained without label_dropout cannot; sample with a `classifier` instead"
    )


def check_same_data(
  option: str,
  theirs: Mapping[str, Any],
  ours: Mapping[str, Any],
  *,
  classes: bool = True,
) -> None:
  """Checks that two runs mean the same by each number and by each class.

  Args:
    option: What names the other run, for errors.
    theirs: The data of that run.
    ours: The data of the run that it is used with.
    classes: Whether their classes must be the same, too.

  Raises:
    ValueError: If their units or their classes differ.
  """
  a, b = (dj.data.values.from_json(d.get("values")) for d in (theirs, ours))
  if not a.agrees(b):
    raise ValueError(
      f"{option} was trained on values of {a}, the run on {b}: train both on "
      "data of the same units"
    )
  if not classes:
    return
  counts = [d["num_classes"] for d in (theirs, ours)]
  if not all(counts):  # unknown, of imported weights
    return
  if counts[0] != counts[1]:
    raise ValueError(
      f"{option} has num_classes {counts[0]}, the run {counts[1]}: train both "
      "on the same classes"
    )
  names = [d.get("class_names", []) for d in (theirs, ours)]
  # Imported weights have numbers as names, or none.
  if any(n == [*map(str, range(len(n)))] for n in names):
    return
  for k, (one, other) in enumerate(zip(*names, strict=True)):
    if one != other:
      raise ValueError(
        f"{option} has {one!r} as class {k}, the run {other!r}: train both on "
        "the same classes"
      )


def guiding_classifier(
  workdir: pathlib.Path, config, data
) -> GuidingClassifier:
  """The classifier of a run, which must fit the sampled run.

  Raises:
    ValueError: If its images, classes or noise differ.
  """
  theirs, their_data = directory.load(workdir)
  if not is_classifier(theirs):
    raise ValueError(
      f"`classifier={workdir}` is not a classifier: train one with "
      "experiments.train --config=configs/classifier.py"
    )
  ours = {
    "image_shape": data["image_shape"], "num_classes": data["num_classes"],
  }  # fmt: skip
  if not ours["num_classes"]:  # unknown, of imported weights
    del ours["num_classes"]
  for what, value in ours.items():
    if their_data[what] != value:
      raise ValueError(
        f"`classifier={workdir}` has {what} {their_data[what]}, the run {value}"
      )
  check_same_data(f"`classifier={workdir}`", their_data, data)
  shape = tuple(data["image_shape"])
  net = networks.classifier(theirs, shape, their_data["num_classes"])
  if not processes.same_noise(theirs, config):
    raise ValueError(
      f"`classifier={workdir}` has the schedule {theirs.schedule.to_dict()}, "
      f"the run {config.schedule.to_dict()}"
    )
  state = restoring.restore(workdir, theirs, net, shape)
  ema = restoring.average(theirs, None)
  return GuidingClassifier(str(workdir), net, restoring.weights(state, ema))
