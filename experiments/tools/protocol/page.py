"""The protocol's output: a table, a plot and grids of samples."""

import json
import pathlib
from typing import Any

import numpy as np
from jax.typing import ArrayLike

import diffusion_jax as dj
from diffusion_jax.runs import directory
from experiments import cli

COLUMNS = {
  "Frechet distance": lambda row: _with_error(row, "fid", "fid_std", 2),
  "KID x 1000": lambda row: f"{1000 * row['kid']:.2f}",
  "precision": lambda row: f"{row['precision']:.3f}",
  "recall": lambda row: f"{row['recall']:.3f}",
  "class agreement": lambda row: (
    f"{row['agreement']:.1%}" if "agreement" in row else "-"
  ),
}


def write(folder: pathlib.Path) -> None:
  """Writes table.md and quality.png from the results of the stages.

  Raises:
    ValueError: If nothing has been evaluated yet.
  """
  rows = {
    path.stem.removeprefix("evaluate "): json.loads(path.read_text())
    for path in sorted(folder.glob("evaluate *.json"))
  }
  if not rows:
    raise ValueError(f"{folder} has no figures yet: run --stages=evaluate")
  (folder / "table.md").write_text(table(rows))
  lines = curves(folder)
  if lines:
    figure = dj.plots.curves(
      lines,
      xlabel="minutes from the command's start",
      ylabel="Frechet distance",
      log="y",
      marker="o",
    )
    figure.savefig(folder / "quality.png", dpi=150)
  cli.say(f"written to {folder}: {', '.join(_made(folder))}")


def table(rows: dict[str, dict[str, Any]]) -> str:
  """A row of Markdown for each set of samples."""
  head = ["", *COLUMNS]
  lines = [head, ["---"] * len(head)]
  for name, row in rows.items():
    lines.append([name, *(cell(row) for cell in COLUMNS.values())])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def curves(folder: pathlib.Path) -> dict[str, tuple[ArrayLike, ArrayLike]]:
  """Minutes and distance of each checkpoint, by name."""
  found = {}
  ours, peer, curve = (
    result(folder, name) for name in ("train", "peer", "curve ours")
  )
  if ours and curve:
    minutes = {step: at / 60 for step, at in ours["checkpoints"]}
    rows = directory.read_rows(folder / "ours" / "evaluation.jsonl")
    # If a step was measured more than once, take that of the curve.
    by_step = {
      row["step"]: row["fid"]
      for row in rows
      if row["step"] in minutes
      and row["samples"] == curve["samples"]
      and row.get("guidance") is None
    }
    steps = sorted(by_step)
    found["ours"] = (
      np.array([minutes[step] for step in steps]),
      np.array([by_step[step] for step in steps]),
    )
  parts = {
    int(path.stem.split()[-1]): json.loads(path.read_text())["fid"]
    for path in folder.glob("curve diffusers *.json")
  }
  if peer and parts:
    order = sorted(parts)
    minutes = np.array(peer["saved_seconds"])[[k - 1 for k in order]] / 60
    found["diffusers"] = (minutes, np.array([parts[k] for k in order]))
  return found


def result(folder: pathlib.Path, name: str) -> dict[str, Any] | None:
  """The result of a stage."""
  path = folder / f"{name}.json"
  return json.loads(path.read_text()) if path.is_file() else None


def _with_error(row, value: str, error: str, digits: int) -> str:
  spread = f" +- {row[error]:.{digits}f}" if error in row else ""
  return f"{row[value]:.{digits}f}{spread}"


def _made(folder: pathlib.Path) -> list[str]:
  return [n for n in ("table.md", "quality.png") if (folder / n).is_file()]
