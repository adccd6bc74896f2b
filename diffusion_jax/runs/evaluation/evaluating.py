"""Evaluates a run: one row for each set of parameters."""

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

import diffusion_jax as dj
from diffusion_jax.runs import console
from diffusion_jax.runs.evaluation import (
  features,
  measures,
  scores,
  stored,
  subject,
  sweep,
)
from diffusion_jax.runs.evaluation.options import EvaluationOptions
from diffusion_jax.runs.evaluation.subject import Subject
from diffusion_jax.runs.options import PathLike


def measure(
  asked: Subject,
  samples: dj.data.Source | None,
  theirs: Callable[[], features.Seen],
  options: EvaluationOptions,
) -> dict[str, Any]:
  """Computes all metrics.

  Args:
    asked: What to measure.
    samples: The samples; None if no metric needs any.
    theirs: The features of the data.
    options: The options.

  Returns:
    The second part of a row.
  """
  row, plan, data = {}, asked.plan, asked.data
  for name in asked.metrics:
    if name == "frechet" and samples is not None:
      drawn = samples.gather(np.arange(asked.num))["image"]
      rule = None if plan is None else options.quantise
      key = jax.random.key(options.seed)
      row |= measures.frechet(drawn, data.pictures, rule, key)
    elif name == "bpd" and plan is not None:
      row |= measures.bits_per_dim(plan, data.pictures)
  if asked.network is not None:
    row |= scores.measure(
      asked.of_features,
      asked.network,
      data,
      theirs(),
      samples,
      asked.num,
      seed=options.seed,
      batch=options.batch,
    )
  return row


def check_row(path: pathlib.Path | None, asked: Subject) -> None:
  """Checks, before any work, that the row can be written.

  Raises:
    ValueError: If it cannot, nor can the samples.
  """
  if path is None or os.access(path if path.exists() else path.parent, os.W_OK):
    return
  if asked.draws:
    raise ValueError(
      f"{path.parent} cannot be written, where samples are kept meanwhile: "
      "make it writable, or copy the run"
    )
  console.say_first(
    f"{path} cannot be written, so the figures are only printed"
  )


def keep(path: pathlib.Path | None, row: dict[str, Any]) -> None:
  """Appends a row, or prints it if it cannot be written.

  Raises:
    OSError: If it could not be written.
  """
  line = json.dumps(row)
  if path is None or not os.access(path.parent, os.W_OK):
    console.say_first(line)
    return
  if jax.process_index() > 0:
    return
  try:
    with path.open("a") as file:
      file.write(line + "\n")
  except OSError as error:
    console.say(line)
    raise OSError(f"{error}: the row is printed instead") from error
  console.say(f"appended to {path}")


def _samples(asked: Subject, options: EvaluationOptions, generators):
  """The samples to measure: drawn, given, or none."""
  if asked.plan is not None and asked.draws:
    return stored.drawn(asked.plan, generators, keep=options.keep_samples)
  return contextlib.nullcontext(asked.given)


def evaluate(
  workdir: PathLike | None, options: EvaluationOptions, *, again: bool = True
) -> list[dict[str, Any]]:
  """Computes the metrics, prints them and appends them to the run's rows.

  Args:
    workdir: The run directory; None to measure given samples only.
    options: The options.
    again: Whether to measure what has a row already. A sweep never does.

  Returns:
    A row of evaluation.jsonl for each set of parameters or samples.

  Raises:
    ValueError: If something is missing or does not fit.
    OSError: If a row could not be written.
  """
  folder = None if workdir is None else pathlib.Path(workdir)
  subjects = subject.read(folder, options)
  asked = subjects[0]
  path = None if folder is None else folder / "evaluation.jsonl"
  check_row(path, asked)

  @functools.cache
  def theirs() -> features.Seen:
    assert asked.network is not None
    return scores.look_at_data(
      asked.of_features, asked.network, asked.data, options.batch
    )

  generators = []
  if asked.plan is not None and asked.draws:
    generators = stored.generators(asked.plan)
  if asked.plan is not None and asked.sweeps:
    plans = sweep.plans(asked.plan, asked.steps, asked.averages)
    subjects = [dataclasses.replace(asked, plan=plan) for plan in plans]
  rows = []
  for one in subjects:
    made = subject.how(one, options)
    row = None
    if path is not None and (asked.sweeps or not again):
      row = sweep.find(path, made)
    if row is None:
      with _samples(one, options, generators) as samples:
        row = made | measure(one, samples, theirs, options)
        keep(path, row)
    rows.append(row)
  if asked.sweeps:
    sweep.say_table(rows, asked.metrics)
  return rows
