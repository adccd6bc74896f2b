"""Measures samples of a run, or any pictures, and how likely data are.

  python -m experiments.evaluate --workdir=runs/digits
  python -m experiments.evaluate --workdir=runs/digits --metrics=frechet,bpd
  python -m experiments.evaluate --workdir=runs/cifar --num=50000 \
    --metrics=fid,is,kid,pr --features=inception --inception=PATH
  python -m experiments.evaluate --samples=PICTURES --reference=REFERENCE.npz \
    --metrics=fid,sfid --features=inception --inception=PATH

  python -m experiments.evaluate --workdir=runs/digits --curve --ema=sweep

"frechet" is the Frechet distance in pixel space, next to that of one random
half of the data to the other, and which classes the samples look like. "bpd"
is the variational bound on -log2 p(x_0) in bits per dimension. "agreement" is
how often a classifier sees the class that was asked for. fid, sfid, is, kid,
pr, fid_inf and halves are explained in docs/evaluation.md.

--features names what they look at, any network of JAX, PyTorch or NumPy.
--curve measures each checkpoint that is kept, --ema=sweep each average.

Samples that are done are kept until the end, so that the same command goes on
after an interruption and gives the same figures. These are appended to
evaluation.jsonl in the run directory with how they were made.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

import diffusion_jax as dj
from experiments import (
  cli,
  devices,
  features,
  measures,
  sample,
  scores,
  stored,
  subject as subjects,
  sweep,
)
from experiments.subject import METRICS, Subject


def define_flags() -> flags.FlagValues:
  """Those of ``sample``, and those that say what to measure."""
  values = sample.define_flags(flags.FlagValues(), num=None)

  def define(kind, name, default, *rest):
    kind(name, default, *rest, flag_values=values)

  text = flags.DEFINE_string
  define(flags.DEFINE_list, "metrics", "frechet", f"of {', '.join(METRICS)}")
  define(
    text,
    "features",
    "pixels",
    f"what {', '.join(scores.METRICS)} look at: {', '.join(features.NAMES)}, "
    "or module:function or path/to/file.py:function, which returns a network "
    "of any framework, such as experiments.efficientnet:lite0",
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
  define(
    flags.DEFINE_bool,
    "curve",
    False,
    "measure each checkpoint that is kept, not only the newest",
  )
  values[
    "ema"
  ].help += f"; {sweep.SWEEP} measures the raw parameters and each average"
  return values


def measure(
  subject: Subject,
  samples: dj.data.Source | None,
  theirs: Callable[[], features.Seen],
  values,
) -> dict[str, Any]:
  """All figures.

  Args:
    subject: What is measured.
    samples: None where no metric looks at any.
    theirs: What metrics of features need to know of the data.
    values: Of the flags.

  Returns:
    The second part of a row.
  """
  row, plan, data = {}, subject.plan, subject.data
  for name in subject.metrics:
    if name == "frechet" and samples is not None:
      drawn = samples.gather(np.arange(subject.num))["image"]
      rule = None if plan is None else values.quantise
      key = jax.random.key(values.seed)
      row |= measures.frechet(drawn, data.pictures, rule, key)
    elif name == "bpd" and plan is not None:
      row |= measures.bits_per_dim(plan, data.pictures)
  if subject.network is not None:
    row |= scores.measure(
      subject.of_features,
      subject.network,
      data,
      theirs(),
      samples,
      subject.num,
      seed=values.seed,
      batch=values.batch,
    )
  return row


def check_row(path: pathlib.Path | None, asked: Subject) -> None:
  """Looks, before any work, whether the row can be kept.

  Raises:
    ValueError: If neither can the samples.
  """
  if path is None or os.access(path if path.exists() else path.parent, os.W_OK):
    return
  if asked.draws:
    raise ValueError(
      f"{path.parent} cannot be written, where samples are kept meanwhile: "
      "make it writable, or copy the run"
    )
  cli.say_first(f"{path} cannot be written, so the figures are only printed")


def keep(path: pathlib.Path | None, row: dict[str, Any]) -> None:
  """Appends a row; one that cannot be written is printed, and never lost.

  Raises:
    SystemExit: Status 1, if it could not be written.
  """
  line = json.dumps(row)
  if path is None or not os.access(path.parent, os.W_OK):
    cli.say_first(line)
    return
  if jax.process_index() > 0:
    return
  try:
    with path.open("a") as file:
      file.write(line + "\n")
  except OSError as error:
    cli.say(line)
    raise cli.fail(f"{error}: the row is printed instead", status=1) from error
  cli.say(f"appended to {path}")


def _samples(asked: Subject, values, generators):
  """What is measured: drawn or given samples, or none."""
  if asked.plan is not None and asked.draws:
    return stored.drawn(
      asked.plan, values.quantise, generators, keep=values.keep_samples
    )
  return contextlib.nullcontext(asked.given)


def evaluate(values: flags.FlagValues) -> None:
  """Measures all that the command line asks for."""
  asked = subjects.read(values)
  path = None
  if values.workdir is not None:
    path = pathlib.Path(values.workdir) / "evaluation.jsonl"
  check_row(path, asked)

  @functools.cache
  def theirs() -> features.Seen:
    assert asked.network is not None
    return scores.look_at_data(
      asked.of_features, asked.network, asked.data, values.batch
    )

  generators, plans = [], [asked.plan]
  if asked.plan is not None and asked.draws:
    generators = stored.generators(asked.plan)
  if asked.plan is not None and asked.sweeps:
    plans = sweep.plans(asked.plan, asked.steps, asked.averages)
  rows = []
  for plan in plans:
    one = dataclasses.replace(asked, plan=plan)
    made = subjects.how(one, values)
    row = sweep.find(path, made) if path and asked.sweeps else None
    if row is None:
      with _samples(one, values, generators) as samples:
        row = made | measure(one, samples, theirs, values)
        keep(path, row)
    rows.append(row)
  if asked.sweeps:
    sweep.say_table(rows, asked.metrics)


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = define_flags()
  cli.parse(argv, values)
  with cli.user_errors():
    evaluate(values)


if __name__ == "__main__":
  cli.run(main)
