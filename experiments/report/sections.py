"""The sections of a report that show the files of a run."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from diffusion_jax.runs import networks, processes
from diffusion_jax.runs.configuration import is_classifier
from experiments.report.charts import number
from experiments.report.page import Section, missing
from experiments.report.pictures import Captioned, picture
from experiments.report.record import Record, parameters

HISTORY = 6  # sample grids over time
NETWORKS = {"unet": "U-Net", "dit": "DiT", "jit": "JiT", "edm2": "EDM2's U-Net"}


def headline(record: Record) -> dict[str, str]:
  """The facts of a run, and its progress."""
  config, data = record.config, record.data
  # A size is not broken over two lines.
  size = "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(
    map(str, data["image_shape"])
  )
  classes = f", {data['num_classes']} classes" if data["num_classes"] else ""
  count = f"{data['examples']:,} images" if data["examples"] else "images"
  facts = {
    "Data": f"{data['name'] or 'not named'}: {count} of {size}{classes}",
    "Progress": progress(record),
  }
  count = _count_parameters(record)
  count = "" if count is None else f", {count:,} parameters"
  if is_classifier(config):
    facts["Network"] = f"classifier of noisy images{count}"
  else:
    name = config.model.get("name", "unet")
    kind = NETWORKS.get(name, name.rpartition(":")[2])  # one of your own
    facts["Network"] = f"{kind} predicting {config.target}{count}"
    facts["Variance"] = str(config.variance).replace("_", " ")
  facts["Schedule"] = config.schedule.name
  if not processes.is_continuous(config):
    facts["Schedule"] += f", T = {config.schedule.T:,}"
  objective = "diffusion" if is_classifier(config) else config.objective.name
  facts["Loss"] = config.loss.name if objective == "diffusion" else objective
  rows = record.metrics
  if rows:
    facts["Last loss"] = number(rows[-1]["loss"]) if "loss" in rows[-1] else "–"
    facts["Time in steps"] = _duration(seconds_of(rows))
  facts["Devices"] = record.versions.get("devices", "not recorded")
  return facts


def _count_parameters(record: Record) -> int | None:
  """The network's number of parameters; None if it cannot be built."""
  config, shape = record.config, tuple(record.data["image_shape"])
  try:
    net = networks.network(config, shape, record.data["num_classes"])
    tx = networks.optimizer(config)
  except ValueError:
    return None
  state = jax.eval_shape(
    functools.partial(networks.init, config, net, shape, tx), jax.random.key(0)
  )
  return sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))


def progress(record: Record) -> str:
  """The progress of a run, in words."""
  whole = record.config.num_steps
  if record.step >= whole:
    return f"complete, {record.step:,} steps"
  if record.imported and not record.metrics:
    return "imported weights, not trained here"
  if not record.step:
    return f"no step of {whole:,} logged yet"
  return f"step {record.step:,} of {whole:,}: under way, or stopped"


def seconds_of(rows: Sequence[dict]) -> float:
  """The time that logged steps took, without pauses between them."""
  steps = [0, *(row["step"] for row in rows)]
  return sum(
    (stop - start) / row["steps_per_s"]
    for start, stop, row in zip(steps, steps[1:], rows, strict=False)
    if row.get("steps_per_s")
  )


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{seconds:.0f} s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def samples(record: Record) -> Section:
  """Sample grids: the newest large, the earlier ones small."""
  title = "Samples"
  if not record.grids:
    every = record.config.every.preview
    return missing(
      title, f"There are none yet: they come every {every:,} steps."
    )
  # The slowest average, which is the default of sampling.
  shown = list(dict.fromkeys([next(iter(record.grids)), [*record.grids][-1]]))
  newest, history = [], {}
  for name in shown:
    grids = record.grids[name]
    steps = sorted(grids)
    newest.append(_grid(grids[steps[-1]], name, steps[-1]))
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), HISTORY))
    history[parameters(name).capitalize()] = [
      _grid(grids[step], name, step, side=320, short=True)
      for step in (steps[round(k)] for k in chosen)
    ]
  if all(len(record.grids[name]) == 1 for name in shown):
    history = {}
  return Section(title, "samples", {"newest": newest, "history": history})


def _grid(path, name, step, *, side=800, short=False) -> Captioned:
  words = f"Samples of the {parameters(name)} at step {step:,}"
  shown = picture(path, words, side=side, most_bytes=side * 400)
  if shown is None:
    return Captioned(None, f"{path.name} cannot be read.")
  caption = f"{parameters(name).capitalize()}, " * (not short)
  return Captioned(shown, f"{caption}step {step:,}")
