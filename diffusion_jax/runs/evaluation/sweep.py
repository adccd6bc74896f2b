"""The same samples from several checkpoints or averages of one run."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import diffusion_jax as dj
from diffusion_jax.runs import console, directory, networks, planning, restoring

SWEEP = "sweep"  # as ema

# What a table shows for each metric: values, and the error of each.
FIGURES = {
  "frechet": {"frechet": "frechet_std"},
  "bpd": {"bpd": "bpd_standard_error"},
  "fid": {"fid": "fid_std"},
  "sfid": {"sfid": "sfid_std"},
  "fid_inf": {"fid_inf": "fid_inf_std"},
  "is": {"is": "is_std"},
  "kid": {"kid": "kid_standard_error"},
  "pr": {"precision": None, "recall": None},
  "agreement": {"agreement": None},
}
LARGE_IS_GOOD = ("is", "pr", "agreement")


def asked(ema: str | None) -> bool:
  """Whether `ema` means several averages.

  >>> asked("sweep"), asked("sweep:0.05,0.1"), asked("0.999"), asked(None)
  (True, True, False, False)
  """
  return ema is not None and ema.partition(":")[0] == SWEEP


def averages(plan: planning.Plan, ema: str | None) -> list[str]:
  """The averages for the option `ema`.

  Args:
    plan: The plan of the run.
    ema: "sweep", the raw parameters and each average that was tracked, the
      fastest first; "sweep:0.05,0.1", averages of these widths; anything else,
      the plan's own.

  Returns:
    Their names.

  Raises:
    ValueError: If a width is not a number, or the run has saved no averages
      with one.
  """
  if ema is None or not asked(ema):
    return [plan.ema]
  _, colon, widths = ema.partition(":")
  if not colon:
    return ["raw", *networks.averages(plan.config)]
  return [
    restoring.average(plan.config, f"{dj.averages.PREFIX}:{width}")
    for width in widths.split(",")
  ]


def steps(plan: planning.Plan) -> list[int]:
  """The checkpoints that are kept, the oldest first."""
  with dj.checkpoint.Checkpoints(
    plan.workdir / "checkpoints", read_only=True
  ) as checkpoints:
    return checkpoints.steps()


def plans(
  plan: planning.Plan, steps: Sequence[int], averages: Sequence[str]
) -> Iterator[planning.Plan]:
  """The plan with the parameters of each checkpoint and each average.

  Everything else is the same, also the noise. Damaged checkpoints are skipped.

  Raises:
    ValueError: If all are damaged.
  """
  good = 0
  for step in steps:
    try:
      state = restoring.restore(
        plan.workdir, plan.config, plan.net, plan.image_shape, step
      )
    except dj.checkpoint.Damaged as error:
      console.warn(f"passed over: {error}")
      continue
    good += 1
    every = restoring.parameters_of(
      plan.workdir, plan.config, plan.net, plan.image_shape, state, averages
    )
    for name, params in zip(averages, every, strict=True):
      one = dataclasses.replace(plan, params=params, step=step)
      yield one.asking(ema=name)
  if not good:
    raise ValueError(f"every checkpoint of {plan.workdir} is damaged")


def find(path: pathlib.Path, made: dict[str, Any]) -> dict[str, Any] | None:
  """The last row of a file with these settings; None if there is none."""
  made = json.loads(json.dumps(made))
  rows = reversed(directory.read_rows(path))
  return next((row for row in rows if made.items() <= row.items()), None)


def say_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
  """Prints a table of all rows, and then the best by the first metric."""
  shown = [name for name in metrics if name in FIGURES]
  columns = [column for name in shown for column in FIGURES[name].items()]
  lines = [["step", "average", *(figure for figure, _ in columns)]]
  for row in rows:
    figures = [_figure(row, *column) for column in columns]
    lines.append([str(row["step"]), row["ema"], *figures])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  for line in lines:
    padded = map(str.ljust, line, widths)
    console.say_first("  ".join(padded).rstrip())
  if not shown:
    return
  figure, error = columns[0]
  choose = max if shown[0] in LARGE_IS_GOOD else min
  best = choose(rows, key=lambda row: row[figure])
  console.say_first(
    f"best: step {best['step']}, average {best['ema']}, {figure} "
    f"{_figure(best, figure, error)}"
  )


def _figure(row: dict[str, Any], name: str, error: str | None) -> str:
  if error is None:
    return f"{row[name]:.4g}"
  return f"{row[name]:.4g} +- {row[error]:.2g}"
