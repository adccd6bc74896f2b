"""Points and paths in the plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from diffusion_jax.plots.style import COLOURS, blank, check_names, styled


@styled
def plane(
  x: ArrayLike,
  *,
  titles: Sequence[str] = (),
  labels: Sequence[str] = (),
  shade: ArrayLike | None = None,
  reach: float | None = None,
):
  """Points of the plane at several steps, a panel each.

  Args:
    x: [K, B, 2], the same B points at K steps, or [R, K, B, 2], rows of such.
    titles: Titles of the columns.
    labels: Labels of the rows.
    shade: [B] or [R, B] numbers that colour the points, so that the eye can
      follow them from panel to panel.
    reach: The limit of the axes; by default the outermost point.

  Returns:
    The figure; all panels have one scale.

  Raises:
    ValueError: If x has another shape, or there are not as many titles or
      labels as columns or rows.
  """
  x = np.asarray(x)
  if x.ndim not in (3, 4) or x.shape[-1] != 2:
    raise ValueError(
      f"points have shape {x.shape}; pass [K, B, 2] or [R, K, B, 2]"
    )
  x = x[None] if x.ndim == 3 else x
  rows, columns, num, _ = x.shape
  check_names(titles, columns, labels, rows)
  far = 1.05 * np.abs(x).max() if reach is None else reach
  figure = blank(2.1 * columns + 0.5, 2.0 * rows + 0.6)
  panels = figure.subplots(
    rows, columns, squeeze=False, sharex=True, sharey=True
  )
  colours: Any = [COLOURS[0]] * rows
  if shade is not None:
    colours = np.broadcast_to(np.asarray(shade), (rows, num))
  for r, k in np.ndindex(rows, columns):
    axes = panels[r, k]
    axes.scatter(*x[r, k].T, s=3, c=colours[r])
    axes.set(xlim=(-far, far), ylim=(-far, far), aspect="equal")
    if titles and r == 0:
      axes.set_title(titles[k])
    if r == rows - 1:
      axes.set_xlabel("$x^{(1)}$")
    if k == 0:
      axes.set_ylabel(f"{labels[r]}\n$x^{{(2)}}$" if labels else "$x^{(2)}$")
  return figure


@styled
def paths(x: ArrayLike, *, points: ArrayLike | None = None, num: int = 40):
  """Paths through the plane, from noise (rings) to data (dots).

  Args:
    x: [K, B, 2], positions in the order in which they are visited.
    points: [N, 2] to draw underneath, such as the data.
    num: How many of the B paths to draw.

  Returns:
    The figure.

  Raises:
    ValueError: If x has another shape, or no steps.
  """
  x = np.asarray(x)
  if x.ndim != 3 or x.shape[-1] != 2 or not len(x):
    raise ValueError(
      f"paths have shape {x.shape}; pass [K, B, 2], K at least 1: draw samples "
      "with keep=, the steps to see"
    )
  x = x[:, :num]
  figure = blank(4.8, 5.0)
  axes = figure.subplots()
  if points is not None:
    axes.scatter(*np.asarray(points).T, s=4, color="#bbbbbb", label="data")
  for b in range(x.shape[1]):
    axes.plot(*x[:, b].T, color=COLOURS[0], linewidth=0.7, alpha=0.7)
  ring = {"facecolors": "none", "edgecolors": COLOURS[1]}
  axes.scatter(*x[0].T, s=22, label="start: noise", **ring, zorder=3)
  axes.scatter(*x[-1].T, s=14, color="black", label="end", zorder=3)
  axes.set(xlabel="$x^{(1)}$", ylabel="$x^{(2)}$", aspect="equal")
  figure.legend(loc="outside lower center", ncols=3)
  return figure
