"""Compares methods on the digits: a row for each, with one training budget.

  python -m experiments.tools.compare
  python -m experiments.tools.compare --variants=edm,flow --calls=5,10 --seeds=1
  python -m experiments.tools.compare --sampler=own --calls=1,2,4 \
    --variants=distilled,consistency,meanflow

Trains each variant of configs/digits.py (ddpm is the plain one) with each seed
in its own directory, unless it is trained already. Then it computes the Frechet
distance in pixel space of as many samples as there are data, by number of
network calls: the mean over the seeds, and their standard deviation. Heun's
samplers call twice in every step but the last, so that of an even number they
leave one out. A variant that starts from another run starts from the one with
the same seed, and distilled is a chain of runs, one for each halving.
docs/results.md and docs/one-step.md have the tables.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax.runs import choices, console, planning, samplers
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.evaluation import evaluating
from diffusion_jax.runs.evaluation.options import EvaluationOptions
from experiments import cli
from experiments.cli import devices
from experiments.configs import digits

DDPM, DISTILLED, OWN = "ddpm", "distilled", "own"
NAMES = (DDPM, *digits.VARIANTS)
# What a variant starts from.
STARTS = {"consistency": "edm"}
# Steps after each halving, from 64 on, and the updates that it takes.
HALVINGS = {32: 300, 16: 300, 8: 400, 4: 500, 2: 500, 1: 500}


def configuration(name: str) -> Config:
  """The configuration of a variant."""
  return digits.get_config("" if name == DDPM else name)


@functools.cache
def trained(folder: pathlib.Path, name: str, seed: int) -> dj.runs.Run:
  """The run of a variant, trained to its end, after the run it starts from."""
  config = configuration(name)
  config.seed = seed
  if name in STARTS:
    config.init.run = str(trained(folder, STARTS[name], seed).workdir)
  return dj.runs.train(config, folder / f"{name}-{seed}")


@functools.cache
def distilled(folder: pathlib.Path, seed: int, steps: int) -> dj.runs.Run:
  """The run that takes this many steps, after the one that takes twice as many.

  Args:
    folder: Where the runs are.
    seed: Their seed.
    steps: A key of ``HALVINGS``.
  """
  config = digits.get_config(DISTILLED)
  begin = (
    distilled(folder, seed, 2 * steps)
    if 2 * steps in HALVINGS
    else trained(folder, "v", seed)
  )
  updates = HALVINGS[steps]
  config.update({"seed": seed, "num_steps": updates})
  config.update({"every": {"preview": updates, "checkpoint": updates}})
  config.optim.decay_steps = updates
  config.objective.steps = steps
  config.init.run = str(begin.workdir)
  return dj.runs.train(config, folder / f"{DISTILLED}-{steps}-{seed}")


def asked(config: Config, calls: int, sampler: str) -> EvaluationOptions:
  """How a run is evaluated with this many calls."""
  name = config.sampling.sampler if sampler == OWN else sampler
  return EvaluationOptions(
    sampler=name, steps=samplers.steps_for(name, calls), seed=config.seed
  )


def check(names: Sequence[str], calls: Sequence[int], sampler: str) -> None:
  """Checks, before any training, that every variant can take as many steps.

  Raises:
    ValueError: If one cannot.
  """
  for name in names:
    config = configuration(name)
    for n in calls:
      try:
        planning.walk(asked(config, n, sampler), config)
      except ValueError as error:
        raise ValueError(f"--calls={n}: {name}: {error}") from error


def distance(run: dj.runs.Run, calls: int, sampler: str) -> float:
  """The Frechet distance with this many calls; it is not computed twice."""
  options = asked(run.config, calls, sampler)
  with console.quiet():
    (row,) = evaluating.evaluate(run.workdir, options, again=False)
  return row["frechet"]


def calls_of(text: str) -> int:
  """A number of network calls, from the command line.

  Raises:
    ValueError: If it is none.
  """
  if not text.strip().isdecimal() or int(text) == 0:
    raise ValueError(f"--calls: {text!r} must be a whole number above 0")
  return int(text)


def row(name: str, distances: Sequence[Sequence[float]]) -> str:
  """A row of the table.

  >>> row("edm", [[0.1, 0.2], [0.2, 0.2]])
  '| edm | 0.150 +- 0.071 | 0.200 +- 0.000 |'

  Args:
    name: Name of the variant.
    distances: For each seed, at each number of calls.

  Returns:
    Mean and standard deviation over the seeds, in Markdown.
  """
  table = np.array(distances)
  cells = [f"{mean:.3f}" for mean in table.mean(axis=0)]
  if len(table) > 1:
    spread = table.std(axis=0, ddof=1)
    cells = [f"{c} +- {s:.3f}" for c, s in zip(cells, spread, strict=True)]
  return f"| {' | '.join([name, *cells])} |"


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()

  def define(kind, name, default, text):
    kind(name, default, text, flag_values=values)

  usual = "ddpm,v,edm,flow,jit-loss"
  define(flags.DEFINE_list, "variants", usual, "variants of configs/digits.py")
  define(flags.DEFINE_list, "calls", "5,10,20,50", "network calls")
  flags.DEFINE_integer(
    "seeds", 3, "seeds for each variant", lower_bound=1, flag_values=values
  )
  define(flags.DEFINE_string, "sampler", "unipc", "own takes the variant's")
  define(flags.DEFINE_string, "workdir", "runs/compare", "where the runs go")
  cli.parse(argv, values)
  with cli.user_errors():
    for name in values.variants:
      choices.named("--variants", name, NAMES)
    choices.named("--sampler", values.sampler, (OWN, *samplers.SAMPLERS))
    calls = [calls_of(text) for text in values.calls]
    if DISTILLED in values.variants and not set(calls) <= HALVINGS.keys():
      raise ValueError(
        f"--calls={','.join(values.calls)}: {DISTILLED} takes "
        f"{', '.join(map(str, HALVINGS))}"
      )
    check(values.variants, calls, values.sampler)
    folder = pathlib.Path(values.workdir).expanduser()

    def run_of(name: str, seed: int, calls: int) -> dj.runs.Run:
      if name == DISTILLED:
        return distilled(folder, seed, calls)
      return trained(folder, name, seed)

    rows = []
    for name in values.variants:
      table = [
        [distance(run_of(name, seed, n), n, values.sampler) for n in calls]
        for seed in range(values.seeds)
      ]
      rows.append(row(name, table))
    cli.say(f"| network calls | {' | '.join(values.calls)} |")
    cli.say("| --- " * (1 + len(calls)) + "|")
    for line in rows:
      cli.say(line)


if __name__ == "__main__":
  cli.run(main)
