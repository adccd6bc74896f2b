"""The style of all figures: colours, fonts, a white page."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from diffusion_jax.extras import needed_for

P = ParamSpec("P")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
STYLE = {
  "figure.dpi": 100,
  "figure.facecolor": "white",
  "savefig.facecolor": "white",
  "font.size": 10,
  "axes.titlesize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.3,
  "lines.linewidth": 1.8,
  "legend.frameon": False,
}


def styled(draw: Callable[P, Any]) -> Callable[P, Any]:
  """Draws in our style, whatever the reader's own settings are."""

  @functools.wraps(draw)
  def styled(*args: P.args, **kwargs: P.kwargs):
    with needed_for("diffusion_jax.plots"):
      import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
      figure = draw(*args, **kwargs)
      # Ticks take their style when they are first drawn.
      figure.draw_without_rendering()
    return figure

  return styled


def blank(width: float, height: float) -> Any:
  """An empty figure of this size in inches."""
  with needed_for("diffusion_jax.plots"):
    from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def check_names(titles, columns: int, labels, rows: int) -> None:
  """Checks the numbers of titles and labels."""
  for what, names, count in (
    ("titles", titles, columns), ("labels", labels, rows),
  ):  # fmt: skip
    if len(names) not in (0, count):
      raise ValueError(f"{len(names)} {what} for {count} of them")
