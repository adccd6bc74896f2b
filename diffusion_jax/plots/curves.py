"""Curves: schedules, losses, anything over an axis."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from diffusion_jax.plots.style import COLOURS, DASHES, blank, styled
from diffusion_jax.schedules import Table

# A line: x, y and, for a band around it, half the band's height.
Values = tuple[Any, Any] | tuple[Any, Any, Any]


def _lines(
  axes,
  lines: Mapping[str, Values],
  styles: Mapping[str, Mapping[str, Any]] | None = None,
  **options,
):
  """One line per name, and its band."""
  styles = styles or {}
  if not lines:
    raise ValueError("no lines to draw; pass {name: (x, y)}")
  if len(lines.keys() - styles.keys()) > len(COLOURS):
    raise ValueError(
      f"{len(lines)} lines cannot be told apart; draw at most {len(COLOURS)}, "
      "or give each a style"
    )
  looks = itertools.cycle(zip(COLOURS, DASHES, strict=True))
  for (name, (x, y, *error)), (colour, dash) in zip(
    lines.items(), looks, strict=False
  ):
    x, y = np.asarray(x), np.asarray(y)
    style = {"color": colour, "linestyle": dash, **styles.get(name, {})}
    axes.plot(x, y, label=name, **options | style)
    for half in error:
      axes.fill_between(
        x, y - half, y + half, color=style["color"], alpha=0.2, linewidth=0
      )


@styled
def curves(
  lines: Mapping[str, Values],
  *,
  xlabel: str,
  ylabel: str,
  log: str = "",
  title: str = "",
  marker: str = "",
  styles: Mapping[str, Mapping[str, Any]] | None = None,
  ends: bool = False,
):
  """Lines over a common axis.

  Args:
    lines: (x, y) by name, or (x, y, error) with a band y - error to y + error.
    xlabel: Label of the x axis, with its unit or symbol.
    ylabel: Label of the y axis, with its unit or symbol.
    log: Which axes are logarithmic: "", "x", "y" or "xy".
    title: Title above the axes.
    marker: Matplotlib's marker for the points of each line.
    styles: Matplotlib's options of a line, by name; at most 6 lines have none.
    ends: Write each name at the end of its line, not in a legend.

  Returns:
    The figure.

  Raises:
    ValueError: If there are no lines, or too many.
  """
  figure = blank(6.4, 3.6)
  axes = figure.subplots()
  draw(
    axes, lines, xlabel=xlabel, ylabel=ylabel, log=log, styles=styles,
    marker=marker,
  )  # fmt: skip
  axes.set(title=title)
  if ends:
    name_ends(axes)
  elif len(lines) > 1:
    axes.legend()
  return figure


def draw(
  axes,
  lines,
  *,
  xlabel: str,
  ylabel: str,
  log: str = "",
  styles=None,
  **options,
) -> None:
  """``curves`` on given axes, in a given style."""
  _lines(axes, lines, styles, **options)
  axes.set(xlabel=xlabel, ylabel=ylabel)
  for axis in log:
    axes.set(**{f"{axis}scale": "log"})
  ticks = np.unique(np.concatenate([np.ravel(xy[0]) for xy in lines.values()]))
  if "x" in log and len(ticks) <= 10:  # they say more than powers of ten
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
  if "y" in log and 10 < np.divide(*axes.get_ylim()[::-1]) < 1000:
    _plain_ticks(axes.yaxis)


def _plain_ticks(axis) -> None:
  """20, 50, 100 on a logarithmic axis, instead of 2 x 10^1, 5 x 10^1, 10^2."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  axis.set_minor_formatter(ticker.NullFormatter())


def name_ends(axes, gap: float = 0.075) -> None:
  """Writes each line's name at its end, instead of a legend.

  Names are moved apart if they would overlap.

  Args:
    axes: The axes; lines whose label begins with "_" get no name.
    gap: Distance between two names, as a fraction of the axes' height.
  """
  named = [
    line
    for line in axes.lines
    if line.get_label()[:1] not in "_" and line.get_xydata().size
  ]
  axes.autoscale_view()
  to_part = axes.transData + axes.transAxes.inverted()
  place = {line: to_part.transform(line.get_xydata()[-1])[1] for line in named}
  order = sorted(named, key=place.__getitem__)
  at = [place[line] for line in order]
  for k in range(1, len(at)):
    at[k] = max(at[k], at[k - 1] + gap)
  at[-1:] = [min(y, 1.0) for y in at[-1:]]
  for k in range(len(at) - 2, -1, -1):
    at[k] = min(at[k], at[k + 1] - gap)
  for line, y in zip(order, at, strict=True):
    sample = axes.plot([], [])[0]
    sample.update_from(line)
    sample.set(
      data=([1.02, 1.1], [y, y]), transform=axes.transAxes, clip_on=False,
      marker="", label="_sample",
    )  # fmt: skip
    axes.text(
      1.12, y, line.get_label(), transform=axes.transAxes, va="center",
      gid="name",
    )  # fmt: skip


@styled
def schedules(named: Mapping[str, Table]):
  """How much signal is left at every step: abar_t and the log-SNR.

  Args:
    named: Tables by name; they may differ in length.

  Returns:
    The figure, both panels over t / T.
  """
  figure = blank(8.8, 3.4)
  left, right = figure.subplots(1, 2)
  time = {name: np.linspace(0, 1, s.T + 1) for name, s in named.items()}
  _lines(left, {n: (time[n], s.alpha**2) for n, s in named.items()})
  left.set(xlabel="$t / T$", ylabel=r"part of the signal left, $\bar\alpha_t$")
  # The log-SNR of clean data is infinite.
  _lines(right, {n: (time[n][1:], s.log_snr[1:]) for n, s in named.items()})
  right.set(
    xlabel="$t / T$",
    ylabel=r"log-SNR, $\log\,\bar\alpha_t / (1 - \bar\alpha_t)$ (nats)",
  )
  right.legend()
  return figure


@styled
def loss_by_step(
  t: ArrayLike,
  losses: Mapping[str, ArrayLike],
  *,
  T: int,
  bins: int = 20,
  ylabel: str = "loss",
):
  """Mean loss in equal bins of 1..T, with its standard error.

  Args:
    t: [N], the steps at which losses were measured.
    losses: [N] each, by name.
    T: Number of steps of the schedule.
    bins: Number of bins; those with fewer than two losses are left out.
    ylabel: Name of the loss, with its unit.

  Returns:
    The figure, its loss axis logarithmic.
  """
  t = np.asarray(t)
  index = (t - 1) * bins // T
  kept = [b for b in range(bins) if (index == b).sum() > 1]
  centres = [t[index == b].mean() for b in kept]
  figure = blank(6.4, 3.6)
  axes = figure.subplots()
  means, errors = {}, {}
  for name, loss in losses.items():
    each = [np.asarray(loss)[index == b] for b in kept]
    means[name] = (centres, [x.mean() for x in each])
    errors[name] = [x.std(ddof=1) / len(x) ** 0.5 for x in each]
  _lines(axes, means, marker="o", markersize=3)
  for (name, (x, y)), colour in zip(means.items(), COLOURS, strict=False):
    axes.errorbar(x, y, errors[name], fmt="none", color=colour)
  axes.set(xlabel="step $t$", ylabel=ylabel, yscale="log")
  if len(losses) > 1:
    axes.legend()
  return figure
