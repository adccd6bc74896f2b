"""The files of a run so far, read without its network."""

import pathlib
import re
from typing import Any, NamedTuple

from diffusion_jax.runs import directory
from diffusion_jax.runs.configuration import Config


class Record(NamedTuple):
  """A run directory's files; those that do not exist yet are empty.

  Attributes:
    workdir: The directory.
    config: The run's configuration.
    data: The description of its data.
    versions: Versions of packages, and devices.
    imported: Where its weights come from, if not from training.
    metrics: Rows of metrics.jsonl.
    previews: Rows of previews.jsonl.
    evaluations: Rows of evaluation.jsonl.
    grids: Sample grids, by parameters ("raw", "ema0.995") and step.
    checkpoint: Step of the newest checkpoint.
  """

  workdir: pathlib.Path
  config: Config
  data: dict[str, Any]
  versions: dict[str, str]
  imported: dict[str, Any]
  metrics: list[dict]
  previews: list[dict]
  evaluations: list[dict]
  grids: dict[str, dict[int, pathlib.Path]]
  checkpoint: int | None

  @property
  def step(self) -> int:
    """The last step that was logged or saved."""
    logged = self.metrics[-1]["step"] if self.metrics else 0
    return max(logged, self.checkpoint or 0)


def read(workdir: pathlib.Path) -> Record:
  """Reads a run directory.

  Raises:
    ValueError: If it is not a run directory.
  """
  config, data = directory.load(workdir)
  steps = [
    int(path.name)
    for path in (workdir / "checkpoints").glob("*")
    if path.name.isdigit()
  ]
  return Record(
    workdir=workdir,
    config=config,
    data=data,
    versions=_json(workdir, "versions"),
    imported=_json(workdir, "imported"),
    metrics=[
      row
      for row in directory.read_rows(workdir / "metrics.jsonl")
      if isinstance(row.get("step"), int)
    ],
    previews=[
      row
      for row in directory.read_rows(workdir / "previews.jsonl")
      if {"step", "of"} <= row.keys()
    ],
    evaluations=directory.read_rows(workdir / "evaluation.jsonl"),
    grids=_grids(workdir / "samples"),
    checkpoint=max(steps, default=None),
  )


def _json(workdir: pathlib.Path, name: str) -> dict[str, Any]:
  """A file; empty if it is missing or damaged."""
  try:
    return directory.read_json(workdir, name)
  except (OSError, ValueError):
    return {}


def _grids(folder: pathlib.Path) -> dict[str, dict[int, pathlib.Path]]:
  """The paths of sample grids; raw first, then by rate."""
  found: dict[str, dict[int, pathlib.Path]] = {}
  for path in sorted(folder.glob("step*_*.png")):
    if name := re.fullmatch(r"step(\d+)_(raw|ema.+)", path.stem):
      found.setdefault(name[2], {})[int(name[1])] = path
  return dict(sorted(found.items(), key=lambda item: _slowness(item[0])))


def _slowness(name: str) -> float:
  try:
    return float(name.removeprefix("ema"))
  except ValueError:
    return -1.0


def short_name(name: str) -> str:
  """A short name of a preview's parameters, for a chart."""
  return name if name == "raw" else f"avg {name.removeprefix('ema')}"


def parameters(name: str) -> str:
  """Words for the parameters of a preview.

  >>> parameters("raw"), parameters("ema0.995")
  ('raw parameters', 'average, rate 0.995')
  """
  if name == "raw":
    return "raw parameters"
  return f"average, rate {name.removeprefix('ema')}"
