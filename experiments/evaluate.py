"""Measures samples of a run, or any pictures, and how likely data are.

  python -m experiments.evaluate --workdir=runs/digits
  python -m experiments.evaluate --workdir=runs/digits --metrics=frechet,bpd
  python -m experiments.evaluate --workdir=runs/cifar --num=50000 \
    --metrics=fid,is,kid,pr --features=inception --inception=PATH
  python -m experiments.evaluate --samples=PICTURES --reference=REFERENCE.npz \
    --metrics=fid,sfid --features=inception --inception=PATH

"frechet" is the Frechet distance in pixel space, next to that of one random
half of the data to the other, and which classes the samples look like. "bpd"
is the variational bound on -log2 p(x_0) in bits per dimension. "agreement" is
how often a classifier sees the class that was asked for. fid, sfid, is, kid,
pr and fid_inf are explained in docs/evaluation.md.

Samples that are done are kept until the end, so that the same command goes on
after an interruption and gives the same figures. These are appended to
evaluation.jsonl in the run directory with how they were made.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import diffusion_jax as dj
from experiments import (
  assemble,
  cli,
  devices,
  features,
  measures,
  references,
  runs,
  sample,
  scores,
  stored,
)

OF_RUNS = ("frechet", "bpd", "agreement")
METRICS = (*OF_RUNS, *scores.METRICS)


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is measured.

  Attributes:
    metrics: Which figures are asked for.
    plan: How samples are drawn, or whose bits are counted; None if they are
      given.
    given: The samples, if they are.
    num: How many.
    data: What they are compared with.
    network: Of features, if any metric needs one.
  """

  metrics: Sequence[str]
  plan: sample.Plan | None
  given: dj.data.Source | None
  num: int
  data: references.Reference
  network: features.Features | None

  @property
  def of_features(self) -> list[str]:
    """The metrics of features."""
    return [name for name in self.metrics if name in scores.METRICS]


def define_flags() -> flags.FlagValues:
  """Those of ``sample``, and those that say what to measure."""
  values = sample.define_flags(flags.FlagValues(), num=None)

  def define(kind, name, default, *rest):
    kind(name, default, *rest, flag_values=values)

  text = flags.DEFINE_string
  define(flags.DEFINE_list, "metrics", "frechet", f"of {', '.join(METRICS)}")
  define(
    flags.DEFINE_enum,
    "features",
    "pixels",
    list(features.NETWORKS),
    "what fid, sfid, is, kid, pr and fid_inf look at",
  )
  define(
    text,
    "inception",
    None,
    "file or folder of Inception's weights, or 'download'; by default the "
    f"folder {dj.metrics.inception_weights.CACHE}",
  )
  define(
    text,
    "reference",
    None,
    "what samples are compared with: an .npz of statistics or reference "
    "pictures, or any data; by default the run's data",
  )
  define(
    text, "samples", None, "pictures to measure (folder, .zip, .npz, .npy)"
  )
  define(
    flags.DEFINE_bool, "keep_samples", False, "keep the samples that are drawn"
  )
  return values


def subject(values: flags.FlagValues) -> Subject:
  """Reads and checks all that the command line names.

  Raises:
    ValueError: If something is missing or does not fit.
  """
  for name in values.metrics:
    assemble.named("--metrics", name, METRICS)
  plan = given = None
  if values.samples is None:
    plan = sample.plan(values)
  else:
    given = dj.data.load(values.samples)
  data = _data(values, plan)
  num = values.num or len(data.pictures if given is None else given)
  if given is not None:
    _check_given(values.metrics, given, num)
    shape = given.image_shape
  else:
    assert plan is not None
    _check_plan(values.metrics, plan, data, num)
    plan = dataclasses.replace(plan, num=num, batch=min(plan.batch, num))
    shape = plan.last.image_shape
  if "frechet" in values.metrics:
    measures.check_shapes(shape, data.pictures.image_shape)
  found = Subject(values.metrics, plan, given, num, data, None)
  if not found.of_features:
    return found
  network = features.named(values.features, values.inception)
  scores.check(found.of_features, network, data, shape, num)
  return dataclasses.replace(found, network=network)


def _data(values, plan: sample.Plan | None) -> references.Reference:
  """What to compare with: what is named, or the run's data."""
  if values.reference is not None:
    return references.named(values.reference)
  if plan is not None:
    return references.of_source(
      assemble.source(plan.last.config, elsewhere="--reference")
    )
  if values.workdir is None:
    raise ValueError(
      "--samples are compared with a --reference, or with the data of a "
      "--workdir; name one"
    )
  config, _ = runs.load(pathlib.Path(values.workdir))
  return references.of_source(assemble.source(config, elsewhere="--reference"))


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
    measures.told_classes(plan)
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
  }
  if subject.metrics != ["bpd"]:
    row["samples"] = subject.num
  if plan is None:
    assert subject.given is not None
    return row | {
      "pictures": values.samples,
      "pictures_hash": subject.given.fingerprint,
    }
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
  }


def measure(subject: Subject, samples: dj.data.Source | None, values) -> dict:
  """All figures; ``samples`` is None where no metric looks at any."""
  row, plan, data = {}, subject.plan, subject.data
  drawn = np.empty(0)
  if samples is not None and {"frechet", "agreement"} & set(subject.metrics):
    drawn = samples.gather(np.arange(subject.num))["image"]
  for name in subject.metrics:
    if name == "frechet":
      rule = None if plan is None else values.quantise
      row |= measures.frechet(drawn, data.pictures, rule)
    elif name == "agreement" and plan is not None:
      row |= measures.agreement(plan, data.pictures, drawn)
    elif name == "bpd" and plan is not None:
      row |= measures.bits_per_dim(plan, data.pictures)
  if subject.network is not None and samples is not None:
    row |= scores.measure(
      subject.of_features,
      subject.network,
      data,
      samples,
      subject.num,
      seed=values.seed,
      batch=values.batch,
    )
  return row


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = define_flags()
  cli.parse(argv, values)
  with cli.user_errors():
    asked = subject(values)
    samples = asked.given
    if asked.plan is not None and set(asked.metrics) != {"bpd"}:
      samples = stored.draw(asked.plan, values.quantise)
    row = how(asked, values) | measure(asked, samples, values)
  line = json.dumps(row)
  if values.workdir is None:
    cli.say_first(line)
  elif jax.process_index() == 0:
    path = pathlib.Path(values.workdir) / "evaluation.jsonl"
    with path.open("a") as file:
      file.write(line + "\n")
    cli.say(f"appended to {path}")
    if isinstance(samples, stored.Stored) and not values.keep_samples:
      samples.remove()


if __name__ == "__main__":
  cli.run(main)
