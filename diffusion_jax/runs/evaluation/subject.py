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
  processes,
)
from diffusion_jax.runs.evaluation import (
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


@dataclasses.dataclass(frozen=True)
class Subject:
  """What to measure.

  Attributes:
    metrics: Names of the metrics.
    plan: How to draw samples, or the model for bits per dimension; None if
      samples are given, or not needed.
    given: The samples, if they are given.
    num: How many.
    data: The reference.
    network: The feature network, if any metric needs one.
    steps: The checkpoints to measure; empty without a plan.
    averages: The averages to measure of each.
  """

  metrics: Sequence[str]
  plan: planning.Plan | None
  given: dj.data.Source | None
  num: int
  data: references.Reference
  network: features.Features | None
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


def read(workdir: pathlib.Path | None, options: EvaluationOptions) -> Subject:
  """Reads the run and checks the options for it.

  Args:
    workdir: The run directory; None to measure given samples only.
    options: The options.

  Returns:
    What to measure.

  Raises:
    ValueError: If something is missing or does not fit.
  """
  if not options.metrics:
    raise ValueError(
      f"`metrics` are missing: name some of {', '.join(METRICS)}"
    )
  for name in options.metrics:
    choices.named("`metrics`", name, METRICS)
  plan = given = None
  if options.samples is None and not set(options.metrics) <= set(
    scores.OF_DATA
  ):
    plan = _plan(workdir, options)
  data = _data(workdir, options, plan)
  if options.samples is not None:
    shape = (0, 0, 0) if data.source is None else data.source.image_shape
    given = datasets.in_units_of(
      BYTES if data.source is None else data.source.values,
      "samples",
      options.samples,
      rank=len(shape) - 1,
    )
  num = options.num or _usual_num(data, given)
  if given is not None:
    _check_given(options.metrics, given, data, num)
    given = dj.data.subset(given, num)
    shape = given.image_shape
  elif plan is not None:
    _check_plan(options.metrics, plan, data, num)
    plan = plan.asking(num=num, batch=min(plan.options.batch, num))
    shape = plan.last.image_shape
  else:
    shape = data.pictures.image_shape
  if "frechet" in options.metrics:
    measures.check_shapes(shape, data.pictures.image_shape)
    if min(num, len(data.pictures) // 2) < 2:
      raise ValueError(
        f"frechet of {num} samples to {len(data.pictures)} images: must be at "
        "least 2 and 4"
      )
  _check_bytes(options.metrics, given, data)
  subject = Subject(options.metrics, plan, given, num, data, None)
  subject = _spread_out(subject, options)
  if not subject.of_features:
    return subject
  network = features.named(options.features, options.inception)
  scores.check(subject.of_features, network, data, shape, num)
  return dataclasses.replace(subject, network=network)


def _check_bytes(metrics, given, data: references.Reference) -> None:
  """Raises for metrics that need bytes, if the values are not bytes."""
  of_pictures = set(metrics) - {"bpd"}
  for source in (given, data.source):
    if source is not None and source.values != BYTES and of_pictures:
      raise ValueError(
        f"{source.name} has values {source.values}: only bpd is measured of "
        "these; the other metrics are of pictures of bytes"
      )


def _spread_out(subject: Subject, options: EvaluationOptions) -> Subject:
  """The subject with the checkpoints and averages of `curve` and `ema`."""
  plan, ema = subject.plan, options.ema
  if plan is not None:
    return dataclasses.replace(
      subject,
      steps=sweep.steps(plan) if options.curve else [plan.step],
      averages=sweep.averages(plan, ema),
    )
  if options.curve or sweep.asked(ema):
    raise ValueError(
      f"`curve` and `ema={sweep.SWEEP}` measure what a `workdir` draws: leave "
      "`samples` out, and name a metric of samples"
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


def _usual_num(data: references.Reference, given) -> int:
  """The number of samples given, or of the data."""
  if given is None and data.source is None:
    raise ValueError(
      f"`num` is missing: {data.name} does not say how many pictures its "
      "statistics are of"
    )
  return len(data.pictures if given is None else given)


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


def _check_given(metrics, given: dj.data.Source, data, num: int) -> None:
  """Checks that the metrics are possible for given samples."""
  if "bpd" in metrics:
    raise ValueError("bpd asks the network of a `workdir`; leave `samples` out")
  if "agreement" in metrics:
    _check_classes(range(given.num_classes), data)
  if num > len(given):
    raise ValueError(
      f"`num={num}` images were asked for, `samples` has {len(given)}"
    )


def _check_classes(asked: Sequence[int], data: references.Reference) -> None:
  """Checks that samples have classes, and the data those classes."""
  if not len(asked):
    raise ValueError(
      "agreement needs a class-conditional network, a `classifier`, or "
      "`samples` with labels"
    )
  classes = data.pictures.num_classes
  if max(asked) >= classes or classes < 2:
    raise ValueError(
      f"agreement: samples are of class {max(asked)}, {data.name} has "
      f"{classes} classes; compare with labelled data of all, two at least"
    )


def _check_plan(metrics, plan: planning.Plan, data, num: int) -> None:
  """Checks that the metrics are possible for the run."""
  if "agreement" in metrics:
    _check_classes(plan.classes, data)
  if "bpd" not in metrics:
    return
  if plan.upsamplers:
    raise ValueError(
      "bpd is that of one model: measure the run and its `upsampler` apart"
    )
  _check_bits(plan, data.pictures)
  if num > len(data.pictures):
    raise ValueError(
      f"`num={num}` images were asked for, the data have {len(data.pictures)}"
    )


def _check_bits(plan: planning.Plan, pictures: dj.data.Source) -> None:
  """Checks that the run's time is discrete, and the data are as its own."""
  if processes.is_continuous(plan.config):
    raise ValueError(
      "bpd is a sum over discrete steps, and schedule.name="
      f"{plan.config.schedule.name} is continuous: leave it out of `metrics`; "
      "in Python, dj.likelihood.probability_flow has its bits"
    )
  ours = {"image_shape": plan.image_shape}
  if plan.config.model.num_classes is not None:
    ours["num_classes"] = plan.config.model.num_classes
  for what, value in ours.items():
    if getattr(pictures, what) != value:
      raise ValueError(
        f"bpd: {pictures.name} has {what} {getattr(pictures, what)}, "
        f"{plan.workdir} {value}"
      )


def how(subject: Subject, options: EvaluationOptions) -> dict[str, Any]:
  """The first part of a row: how the samples are drawn."""
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
  if subject.given is not None:
    return row | {
      "pictures": str(options.samples),
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
