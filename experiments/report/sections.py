"""The parts of a report that show what a run has written."""

import functools
import math
import re
from collections.abc import Sequence

import jax
import numpy as np

from diffusion_jax.runs import networks, processes
from experiments.report.charts import number
from experiments.report.markup import Child, Element, element, picture
from experiments.report.record import Record, parameters

HISTORY = 6  # sample grids over time


def section(title: str, *content: Child) -> Element:
  """A part of the page, which its title names in addresses too."""
  name = re.sub("[^a-z]+", "-", title.lower()).strip("-")
  return element("section", element("h2", title), *content, id=name)


def missing(words: str) -> Element:
  """A sentence in the place of what is not there."""
  return element("p", words, class_="missing")


def short_name(name: str) -> str:
  """Of the parameters of a preview, for a chart."""
  return name if name == "raw" else f"avg {name.removeprefix('ema')}"


def deck(*content: Element | None) -> Element:
  """Figures side by side where there is room."""
  return element("div", *content, class_="deck")


def headline(record: Record) -> Element:
  """What the run is, and how far it has come."""
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
  if config.get("kind") == "classifier":
    facts["Network"] = f"classifier of noisy images{count}"
  else:
    facts["Network"] = f"U-Net predicting {config.target}{count}"
    facts["Variance"] = str(config.variance).replace("_", " ")
  facts["Schedule"] = config.schedule.name
  if not processes.real_time(config):
    facts["Schedule"] += f", T = {config.schedule.T:,}"
  facts["Loss"] = config.loss.name
  rows = record.metrics
  if rows:
    facts["Last loss"] = number(rows[-1]["loss"]) if "loss" in rows[-1] else "–"
    facts["Time in steps"] = _duration(seconds_of(rows))
  facts["Devices"] = record.versions.get("devices", "not recorded")
  return element(
    "dl",
    *(
      element("div", element("dt", name), element("dd", value))
      for name, value in facts.items()
    ),
    class_="facts",
  )


def _count_parameters(record: Record) -> int | None:
  """How many the network has; None where it cannot be built."""
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
  """How far a run has come, in words."""
  whole = record.config.num_steps
  if record.step >= whole:
    return f"complete, {record.step:,} steps"
  if record.imported and not record.metrics:
    return "imported weights, not trained here"
  if not record.step:
    return f"no step of {whole:,} logged yet"
  return f"step {record.step:,} of {whole:,}: under way, or stopped"


def seconds_of(rows: Sequence[dict]) -> float:
  """The time that logged steps took, without what lay between them."""
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


def samples(record: Record) -> Element:
  """Sample grids: the newest large, the earlier ones small."""
  title = "Samples"
  if not record.grids:
    every = record.config.every.preview
    return section(
      title, missing(f"There are none yet: they come every {every:,} steps.")
    )
  # Of several averages the slowest: what sampling takes by default.
  shown = list(dict.fromkeys([next(iter(record.grids)), [*record.grids][-1]]))
  newest, history = [], []
  for name in shown:
    grids = record.grids[name]
    last = max(grids)
    newest.append(_grid(grids[last], name, last))
    steps = sorted(grids)
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), HISTORY))
    few = [
      _grid(grids[step], name, step, side=320, short=True)
      for step in (steps[round(k)] for k in chosen)
    ]
    history += [
      element("h4", parameters(name).capitalize()),
      element("div", *few, class_="strip"),
    ]
  over_time = [element("h3", "Over time"), *history]
  several = any(len(record.grids[name]) > 1 for name in shown)
  return section(
    title,
    element(
      "p",
      "Always of the same noise, so that a place in the grid is the same "
      "picture at every step.",
    ),
    deck(*newest),
    *(over_time if several else ()),
  )


def _grid(path, name, step, *, side=800, short=False) -> Element | None:
  words = f"Samples of the {parameters(name)} at step {step:,}"
  shown = picture(path, words, side=side, most_bytes=side * 400)
  if shown is None:
    return missing(f"{path.name} cannot be read.")
  caption = f"step {step:,}"
  if not short:
    caption = f"{parameters(name).capitalize()}, step {step:,}"
  return element("figure", shown, element("figcaption", caption))
