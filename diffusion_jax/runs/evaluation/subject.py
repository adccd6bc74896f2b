"""Reads and checks what is to be measured."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import diffusion_jax as dj
from diffusion_jax.data.values import BYTES
from diffusion_jax.runs import (
  choices,
  datasets,
  directory,
  planning,
)
from diffusion_jax.runs.evaluation import (
  checks,
  features,
  measures,
  references,
  scores,
  stored,
  sweep,
)
from diffusion_jax.runs.evaluation.options import (
  METRICS,
  NO_SAMPLES,
  EvaluationOptions,
)
from diffusion_jax.runs.options import PathLike


@dataclasses.dataclass(frozen=True)
class Subject:
  """What to measure.

  Attributes:
    metrics: Names of the metrics.
    plan: How to draw samples, or the model for bits per dimension; None if
      samples are given, or not needed.
    given: The samples, if they are given.
    path: Where they were given.
    num: How many.
    data: The reference.
    network: The feature network, if any metric needs one.
    steps: The checkpoints to measure; empty without a plan.
    averages: The averages to measure of each.
  """

  metrics: Sequence[str]
  plan: planning.Plan | None
  given: dj.data.Source | None
  path: str | None
  num: int
  data: references.Reference
  network: features.Features | None = None
  steps: Sequence[int] = ()
  averages: Sequence[str] = ()

  @property
  def of_features(self) -> list[str]:
    """The metrics of features."""
    return [name for name in self.metrics if name in scores.METRICS]

  @property
  def draws(self) -> bool:
    """Whether samples are drawn."""
    return self.plan is not None and not set(self.metrics) <= NO_SAMPLES

  @property
  def sweeps(self) -> bool:
    """Whether there may be more than one row."""
    return len(self.steps) * len(self.averages) > 1


def read(
  workdir: pathlib.Path | None, options: EvaluationOptions
) -> list[Subject]:
  """Reads the run and checks the options for it.

  Args:
    workdir: The run directory; None to measure given samples only.
    options: The options.

  Returns:
    What to measure: a subject for each of the given samples, or one.

  Raises:
    ValueError: If something is missing or does not fit.
  """
  if not options.metrics:
    raise ValueError(
      f"`metrics` are missing: name some of {', '.join(METRICS)}"
    )
  for name in options.metrics:
    choices.named("`metrics`", name, METRICS)
  plan = None
  if not options.samples and not set(options.metrics) <= set(scores.OF_DATA):
    plan = _plan(workdir, options)
  data = _data(workdir, options, plan)
  subjects = [
    _given(options, data, path) for path in _paths(options.samples)
  ] or [_drawn(options, data, plan)]
  if not subjects[0].of_features:
    return subjects
  network = features.named(options.features, options.inception)
  for subject in subjects:
    scores.check(
      subject.of_features, network, data, _shape(subject), subject.num
    )
  return [dataclasses.replace(one, network=network) for one in subjects]


def _paths(samples: Sequence[PathLike]) -> Sequence[str]:
  """The option `samples`; a path with a comma is no list."""
  paths = [str(path) for path in samples]
  whole = ",".join(paths)
  exists = paths and pathlib.Path(whole).expanduser().exists()
  return [whole] if exists else paths


def _given(
  options: EvaluationOptions, data: references.Reference, path: str
) -> Subject:
  """Given samples, as a subject."""
  shape = (0, 0, 0) if data.source is None else data.source.image_shape
  given = datasets.in_units_of(
    BYTES if data.source is None else data.source.values,
    "samples",
    path,
    rank=len(shape) - 1,
  )
  num = options.num or len(given)
  checks.check_given(options.metrics, given, data, num)
  given = dj.data.subset(given, num)
  return _checked(
    Subject(options.metrics, None, given, path, num, data), options
  )


def _drawn(
  options: EvaluationOptions,
  data: references.Reference,
  plan: planning.Plan | None,
) -> Subject:
  """What a run draws, or the data alone, as a subject."""
  num = options.num or _usual_num(data)
  if plan is not None:
    checks.check_plan(options.metrics, plan, data, num)
    plan = plan.asking(num=num, batch=min(plan.options.batch, num))
  return _checked(
    Subject(options.metrics, plan, None, None, num, data), options
  )


def _shape(subject: Subject) -> tuple[int, ...]:
  """The shape of a sample."""
  if subject.given is not None:
    return subject.given.image_shape
  if subject.plan is not None:
    return subject.plan.last.image_shape
  return subject.data.pictures.image_shape


def _checked(subject: Subject, options: EvaluationOptions) -> Subject:
  """The subject, with its checkpoints and averages.

  Raises:
    ValueError: If it does not fit the data or the metrics.
  """
  data, num = subject.data, subject.num
  if "frechet" in subject.metrics:
    measures.check_shapes(_shape(subject), data.pictures.image_shape)
    if min(num, len(data.pictures) // 2) < 2:
      raise ValueError(
        f"frechet of {num} samples to {len(data.pictures)} images: must be at "
        "least 2 and 4"
      )
  checks.check_bytes(subject.metrics, subject.given, data)
  return _spread_out(subject, options)


def _spread_out(subject: Subject, options: EvaluationOptions) -> Subject:
  """The subject with the checkpoints and averages of `curve` and `ema`."""
  plan, ema = subject.plan, options.ema
  if options.curve and options.checkpoint is not None:
    raise ValueError(
      f"`checkpoint={options.checkpoint}` is one, and `curve` measures all: "
      "leave one of them out"
    )
  if plan is not None:
    return dataclasses.replace(
      subject,
      steps=sweep.steps(plan) if options.curve else [plan.step],
      averages=sweep.averages(plan, ema),
    )
  if named := options.of_drawing():
    raise ValueError(
      f"{', '.join(f'`{name}`' for name in named)}: of what a `workdir` draws; "
      "leave `samples` out, and name a metric of samples"
    )
  return subject


def _plan(
  workdir: pathlib.Path | None, options: EvaluationOptions
) -> planning.Plan:
  """How to draw samples; in a sweep, with the default average first."""
  if workdir is None:
    raise ValueError("`workdir` is missing: the directory of a run")
  ema = None if sweep.asked(options.ema) else options.ema
  return planning.plan(workdir, dataclasses.replace(options, ema=ema))


def _usual_num(data: references.Reference) -> int:
  """As many samples as there are data."""
  if data.source is None:
    raise ValueError(
      f"`num` is missing: {data.name} does not say how many pictures its "
      "statistics are of"
    )
  return len(data.pictures)


def _data(
  workdir: pathlib.Path | None,
  options: EvaluationOptions,
  plan: planning.Plan | None,
) -> references.Reference:
  """The reference: the option's, or the run's data."""
  if options.reference is not None:
    values = BYTES if plan is None else plan.last.values
    return references.named(str(options.reference), values)
  if plan is not None:
    return _trained_on(plan.last.workdir)
  if workdir is None:
    raise ValueError(
      "there is nothing to compare with: name a `reference`, or a `workdir` "
      "whose data to take"
    )
  return _trained_on(workdir)


def _trained_on(workdir: pathlib.Path) -> references.Reference:
  """The data of a run, if they have not changed since training.

  Raises:
    ValueError: If they have changed.
  """
  config, data = directory.load(workdir)
  source = datasets.source(config, elsewhere="`reference`")
  trained_on = data.get("fingerprint")  # none of imported weights
  if trained_on not in (None, source.fingerprint):
    raise ValueError(
      f"{source.name} has changed since {workdir} was trained on it "
      f"(fingerprint {trained_on} then, {source.fingerprint} now): put it "
      "back, or name what to compare with as `reference`"
    )
  return references.of_source(source)


def how(subject: Subject, options: EvaluationOptions) -> dict[str, Any]:
  """The first part of a row: everything that determines the figures."""
  source, plan = subject.data.source, subject.plan
  row = {
    "data": None if source is None else len(source),
    "fingerprint": subject.data.fingerprint,
    "seed": options.seed,
    "metrics": list(subject.metrics),
  }
  if subject.network is not None:
    row["feature_network"] = subject.network.name
  if not set(subject.metrics) <= NO_SAMPLES:
    row["samples"] = subject.num
  if "bpd" in subject.metrics:
    row["images"] = subject.num
  if subject.given is not None:
    return row | {
      "pictures": subject.path,
      "pictures_hash": subject.given.fingerprint,
    }
  if plan is None:
    return row
  drawing = plan.options
  return row | {
    "step": plan.step,
    "ema": drawing.ema,
    "sampler": drawing.sampler,
    "steps": len(plan.pairs),
    "spacing": drawing.spacing,
    "eta": drawing.eta,
    "quantise": drawing.quantise,
    "guidance": drawing.guidance,
    "classifier": None if plan.classifier is None else plan.classifier.name,
    "upsamplers": [str(stage.workdir) for stage in plan.upsamplers],
    "low_res_noise": options.low_res_noise,
    "samples_hash": stored.identity(plan),
  }
