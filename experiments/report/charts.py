"""Line charts as SVG that takes its colours from the page, light or dark.

Drawn at 400 x 250, which is legible from a phone to half a screen. Lines are
named where they end and differ in dash as well as in colour.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.markup import Element, element

WIDTH, HEIGHT = 400, 250
LEFT, TOP, BOTTOM = 52, 10, 212
RIGHT, RIGHT_UNNAMED = 308, 390  # room for the names of lines, and without
POINTS = 200  # of a line, at most
LABEL_GAP = 14


class Line(NamedTuple):
  """One line of a chart.

  Attributes:
    name: Written where it ends; "" is not.
    x: Positions [N], ascending, not negative: the axis starts at 0.
    y: Values [N]; what is not finite, or not positive on a logarithmic axis, is
      left out.
    style: CSS class of the stroke.
    error: Half the height of a band around it, [N]; None is none.
  """

  name: str
  x: Any
  y: Any
  style: str
  error: Any = None


class Axis(NamedTuple):
  """From values to pixels: linear, or in the logarithm."""

  low: float
  high: float
  start: float
  stop: float
  log: bool = False

  def __call__(self, value):
    """The pixels of values; of an axis of one value, the middle."""
    scale = np.log if self.log else np.asarray
    low, high, value = scale(self.low), scale(self.high), scale(value)
    part = (value - low) / (high - low) if high > low else 0.5 + 0 * value
    return self.start + part * (self.stop - self.start)


def chart(
  lines: Sequence[Line],
  *,
  title: str,
  x_label: str,
  y_label: str,
  log: bool = False,
  note: Element | str | None = None,
  zero: bool = False,
) -> Element | None:
  """A figure with a chart, its title and a note.

  Args:
    lines: What is drawn.
    title: Its heading.
    x_label: Of the horizontal axis.
    y_label: Of the vertical axis.
    log: Whether that is logarithmic.
    note: How to read it.
    zero: Whether the vertical axis has to show 0.

  Returns:
    The figure; None where no line has anything to draw.
  """
  lines = [kept for line in lines if (kept := _prepared(line, log)).x.size]
  if not lines:
    return None
  named = [line for line in lines if line.name]
  right = RIGHT if named else RIGHT_UNNAMED
  ys = np.concatenate([_reach(line, log) for line in lines] + [[0.0]] * zero)
  x_axis = Axis(0.0, max(line.x[-1] for line in lines) or 1.0, LEFT, right)
  y_axis = Axis(*_padded(ys, log), BOTTOM, TOP, log)
  last = "; ".join(
    f"{line.name} {number(line.y[-1])}".strip() for line in named or lines
  )
  words = (
    f"{title}: {y_label} against {x_label}, up to {number(x_axis.high)}. At "
    f"the end: {last}."
  )
  drawing = element(
    "svg",
    *_frame(x_axis, y_axis, x_label, y_label),
    *(part for line in lines for part in _curve(line, x_axis, y_axis)),
    *_names(named, y_axis),
    viewBox=f"0 0 {WIDTH} {HEIGHT}",
    role="img",
    aria_label=words,
  )
  caption = element(
    "figcaption",
    element("strong", title),
    None if note is None else element("span", note),
  )
  return element("figure", caption, drawing, class_="chart")


def number(value: float) -> str:
  """A number as short as it can be read.

  >>> [number(v) for v in (0, 1500, 0.0123456, 250_000, 3e7, 0.00001)]
  ['0', '1500', '0.0123', '250k', '30M', '1e-05']
  """
  size = abs(value)
  for unit, letter in ((1e6, "M"), (1e3, "k")):
    if size >= 10 * unit:
      return f"{value / unit:.4g}{letter}"
  return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


def _prepared(line: Line, log: bool) -> Line:
  """The line without what cannot be drawn, thinned by means."""
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


def _reach(line: Line, log: bool) -> np.ndarray:
  """All that the vertical axis has to show of a line."""
  if log or line.error is None:
    return line.y
  return np.concatenate([line.y - line.error, line.y + line.error])


def _padded(values: np.ndarray, log: bool) -> tuple[float, float]:
  """Limits with some air around the values."""
  low, high = values.min(), values.max()
  if log:
    factor = max((high / low) ** 0.05, 1.05)
    return low / factor, high * factor
  air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  return low - air * (low != 0), high + air * (high != 0 or low == 0)


def ticks(axis: Axis, count: int = 5) -> list[float]:
  """Round values along an axis, about ``count`` of them.

  >>> ticks(Axis(0, 1500, 0, 1))
  [0.0, 500.0, 1000.0, 1500.0]
  >>> ticks(Axis(0.02, 3, 0, 1, log=True))
  [0.1, 1.0]
  """
  if axis.log:
    decades = math.log10(axis.high / axis.low)
    heads = (
      (1,) if decades > 2 else (1, 2, 5) if decades > 0.7 else range(1, 10)
    )
    powers = range(
      math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1
    )
    every = -(-len(powers) // count) if decades > 2 else 1
    found = [float(f"{h}e{p}") for p in powers[::every] for h in heads]
  else:
    span = (axis.high - axis.low) or 1.0
    raw = span / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first = math.ceil(axis.low / step - 1e-9)
    stop = math.floor(axis.high / step + 1e-9)
    # "+ 0.0" makes -0.0 a plain 0.
    found = [float(f"{k * step:.10g}") + 0.0 for k in range(first, stop + 1)]
  return [v for v in found if axis.low <= v <= axis.high] or [axis.low]


def _frame(x_axis, y_axis, x_label, y_label):
  """Grid lines, ticks and the names of the axes."""
  middle = (TOP + BOTTOM) / 2
  for value in ticks(y_axis):
    y = _px(y_axis(value))
    yield element("line", x1=LEFT, x2=x_axis.stop, y1=y, y2=y, class_="grid")
    yield _text(number(value), LEFT - 5, float(y) + 3.5, "end")
  for value in ticks(x_axis, 4):
    x = _px(x_axis(value))
    yield element("line", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4, class_="tick")
    yield _text(number(value), x, BOTTOM + 16, "middle")
  yield element(
    "line", x1=LEFT, x2=x_axis.stop, y1=BOTTOM, y2=BOTTOM, class_="tick"
  )
  yield _text(x_label, (LEFT + x_axis.stop) / 2, HEIGHT - 6, "middle", "axis")
  turned = f"rotate(-90 10 {middle})"
  yield _text(y_label, 10, middle, "middle", "axis", transform=turned)


def _curve(line: Line, x_axis: Axis, y_axis: Axis):
  """The band, the line and, where they are few, the points."""
  x, y = x_axis(line.x), y_axis(line.y)
  if line.error is not None:
    low = np.maximum(line.y - line.error, y_axis.low)
    high = np.minimum(line.y + line.error, y_axis.high)
    outline = [*zip(x, y_axis(high), strict=True)]
    outline += [*zip(x, y_axis(low), strict=True)][::-1]
    yield element("polygon", points=_points(outline), class_=f"b {line.style}")
  points = [*zip(x, y, strict=True)]
  yield element("polyline", points=_points(points), class_=f"l {line.style}")
  if len(points) <= 12 and line.name:
    for a, b in points:
      yield element(
        "circle", cx=_px(a), cy=_px(b), r=2.5, class_=f"p {line.style}"
      )


def _names(lines: Sequence[Line], y_axis: Axis):
  """Each line's name where it ends, moved apart where they would overlap."""
  if not lines:
    return
  order = sorted(lines, key=lambda line: float(y_axis(line.y[-1])))
  at = [float(y_axis(line.y[-1])) for line in order]
  for k in range(1, len(at)):
    at[k] = max(at[k], at[k - 1] + LABEL_GAP)
  at[-1] = min(at[-1], BOTTOM)
  for k in range(len(at) - 2, -1, -1):
    at[k] = min(at[k], at[k + 1] - LABEL_GAP)
  for line, y in zip(order, at, strict=True):
    yield element(
      "line",
      x1=RIGHT + 6,
      x2=RIGHT + 20,
      y1=_px(y),
      y2=_px(y),
      class_=f"l {line.style}",
    )
    yield _text(line.name, RIGHT + 24, y + 3.5, "start", "name")


def _text(text, x, y, anchor, class_=None, **more) -> Element:
  return element(
    "text", text, x=_px(x), y=_px(y), text_anchor=anchor, class_=class_, **more
  )


def _points(points) -> str:
  return " ".join(f"{_px(x)},{_px(y)}" for x, y in points)


def _px(value) -> str:
  """Pixels, to a tenth."""
  return f"{float(value):.1f}"
