"""Plots of the equations, as Matplotlib figures.

Every function returns a ``matplotlib.figure.Figure``: show it as the last line
of a notebook cell (after ``%matplotlib inline``), or call its ``savefig``.
There is no pyplot state, and Matplotlib is imported only when a figure is
drawn. Figures are white cards, legible on light and dark pages; lines differ in
dash as well as in colour, and the colours are those of Okabe and Ito 2008,
which colour-blind readers can distinguish.
"""

from diffusion_jax.plots.curves import curves, loss_by_step, schedules
from diffusion_jax.plots.pictures import embedding, heatmaps, pictures
from diffusion_jax.plots.plane import paths, plane

__all__ = [
  "curves",
  "embedding",
  "heatmaps",
  "loss_by_step",
  "paths",
  "pictures",
  "plane",
  "schedules",
]
