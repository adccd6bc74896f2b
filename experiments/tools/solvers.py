"""Compares samplers where the truth is known: error against network calls.

  python -m experiments.tools.solvers
  python -m experiments.tools.solvers --schedule=cosine --dim=64 \
    --out=solvers.png

The data are mixtures of Gaussians with random means, widths and weights. Their
exact denoiser replaces the network, and an adaptive integrator of order 8 gives
the exact solution of the probability-flow ODE for each x_T. The error is the
root mean square distance to it at the end, as the geometric mean over several
mixtures. The order is measured on the same problems with many steps, without
the last one to s = 0. With --diffusers the schedulers of that library
(pip install torch diffusers) solve the same problems.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.integrate
import tqdm
from absl import flags

import diffusion_jax as dj
from diffusion_jax import mixtures
from diffusion_jax.runs import choices, samplers
from experiments import cli
from experiments.cli import devices

CALLS = (5, 10, 20, 50)
SCHEDULES = ("linear", "cosine")
# Deterministic samplers, and DDIM as published beside them.
ROWS = {
  "ddim, even": ("ddim", "even"),
  **{
    name: (name, None)
    for name in ("euler", "heun", "deis", "dpmpp_2m", "dpmpp_3m", "unipc")
  },
}


def random_mixture(seed: int, dim: int, components: int) -> mixtures.Mixture:
  """Means in a cube of side 2, widths from 0.05 to 0.3."""
  rng = np.random.default_rng(seed)
  means: Any = rng.uniform(-1, 1, (components, dim))
  stds: Any = np.exp(rng.uniform(np.log(0.05), np.log(0.3), components))
  weights: Any = rng.dirichlet(np.full(components, 3.0))
  return mixtures.Mixture(means, stds, weights)


def exact(
  mixture: mixtures.Mixture, x, schedule: dj.schedules.Table, t: int, s: int
) -> np.ndarray:
  """The end of the flow dy/du = eps_hat from x, from step t to step s."""
  alpha, sigma = np.asarray(schedule.alpha), np.asarray(schedule.sigma)
  # u = sinh(a) / 30 takes equal steps where x0_hat changes.
  first, last = np.arcsinh(30 * sigma[[t, s]] / alpha[[t, s]])

  def slope(a, y):
    u = np.sinh(a) / 30
    y = y.reshape(x.shape)
    eps = (y - mixtures.x0_given(mixture, y, u, xp=np)) / u
    return (eps * np.cosh(a) / 30).ravel()

  solved = scipy.integrate.solve_ivp(
    slope,
    (first, max(last, 1e-6)),  # not 0 / 0
    (x / alpha[t]).ravel(),
    method="DOP853",
    rtol=1e-9,
    atol=1e-10,
  )
  return alpha[s] * solved.y[:, -1].reshape(x.shape)


class Problem(NamedTuple):
  """A mixture, noises to start from, and the ends of the flow from them."""

  mixture: mixtures.Mixture
  x_T: np.ndarray
  x_0: np.ndarray


def problems(
  schedule: dj.schedules.Table, dim: int, components: int, seeds: int, num: int
) -> Iterator[Problem]:
  """Random problems, the same ones every time."""
  for seed in range(seeds):
    mixture = random_mixture(seed, dim, components)
    x_T = np.random.default_rng(100 + seed).normal(size=(num, dim))
    yield Problem(mixture, x_T, exact(mixture, x_T, schedule, schedule.T, 0))


def rmse(a, b) -> float:
  """Root mean square difference."""
  return float(np.sqrt(np.mean((np.asarray(a) - b) ** 2)))


def solve(name: str, schedule: dj.schedules.Table):
  """The jitted ``(x_T, pairs, mixture) -> x`` of a sampler."""
  step = samplers.sampler(name)

  @jax.jit
  def run(x_T, pairs, mixture):
    predict = mixtures.predictor(schedule, mixture)
    x, _ = dj.sample(
      step, predict, schedule, x_T.shape, jax.random.key(0), pairs=pairs,
      x_T=x_T,
    )  # fmt: skip
    return x

  return run


def errors(name, spacing, schedule, given: list[Problem]) -> list[float]:
  """The error of a sampler at each number of ``CALLS``."""
  run = solve(name, schedule)
  result = []
  for calls in CALLS:
    moves = samplers.steps_for(name, calls)
    pairs = samplers.walk(schedule, name, spacing, moves)
    each = [rmse(run(p.x_T, pairs, p.mixture), p.x_0) for p in given]
    result.append(float(np.exp(np.mean(np.log(each)))))
  return result


def observed_order(name: str, problem: Problem) -> float:
  """log2 of the error's ratio when steps double, from 512 to 1024.

  They are even in log u from 150 to 0.05, where the first steps of multistep
  methods, of lower order, do no harm; the schedule has so many steps that
  rounding to whole ones does not matter.
  """
  schedule = dj.schedules.linear(2**16)
  run = solve(name, schedule)
  table = -np.asarray(schedule.log_snr, np.float64)[1:] / 2

  def error(num):
    targets = np.linspace(np.log(150), np.log(0.05), num + 1)
    t = np.interp(targets, table, np.arange(1, schedule.T + 1))
    t = np.rint(t).astype(int)
    pairs = np.stack([t[:-1], t[1:]], axis=1)
    x = run(problem.x_T, pairs, problem.mixture)
    return rmse(x, exact(problem.mixture, problem.x_T, schedule, t[0], t[-1]))

  return float(np.log2(error(512) / error(1024)))


def plot(path: pathlib.Path, title: str, table: dict[str, list[float]]) -> None:
  """Error against network calls, both logarithmic."""
  styles = {
    name: {"marker": marker, "linestyle": "-", "color": f"C{k}"}
    for k, (name, marker) in enumerate(zip(table, "osvD^P*Xh", strict=False))
  }
  figure = dj.plots.curves(
    {name: (CALLS, row) for name, row in table.items()},
    xlabel="network calls", ylabel="root mean square error", log="xy",
    title=title, styles=styles,
  )  # fmt: skip
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()

  def define(kind, name, default, text, **options):
    kind(name, default, text, flag_values=values, **options)

  whole = flags.DEFINE_integer
  define(flags.DEFINE_string, "schedule", "linear", "schedule of 1000 steps")
  define(whole, "dim", 16, "dimensions of the data", lower_bound=1)
  define(whole, "components", 8, "Gaussians in a mixture", lower_bound=1)
  define(whole, "seeds", 4, "how many mixtures", lower_bound=1)
  define(whole, "num", 256, "noises to start from, for each", lower_bound=1)
  define(flags.DEFINE_string, "out", "solvers.png", "file of the plot")
  define(flags.DEFINE_bool, "order", True, "measure the orders too")
  define(flags.DEFINE_bool, "diffusers", False, "compare with diffusers")
  cli.parse(argv, values)
  with cli.user_errors(), jax.enable_x64(True):
    compare(values)


def compare(values: flags.FlagValues) -> None:
  """Prints the table and draws it."""
  choices.named("--schedule", values.schedule, SCHEDULES)
  path = pathlib.Path(values.out)
  cli.check_out(path, ".png", ".pdf", ".svg")
  schedule = getattr(dj.schedules, values.schedule)(1000)
  title = (
    f"{values.seeds} mixtures of {values.components} Gaussians in "
    f"{values.dim} dimensions, {values.schedule} schedule"
  )
  cli.say(f"{title}, {values.num} samples of each")
  given = list(
    problems(schedule, values.dim, values.components, values.seeds, values.num)
  )
  heads = "".join(f"{f'{n} calls':>11}" for n in CALLS)
  cli.say(f"{'sampler':<12}{heads}{'order':>8}")
  table = {}
  for label, (name, spacing) in tqdm.tqdm(
    ROWS.items(), disable=not sys.stderr.isatty(), leave=False
  ):
    table[label] = errors(name, spacing, schedule, given)
    numbers = "".join(f"{error:>11.2e}" for error in table[label])
    order = f"{observed_order(name, given[0]):.1f}" if values.order else ""
    cli.say(f"{label:<12}{numbers}{order:>8}")
  if values.diffusers:
    # Only here: a library that nothing else needs.
    from experiments.tools import solvers_diffusers

    best = solvers_diffusers.best(schedule, given, CALLS)
    table["diffusers' best"] = [error for error, _ in best]
    for calls, (error, name) in zip(CALLS, best, strict=True):
      cli.say(f"diffusers' best at {calls} calls: {error:.2e}, {name}")
  plot(path, title, table)
  cli.say(f"plot written to {path}")


if __name__ == "__main__":
  cli.run(main)
