"""Images in rows, and tables of numbers as colours."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffusion_jax import images
from diffusion_jax.models import layers
from diffusion_jax.plots.style import blank, check_names, styled


@styled
def pictures(
  x: ArrayLike,
  *,
  titles: Sequence[str] = (),
  labels: Sequence[str] = (),
  size: float = 1.1,
):
  """Images in rows: a strip of noising or denoising, or a grid.

  Args:
    x: [K, H, W, C] is one row, [R, K, H, W, C] are R; in [-1, 1].
    titles: Titles of the columns.
    labels: Labels of the rows.
    size: Width of one image, inches.

  Returns:
    The figure.

  Raises:
    ValueError: If x has another number of axes, or there are not as many
      titles or labels as columns or rows.
  """
  x = np.asarray(x)
  if x.ndim not in (4, 5):
    raise ValueError(
      f"pictures have shape {x.shape}; pass [K, H, W, C] or [R, K, H, W, C]"
    )
  x = x[None] if x.ndim == 4 else x
  rows, columns, height, width, _ = x.shape
  check_names(titles, columns, labels, rows)
  label = 1.1 if labels else 0.0
  figure = blank(
    size * columns + label,
    size * height / width * rows + (0.35 if titles else 0),
  )
  axes = figure.subplots(rows, columns, squeeze=False)
  for r, row in enumerate(x):
    for k, picture in enumerate(images.displayable(images.to_uint8(row))):
      ax = axes[r, k]
      ax.imshow(picture, interpolation="nearest")
      ax.set(xticks=[], yticks=[])
      ax.spines[:].set_visible(False)
      if titles and r == 0:
        ax.set_title(titles[k])
    if labels:
      axes[r, 0].set_ylabel(
        labels[r], rotation=0, ha="right", va="center", labelpad=8
      )
  return figure


@styled
def heatmaps(
  maps: Mapping[str, ArrayLike], *, xlabel: str, ylabel: str, label: str
):
  """Tables of numbers as colours, one panel by name, on one scale.

  Args:
    maps: [H, W] each. Numbers of both signs are shown on a scale that is
      white at 0.
    xlabel: Label of the columns.
    ylabel: Label of the rows.
    label: Name of the numbers.

  Returns:
    The figure.
  """
  tables = {name: np.asarray(table) for name, table in maps.items()}
  low = min(table.min() for table in tables.values())
  high = max(table.max() for table in tables.values())
  signed = low < 0 < high
  most = max(-low, high)
  limits = (-most, most) if signed else (low, high)
  figure = blank(3.4 * len(tables) + 1.2, 3.2)
  panels = figure.subplots(1, len(tables), squeeze=False)[0]
  shown = None
  for axes, (name, table) in zip(panels, tables.items(), strict=True):
    # Maps of images keep their shape, long tables are squeezed.
    aspect = "equal" if table.shape[0] == table.shape[1] else "auto"
    shown = axes.imshow(
      table, cmap="PuOr_r" if signed else "cividis", aspect=aspect,
      interpolation="nearest", vmin=limits[0], vmax=limits[1],
    )  # fmt: skip
    axes.set(xlabel=xlabel, title=name)
    axes.grid(False)
  panels[0].set_ylabel(ylabel)
  figure.colorbar(shown, ax=panels, label=label)
  return figure


def embedding(T: int, dim: int, *, order: str = "sin_cos"):
  """The sinusoidal time embedding, one row per step (``layers.sinusoid``).

  Args:
    T: Number of steps.
    dim: Dimension of the embedding.
    order: "sin_cos" or "cos_sin".

  Returns:
    The figure.
  """
  table = layers.sinusoid(jnp.arange(float(T)), dim, order)
  return heatmaps(
    {"": table}, xlabel="entry of the embedding", ylabel="step $t - 1$",
    label="value",
  )  # fmt: skip
