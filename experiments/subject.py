"""What a command line of ``evaluate`` asks to be measured, read and checked."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

import diffusion_jax as dj
from experiments import (
  assemble,
  features,
  measures,
  references,
  runs,
  sample,
  scores,
  stored,
  sweep,
)

OF_RUNS = ("frechet", "bpd")  # of pixels and of the network
METRICS = (*OF_RUNS, *scores.METRICS)
NO_SAMPLES = {"bpd", *scores.OF_DATA}


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is measured.

  Attributes:
    metrics: Which figures are asked for.
    plan: How samples are drawn, or whose bits are counted; None if they are
      given, or none are looked at.
    given: The samples, if they are.
    num: How many.
    data: What they are compared with.
    network: Of features, if any metric needs one.
    steps: The checkpoints to measure; none where there is no plan.
    averages: Of each.
  """

  metrics: Sequence[str]
  plan: sample.Plan | None
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


def read(values: flags.FlagValues) -> Subject:
  """Reads and checks all that the command line names.

  Raises:
    ValueError: If something is missing or does not fit.
  """
  for name in values.metrics:
    assemble.named("--metrics", name, METRICS)
  plan = given = None
  if values.samples is not None:
    given = dj.data.load(values.samples)
  elif not set(values.metrics) <= set(scores.OF_DATA):
    plan = _plan(values)
  data = _data(values, plan)
  num = values.num or _usual_num(data, given)
  if given is not None:
    _check_given(values.metrics, given, num)
    shape = given.image_shape
  elif plan is not None:
    _check_plan(values.metrics, plan, data, num)
    plan = dataclasses.replace(plan, num=num, batch=min(plan.batch, num))
    shape = plan.last.image_shape
  else:
    shape = data.pictures.image_shape
  if "frechet" in values.metrics:
    measures.check_shapes(shape, data.pictures.image_shape)
    if min(num, len(data.pictures) // 2) < 2:
      raise ValueError(
        f"frechet of {num} samples to {len(data.pictures)} images: must be at "
        "least 2 and 4"
      )
  _check_bytes(values.metrics, given, data)
  found = Subject(values.metrics, plan, given, num, data, None)
  found = _spread_out(found, values)
  if not found.of_features:
    return found
  network = features.named(values.features, values.inception)
  scores.check(found.of_features, network, data, shape, num)
  return dataclasses.replace(found, network=network)


def _check_bytes(metrics, given, data: references.Reference) -> None:
  """Refuses metrics of pictures where values are no bytes."""
  bytes_ = dj.data.values.BYTES
  for source in (given, data.source):
    if source is not None and source.values != bytes_ and metrics != ["bpd"]:
      raise ValueError(
        f"{source.name} has values {source.values}: only bpd is measured of "
        "these; the other metrics are of pictures of bytes"
      )


def _spread_out(found: Subject, values) -> Subject:
  """With the checkpoints and averages that --curve and --ema name."""
  plan, swept = found.plan, values.ema == sweep.SWEEP
  if plan is not None:
    return dataclasses.replace(
      found,
      steps=sweep.steps(plan) if values.curve else [plan.step],
      averages=sweep.averages(plan) if swept else [plan.ema],
    )
  if values.curve or swept:
    raise ValueError(
      f"--curve and --ema={sweep.SWEEP} measure what a --workdir draws: leave "
      "--samples out, and name a metric of samples"
    )
  return found


def _plan(values) -> sample.Plan:
  """What is drawn; of a sweep, with the usual average first."""
  wanted = values.ema
  if wanted == sweep.SWEEP:
    values.ema = None
  try:
    return sample.plan(values)
  finally:
    values.ema = wanted


def _usual_num(data: references.Reference, given) -> int:
  """As many samples as were given, or as there are data."""
  if given is None and data.source is None:
    raise ValueError(
      f"--num is missing: {data.name} does not say of how many pictures its "
      "statistics are"
    )
  return len(data.pictures if given is None else given)


def _data(values, plan: sample.Plan | None) -> references.Reference:
  """What to compare with: what is named, or the run's data."""
  if values.reference is not None:
    return references.named(values.reference)
  if plan is not None:
    return _trained_on(plan.last.workdir)
  if values.workdir is None:
    raise ValueError(
      "there is nothing to compare with: name a --reference, or a --workdir "
      "whose data to take"
    )
  return _trained_on(pathlib.Path(values.workdir))


def _trained_on(workdir: pathlib.Path) -> references.Reference:
  """The data of a run, if they are still what it was trained on.

  Raises:
    ValueError: If they have changed.
  """
  config, data = runs.load(workdir)
  source = assemble.source(config, elsewhere="--reference")
  known = data.get("fingerprint")  # none of imported weights
  if known not in (None, source.fingerprint):
    raise ValueError(
      f"{source.name} has changed since {workdir} was trained on it "
      f"(fingerprint {known} then, {source.fingerprint} now): put it back, or "
      "name what to compare with as --reference"
    )
  return references.of_source(source)


def _check_given(metrics, given: dj.data.Source, num: int) -> None:
  """Refuses what given samples cannot be asked."""
  for name in ("bpd", "agreement"):
    if name in metrics:
      raise ValueError(
        f"{name} asks the network of a --workdir; leave --samples out"
      )
  if num > len(given):
    raise ValueError(
      f"--num={num} images were asked for, --samples has {len(given)}"
    )


def _check_plan(metrics, plan: sample.Plan, data, num: int) -> None:
  """Refuses what the run cannot be asked."""
  if "agreement" in metrics:
    asked = stored.asked(plan)
    if not asked:
      raise ValueError(
        "agreement needs a network that is told classes, or a --classifier"
      )
    if max(asked) >= data.pictures.num_classes:
      raise ValueError(
        f"agreement: samples are of class {max(asked)}, {data.name} has "
        f"{data.pictures.num_classes} classes; compare with labelled data"
      )
  if "bpd" not in metrics:
    return
  if plan.upsamplers:
    raise ValueError(
      "bpd is that of one model: measure the run and its --upsampler apart"
    )
  if num > len(data.pictures):
    raise ValueError(
      f"--num={num} images were asked for, the data have {len(data.pictures)}"
    )


def how(subject: Subject, values: flags.FlagValues) -> dict[str, Any]:
  """The first part of a row: how the samples are made."""
  source, plan = subject.data.source, subject.plan
  row = {
    "data": None if source is None else len(source),
    "fingerprint": subject.data.fingerprint,
    "seed": values.seed,
    "metrics": list(subject.metrics),
  }
  if subject.network is not None:
    row["feature_network"] = subject.network.name
  if not set(subject.metrics) <= NO_SAMPLES:
    row["samples"] = subject.num
  if subject.given is not None:
    return row | {
      "pictures": values.samples,
      "pictures_hash": subject.given.fingerprint,
    }
  if plan is None:
    return row
  return row | {
    "step": plan.step,
    "ema": plan.ema,
    "sampler": plan.sampler,
    "steps": len(plan.pairs),
    "spacing": plan.spacing,
    "eta": plan.eta,
    "quantise": values.quantise,
    "guidance": plan.guidance,
    "classifier": None if plan.judge is None else plan.judge.name,
    "upsamplers": [str(stage.workdir) for stage in plan.upsamplers],
    "low_res_noise": values.low_res_noise,
    "samples_hash": stored.identity(plan, values.quantise),
  }
