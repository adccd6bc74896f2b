"""The sections of a report that are lists of names and values."""

from typing import Any

from diffusion_jax.runs.configuration import is_classifier
from diffusion_jax.runs.training import continuing
from experiments import cli
from experiments.configs import common
from experiments.report.page import Section
from experiments.report.record import Record

MANY = 20  # parts of a value that are shown
# Fractional values of evaluations that are settings, not results.
SETTINGS = ("guidance", "eta", "low_res_noise")


def evaluations(record: Record) -> Section:
  """Every row of evaluation.jsonl, the newest last."""
  rows = []
  for row in record.evaluations:
    step = row.get("step")
    results = {k: words(v) for k, v in row.items() if _is_result(k, v)}
    made = {
      k: words(v)
      for k, v in row.items()
      if k not in results and k != "step" and v not in (None, [], "")
    }
    step = "–" if step is None else f"{step:,}"
    rows.append({"step": step, "results": results, "made": made})
  command = cli.command("evaluate", workdir=record.workdir)
  return Section(
    "Evaluations", "evaluations", {"rows": rows, "command": command}
  )


def _is_result(name: str, value: Any) -> bool:
  return isinstance(value, float) and name not in SETTINGS


def words(value: Any) -> str:
  """A value as a person would write it."""
  if isinstance(value, dict):
    return words([f"{k}: {words(v)}" for k, v in value.items()])
  if isinstance(value, list | tuple):
    more = len(value) - MANY
    shown = [words(one) for one in value[:MANY]]
    return ", ".join(shown + [f"and {more} more"] * (more > 0)) or "none"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    return f"{value:.4g}"
  return "none" if value is None else str(value)


def settings(record: Record) -> Section:
  """The configuration, the data and the versions."""
  config = continuing.flat(record.config.to_dict())
  make = common.make
  if is_classifier(record.config):
    make = common.make_classifier
  usual = continuing.flat(make().to_dict())
  groups: dict[str, list[dict[str, Any]]] = {}
  for key, value in config.items():
    group, _, name = key.rpartition(".")
    differs = key not in usual or words(usual[key]) != words(value)
    groups.setdefault(group or "run", []).append(
      {"name": name or key, "value": words(value), "differs": differs}
    )
  described = {
    "data (as read)": record.data,
    "versions": record.versions,
    "imported": record.imported,
  }
  commands = [
    cli.command(name, workdir=record.workdir) for name in ("train", "sample")
  ]
  return Section(
    "How it was made",
    "settings",
    {
      "commands": commands,
      "groups": groups,
      "described": {
        group: {name: words(value) for name, value in values.items()}
        for group, values in described.items()
      },
    },
  )
