"""Line charts as SVG that takes its colours from the page, light or dark.

Matplotlib draws them in the light colours of style.css; each colour is then
replaced by its name there. They are legible from a phone to half a screen.
Lines have labels at their ends, and differ in dash as well as in colour.
"""

import io
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib import ticker

from diffusion_jax.plots.curves import draw, name_ends
from diffusion_jax.plots.style import STYLE, blank

POINTS = 200  # of a line, at most
# By the name in style.css, where the light colour comes first.
COLOURS = dict(
  reversed(
    re.findall(
      r"--(\w+): (#[0-9a-f]{6})",
      pathlib.Path(__file__).with_name("style.css").read_text(),
    )
  )
)
DASHES = {
  "flat": (5, 4), "q1": (7, 3.5), "q2": (3, 3.5), "q3": (9, 3, 2, 3),
  "c1": (7, 3.5), "c2": (3, 3.5), "c3": (9, 3, 2, 3),
}  # fmt: skip
SETTINGS = {
  "svg.fonttype": "none",  # text stays text, in the page's font
  "svg.hashsalt": "report",  # the same page every time
  "text.parse_math": False,
  "font.size": 8,
  "text.color": COLOURS["ink"],
  "axes.labelcolor": COLOURS["muted"],
  "axes.edgecolor": COLOURS["muted"],
  "xtick.color": COLOURS["muted"],
  "ytick.color": COLOURS["muted"],
  "axes.grid.axis": "y",
  "grid.color": COLOURS["rule"],
  "grid.alpha": 1.0,
  "axes.spines.left": False,
  "axes.xmargin": 0.0,
  "ytick.major.size": 0,
  "ytick.minor.size": 0,
}
# Left out: Matplotlib's style; clip paths, since nothing reaches beyond the
# axes; and ids of parts, which would occur twice. Those of marks are hashes.
NEEDLESS = (
  r"<\?xml.*?\?>", r"<!DOCTYPE.*?>", r"<metadata>.*?</metadata>",
  r"<style.*?</style>", r"<clipPath.*?</clipPath>", r' clip-path="[^"]*"',
  r' xmlns(:\w+)?="[^"]*"', r"xlink:", r' (width|height)="[\d.]+pt"',
  r' id="(?!m[0-9a-f]{10}")[^"]*"', r"font(-\w+)?: [^;\"]*;? ?",
)  # fmt: skip


class Chart(NamedTuple):
  """What page.html shows of a chart.

  Attributes:
    title: Its heading.
    note: How to read it.
    svg: The drawing.
  """

  title: str
  note: str | None
  svg: Markup


class Line(NamedTuple):
  """One line of a chart.

  Attributes:
    name: The label at its end; "" is none.
    x: Positions [N], ascending, not negative: the axis starts at 0.
    y: Values [N]; those that are not finite, or not positive on a logarithmic
      axis, are left out.
    style: A colour of style.css.
    error: Half the height of a band around it, [N]; None is no band.
  """

  name: str
  x: Any
  y: Any
  style: str
  error: Any = None


def chart(
  lines: Sequence[Line],
  *,
  title: str,
  x_label: str,
  y_label: str,
  log: bool = False,
  note: str | None = None,
  zero: bool = False,
) -> Chart | None:
  """A chart, its title and a note.

  Args:
    lines: The lines.
    title: Its heading.
    x_label: Label of the horizontal axis.
    y_label: Label of the vertical axis.
    log: Whether the vertical axis is logarithmic.
    note: How to read it.
    zero: Whether the vertical axis must include 0.

  Returns:
    The chart; None if no line has anything to draw.
  """
  lines = [kept for line in lines if (kept := prepared(line, log)).x.size]
  if not lines:
    return None
  last = "; ".join(
    f"{line.name} {number(line.y[-1])}".strip()
    for line in [line for line in lines if line.name] or lines
  )
  words = (
    f"{title}: {y_label} against {x_label}, up to "
    f"{number(max(line.x[-1] for line in lines))}. At the end: {last}."
  )
  drawing = svg(figure(lines, x_label, y_label, log, zero), words)
  return Chart(title, note, drawing)


def number(value: float) -> str:
  """A number in a short, readable form.

  >>> [number(v) for v in (0, 1500, 0.0123456, 250_000, 3e7, 0.00001)]
  ['0', '1500', '0.0123', '250k', '30M', '1e-05']
  """
  size = abs(value)
  for unit, letter in ((1e6, "M"), (1e3, "k")):
    if size >= 10 * unit:
      return f"{value / unit:.4g}{letter}"
  return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


def prepared(line: Line, log: bool) -> Line:
  """The line without invalid points, thinned by averaging."""
  x, y = np.asarray(line.x, float), np.asarray(line.y, float)
  error = np.zeros_like(y) if line.error is None else np.asarray(line.error)
  good = np.isfinite(y) & ((y > 0) | (not log))
  kept = np.stack([x, y, error])[:, good]
  if kept.shape[1] > POINTS:
    pieces = np.array_split(kept, POINTS, axis=1)
    kept = np.stack([piece.mean(axis=1) for piece in pieces], axis=1)
  return line._replace(
    x=kept[0], y=kept[1], error=None if line.error is None else kept[2]
  )


def figure(lines: Sequence[Line], x_label, y_label, log=False, zero=False):
  """The chart as a Matplotlib figure."""
  few = all(len(line.x) <= 12 for line in lines)
  values, styles = {}, {}
  for k, line in enumerate(lines):
    name = line.name or f"_{k}"
    band = () if line.error is None else (line.error,)
    values[name] = (line.x, line.y, *band)
    styles[name] = {
      "color": COLOURS[line.style],
      "linewidth": {"main": 1.8, "flat": 1.1}.get(line.style, 1.35),
      "dashes": DASHES.get(line.style, ()),
      "marker": "o" if few and line.name else "",
      "markersize": 3,
    }
  with matplotlib.style.context(["default", STYLE, SETTINGS]):
    drawn = blank(4.0, 2.5)
    axes = drawn.subplots()
    draw(
      axes, values, xlabel=x_label, ylabel=y_label, log="y" * log, styles=styles
    )
    name_ends(axes)
    axes.set_xlim(left=0)
    if zero:
      axes.set_ylim(bottom=0)
    if log:
      axes.yaxis.set_major_locator(_powers(*axes.get_ylim()))
      axes.yaxis.set_minor_locator(ticker.NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(lambda value, _: number(value))
  return drawn


def _powers(low: float, high: float) -> ticker.Locator:
  """Round values of a logarithmic axis, about five of them."""
  if high < 5 * low:
    return ticker.MaxNLocator(5)
  return ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,))


def svg(drawn, words: str) -> Markup:
  """A figure in the colours of the page, its text in the page's font.

  Args:
    drawn: A Matplotlib figure, in ``COLOURS``.
    words: Its alternative text.

  Returns:
    The drawing.
  """
  file = io.StringIO()
  with matplotlib.style.context(["default", STYLE, SETTINGS]):
    drawn.savefig(file, format="svg", transparent=True)
  text = file.getvalue().replace('id="name"', 'class="name"')
  for name, colour in COLOURS.items():
    text = text.replace(colour, f"var(--{name})")
  for needless in NEEDLESS:
    text = re.sub(needless, "", text, flags=re.DOTALL)
  head = f'<svg role="img" aria-label="{escape(words)}" '
  # Matplotlib escapes what it writes.
  return Markup(text.strip().replace("<svg ", head, 1))
