"""Curves: schedules, losses, anything over an axis."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from diffusion_jax.plots.style import COLOURS, DASHES, blank, styled
from diffusion_jax.schedules import Table


def _lines(axes, lines: Mapping[str, tuple[ArrayLike, ArrayLike]], **options):
  """One line per name."""
  if not lines:
    raise ValueError("no lines to draw; pass {name: (x, y)}")
  if len(lines) > len(COLOURS):
    raise ValueError(
      f"{len(lines)} lines cannot be told apart; draw at most {len(COLOURS)}"
    )
  for (name, (x, y)), colour, dash in zip(
    lines.items(), COLOURS, DASHES, strict=False
  ):
    axes.plot(
      np.asarray(x), np.asarray(y), color=colour, linestyle=dash, label=name,
      **options,
    )  # fmt: skip


@styled
def curves(
  lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
  *,
  xlabel: str,
  ylabel: str,
  log: str = "",
  title: str = "",
  marker: str = "",
):
  """Lines over a common axis.

  Args:
    lines: (x, y) by name, at most 6.
    xlabel: With its unit or symbol.
    ylabel: With its unit or symbol.
    log: Which axes are logarithmic: "", "x", "y" or "xy".
    title: Above the axes.
    marker: Matplotlib's, to mark the points of each line.

  Returns:
    The figure.

  Raises:
    ValueError: If there are no lines, or too many.
  """
  figure = blank(6.4, 3.6)
  axes = figure.subplots()
  _lines(axes, lines, marker=marker)
  axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
  for axis in log:
    axes.set(**{f"{axis}scale": "log"})
  ticks = np.unique(np.concatenate([np.ravel(x) for x, _ in lines.values()]))
  if "x" in log and len(ticks) <= 10:  # they say more than powers of ten
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
  if len(lines) > 1:
    axes.legend()
  return figure


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
  """Mean loss in equal stretches of 1..T, with its standard error.

  Args:
    t: [N], the steps at which losses were measured.
    losses: [N] each, by name.
    T: Number of steps of the schedule.
    bins: How many stretches; those with fewer than two losses are left out.
    ylabel: What the loss is, with its unit.

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
