"""The sections of a report with charts of a run's logs."""

import math
import re
from collections.abc import Sequence

from experiments.report.charts import Chart, Line, chart
from experiments.report.page import Section, missing
from experiments.report.record import Record, parameters, short_name

QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter")


def training(record: Record) -> Section:
  """Everything in metrics.jsonl against the step."""
  title = "Training"
  rows = record.metrics
  if not rows:
    every = record.config.every.log
    return missing(
      title, f"Nothing is logged yet: a row comes every {every} steps."
    )
  families, single = _families(rows)
  charts = [_quarters(rows, "loss", families.pop("loss", []), "loss")]
  charts += [
    _quarters(rows, None, names, name.replace("_", " "))
    for name, names in families.items()
  ]
  charts += [
    _single(rows, "grad_norm", "Gradient norm", "norm before clipping", True),
    _single(rows, "param_norm", "Parameter norm", "norm"),
    _single(rows, "images_per_s", "Speed", "images per second", zero=True),
  ]
  known = ("loss", "grad_norm", "param_norm", "images_per_s")
  charts += [
    _single(rows, name, name.replace("_", " ").capitalize(), name)
    for name in single
    if name not in (*known, "step", "images", "steps_per_s")
  ]
  return Section(title, "charts", {"charts": charts})


def _families(rows: Sequence[dict]) -> tuple[dict[str, list[str]], list[str]]:
  """Names with one value per quarter of t, by their stem, and all others."""
  families: dict[str, list[str]] = {}
  single = []
  for name in dict.fromkeys(name for row in rows for name in row):
    if match := re.fullmatch("(.+)_q[0-3]", name):
      families.setdefault(match[1], []).append(name)
    elif all(isinstance(row.get(name, 0), int | float) for row in rows):
      single.append(name)
  return {stem: sorted(names) for stem, names in families.items()}, single


def _line(rows, key, name, style) -> Line:
  points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
  x, y = zip(*points, strict=True) if points else ((), ())
  return Line(name, x, y, style)


def _quarters(rows, whole, names, label) -> Chart | None:
  lines = [
    _line(rows, name, QUARTERS[int(name[-1])], f"q{name[-1]}") for name in names
  ]
  if whole is not None:
    lines.append(_line(rows, whole, "all t", "main"))
  return chart(
    lines,
    title=label.capitalize(),
    x_label="step",
    y_label=label,
    log="accuracy" not in label,
    note="By quarter of t, the 1st the cleanest." if names else None,
  )


def _single(rows, key, title, label, log=False, zero=False) -> Chart | None:
  return chart(
    [_line(rows, key, "", "main")],
    title=title,
    x_label="step",
    y_label=label,
    log=log,
    zero=zero,
  )


COLOURS = """\
Drift is how far the mean colour of a preview is from that of the data, in
standard deviations of the mean colour from one picture of the data to the next.
Chance alone makes about {chance:.2f} of it (1/√{n}); the band is twice that. A
drift that stays outside on one side, of the average too, is a shift of all
colours: longer training, larger batches, predicting x0 or v, or a variance that
is not learned have helped. Many more saturated values than the data have mean
that samples are pressed against black or white; fewer, that what is flat in the
data is not quite flat yet."""


def colours(record: Record) -> Section:
  """The statistics of previews, and how to read them."""
  title = "Colours and contrast"
  rows = record.previews
  if not rows:
    return missing(
      title, "No preview has been measured yet, so no drift can be shown."
    )
  names = list(dict.fromkeys(row["of"] for row in rows))
  of = {name: [row for row in rows if row["of"] == name] for name in names}
  shown = list(dict.fromkeys([names[0], names[-1]]))
  chance = 1 / math.sqrt(rows[-1]["n"])
  styles = {name: ("main", "other")[name == "raw"] for name in shown}
  data = [_line(rows, "saturated_data", "the data", "flat")]
  own = [_line(rows, "frechet_data", "the data", "flat")]

  def compared(key, rest=()):
    lines = [_line(of[n], key, short_name(n), styles[n]) for n in shown]
    return [*rest, *(line for line in lines if len(line.x))]

  charts = [
    *_drifts(of, shown, styles, chance),
    chart(
      compared("saturated", data),
      title="Saturated values",
      x_label="step",
      y_label="share",
      note="Part of the values beyond ±0.99 of ±1, beside that of the data.",
    ),
    chart(
      _distances(of),
      title="Average and newest parameters",
      x_label="step",
      y_label="relative distance",
      log=True,
      note="‖average − raw‖ / ‖raw‖: falls with the learning rate.",
    ),
    chart(
      compared("frechet", own),
      title="Fréchet distance of random features",
      x_label="step",
      y_label="distance",
      log=True,
      note="Of 32 fixed random filters, beside that of as many pictures of "
      "the data. No FID: compare it within this run only.",
    ),
  ]
  words = COLOURS.format(chance=chance, n=rows[-1]["n"])
  return Section(title, "charts", {"charts": charts, "words": words})


def _distances(of) -> list[Line]:
  """A line for every average, with the slowest highlighted."""
  averages = [name for name, rows in of.items() if "distance" in rows[0]]
  lines = [
    _line(of[name], "distance", short_name(name), f"q{k % 4}")
    for k, name in enumerate(averages)
  ]
  return [*lines[:-1], *(line._replace(style="main") for line in lines[-1:])]


def _drifts(of, shown, styles, chance) -> list[Chart | None]:
  """One chart for grey images; one for each average for coloured images."""
  channels = len(next(iter(of.values()))[0]["drift"])
  letters = ("red", "green", "blue") if channels == 3 else range(channels)

  def line(name, channel, words, style):
    points = [(row["step"], row["drift"][channel]) for row in of[name]]
    x, y = zip(*points, strict=True)
    return Line(words, x, y, style)

  groups = {
    f"Drift of the {parameters(name)}": [
      line(name, c, str(letter), f"c{c}") for c, letter in enumerate(letters)
    ]
    for name in shown
  }
  if channels == 1:
    groups = {
      "Drift of the mean brightness": [
        line(name, 0, short_name(name), styles[name]) for name in shown
      ]
    }

  def drawn(title, lines):
    x = lines[0].x
    band = Line("", x, [0.0] * len(x), "flat", [2 * chance] * len(x))
    return chart(
      [band, *lines],
      title=title,
      x_label="step",
      y_label="standard deviations",
    )

  return [drawn(title, lines) for title, lines in groups.items()]
