"""The parts of a report that are lists of names and values."""

from typing import Any

from diffusion_jax.runs.training import continuing
from experiments import cli
from experiments.configs import common
from experiments.report.markup import Child, Element, element, table
from experiments.report.record import Record
from experiments.report.sections import missing, section

MANY = 20  # parts of a value that are shown
# What evaluations hold that is no result, though it may be a fraction.
SETTINGS = ("guidance", "eta", "low_res_noise")


def evaluations(record: Record) -> Element:
  """Every row of evaluation.jsonl, the newest last."""
  title = "Evaluations"
  if not record.evaluations:
    return section(
      title,
      missing("There is none yet; this makes one:"),
      element("pre", cli.command("evaluate", workdir=record.workdir)),
    )
  rows: list[list[Child]] = []
  for row in record.evaluations:
    results = {k: v for k, v in row.items() if _is_result(k, v)}
    made = {
      k: v
      for k, v in row.items()
      if k not in results and k != "step" and v not in (None, [], "")
    }
    step = row.get("step")
    rows.append(
      [
        "–" if step is None else f"{step:,}",
        _pairs(results),
        _pairs(made),
      ]
    )
  return section(
    title, table(["Step", "Result", "How it was made"], rows, "evaluations")
  )


def _is_result(name: str, value: Any) -> bool:
  return isinstance(value, float) and name not in SETTINGS


def _pairs(values: dict[str, Any]) -> Element:
  return element(
    "dl",
    *(
      element("div", element("dt", name), element("dd", words(value)))
      for name, value in values.items()
    ),
    class_="pairs",
  )


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


def settings(record: Record) -> Element:
  """The configuration, the data and the versions."""
  config = continuing.flat(record.config.to_dict())
  make = common.make
  if record.config.get("kind") == "classifier":
    make = common.make_classifier
  usual = continuing.flat(make().to_dict())
  groups: dict[str, list[Element]] = {}
  for key, value in config.items():
    group, _, name = key.rpartition(".")
    differs = key not in usual or words(usual[key]) != words(value)
    groups.setdefault(group or "run", []).append(
      element(
        "div",
        element("dt", name or key),
        element("dd", words(value)),
        class_="differs" if differs else None,
      )
    )
  blocks = [
    element("div", element("h3", group), element("dl", *rows, class_="pairs"))
    for group, rows in groups.items()
  ]
  described = {
    "data (as read)": record.data,
    "versions": record.versions,
    "imported": record.imported,
  }
  blocks += [
    element("div", element("h3", name), _pairs(values))
    for name, values in described.items()
    if values
  ]
  return section(
    "How it was made",
    element(
      "p",
      "The configuration; in bold what differs from the usual values of "
      "diffusion_jax/runs/configuration.py. The run goes on, or draws, with",
    ),
    element(
      "pre",
      cli.command("train", workdir=record.workdir),
      "\n",
      cli.command("sample", workdir=record.workdir),
    ),
    None if record.versions else missing("No versions were recorded."),
    element("div", *blocks, class_="settings"),
  )
