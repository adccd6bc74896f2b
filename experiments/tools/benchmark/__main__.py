"""Measures speed and memory; with --peers, also of the network in PyTorch.

  python -m experiments.tools.benchmark
  python -m experiments.tools.benchmark --config=configs/cifar.py --random=32 \
    --config.batch_size=8 --measures=step,forward --peers

It prints one line of JSON for each measurement, and for each peer a ratio: its
time divided by ours, turn by turn. "step" is the program of the training
command, with as many steps as the configuration puts into one, and the time to
its first step, without and with cached programs; "forward" is the network;
"sample" is sampling from noise to images, for each of --steps; "pipeline" is
the batches alone. Peers need PyTorch and diffusers: pip install -e '.[peers]'.
"""

import functools
import importlib.util
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm
from absl import flags

from diffusion_jax.pretrained import diffusers_config
from diffusion_jax.runs import (
  checks,
  choices,
  configuration,
  datasets,
  networks,
  processes,
  samplers,
)
from experiments import cli
from experiments.cli import devices
from experiments.tools.benchmark import rounds, rows

DEFAULT_CONFIG = "configs/digits.py"
MEASURES = ("step", "forward", "sample", "pipeline")
OURS = "diffusion_jax"
AGAIN = "first step, compiled before"
# By name, whether through torch.compile.
PEERS = {"diffusers": False, "diffusers, torch.compile": True}
RANDOM_PICTURES = 2048


def main(argv: list[str]) -> None:
  """The command."""
  devices.tune_cpu()  # The workers start JAX, not this process.
  values = flags.FlagValues()
  cli.define_config(values, argv, DEFAULT_CONFIG)

  def define(kind, name, default, text, **options):
    kind(name, default, text, flag_values=values, **options)

  define(
    flags.DEFINE_list,
    "measures",
    list(MEASURES),
    f"one or more of {', '.join(MEASURES)}",
  )
  define(
    flags.DEFINE_list, "steps", ["25", "50", "1000"], "sampling steps to time"
  )
  define(
    flags.DEFINE_integer,
    "repeats",
    10,
    "repetitions of each measurement",
    lower_bound=1,
  )
  define(
    flags.DEFINE_integer,
    "random",
    None,
    "use random colour images of this size instead of the data",
    lower_bound=1,
  )
  define(flags.DEFINE_bool, "peers", False, "measure diffusers too")
  define(
    flags.DEFINE_bool, "compiled", True, "peers also through torch.compile"
  )
  cli.parse(argv, values)
  with (
    cli.user_errors(),
    tempfile.TemporaryDirectory() as folder,
  ):
    try:
      for line in lines(values, argv, pathlib.Path(folder)):
        cli.say(json.dumps(line))
    except RuntimeError as error:
      raise cli.fail(error, status=1) from error


def lines(
  values: flags.FlagValues, argv: list[str], folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
  """Measures, and yields the lines to print.

  Raises:
    ValueError: For any mistake of the user.
  """
  wanted = _measures(values)
  config = values.config
  if values.random is not None:
    config.data.name = _random_pictures(folder, values.random, config)
    config.data.size = ()
  race = functools.partial(_race, _jobs(values, config), folder)
  named = {
    "config": cli.config_name(argv, DEFAULT_CONFIG),
    "batch_size": config.batch_size,
  }
  product = race("product", None, 5, alone=True)[OURS]
  at_best = product["flops"] / min(product["seconds"])
  speeds: dict[str, float] = {}  # ours, images per second
  for measure, steps in tqdm.tqdm(
    wanted, disable=not sys.stderr.isatty(), leave=False
  ):
    what = measure if steps is None else f"{measure}, {steps} steps"
    found = race(measure, steps, values.repeats, alone=measure == "pipeline")
    # For peers too: the network is the same.
    cost = found[OURS]["flops_per_call"]
    for contender, result in found.items():
      row = rows.row(result, cost, at_best)
      yield {"measure": what, "contender": contender, **named, **row}
      if contender == OURS:
        speeds[measure] = row["images_per_second"]
    if measure == "step":
      again = race("step", None, 1, alone=True)[OURS]["first_step"]
      row = {"first_step": rows.with_sum(again)}
      yield {"measure": AGAIN, "contender": OURS, **named, **row}
    yield from rows.ratios(what, found, OURS)
    if measure == "pipeline" and "step" in speeds:
      faster = round(speeds["pipeline"] / speeds["step"], 1)
      yield {"ratio": "pipeline to training", "median": faster}


def _race(
  jobs: dict[str, tuple[str, dict[str, Any]]],
  folder: pathlib.Path,
  measure: str,
  steps: int | None,
  repeats: int,
  *,
  alone: bool,
) -> dict[str, dict[str, Any]]:
  """One measurement, by all contenders or by ours alone."""
  env = {
    # A cache for the second start, empty at first.
    "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
    "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    # Contenders share a GPU.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }
  wanted = {"measure": measure, "steps": steps}
  return rounds.race(
    {
      name: (module, job | wanted, env)
      for name, (module, job) in jobs.items()
      if name == OURS or not alone
    },
    repeats,
  )


def _measures(values: flags.FlagValues) -> list[tuple[str, int | None]]:
  """The measurements, and the number of steps of each."""
  wanted: list[tuple[str, int | None]] = []
  for name in values.measures:
    choices.named("measure", name, MEASURES)
    if name != "sample":
      wanted.append((name, None))
      continue
    for text in values.steps:
      if not text.isdecimal() or not 0 < int(text) <= values.config.schedule.T:
        raise ValueError(
          f"--steps={text} must be whole numbers in 1..T="
          f"{values.config.schedule.T}"
        )
      wanted.append((name, int(text)))
  return wanted


def _jobs(
  values: flags.FlagValues, config: configuration.Config
) -> dict[str, tuple[str, dict[str, Any]]]:
  """By contender, its module and what all of its jobs share.

  Raises:
    ValueError: If a peer is not available.
  """
  # What is wrong with a configuration is said here, not by a worker.
  networks.check_draws(config)
  checks.check(config, processes.schedule(config))
  source = datasets.source(config)
  datasets.count_classes(config, source)
  net = networks.model(config, source.image_shape, source.num_classes)
  ours = {"config": json.loads(config.to_json_best_effort())}
  found: dict[str, tuple[str, dict[str, Any]]] = {OURS: ("ours", ours)}
  if not values.peers:
    return found
  for package in ("torch", "diffusers"):
    if importlib.util.find_spec(package) is None:
      raise ValueError(
        f"--peers needs {package}, which is not installed: "
        "pip install -e '.[peers]'"
      )
  theirs = {
    "unet": diffusers_config.config(net, source.image_shape),
    "scheduler": diffusers_config.scheduler(
      config.schedule.to_dict(), config.target, config.variance
    ),
    "batch_size": config.batch_size,
    "dtype": config.model.dtype,
    "T": config.schedule.T,
    "few": samplers.FEW,
  }
  for name, compiled in PEERS.items():
    if compiled and not values.compiled:
      continue
    found[name] = ("peers", theirs | {"compile": compiled})
  return found


def _random_pictures(
  folder: pathlib.Path, size: int, config: configuration.Config
) -> str:
  """A file of random images, with as many classes as the network has."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (RANDOM_PICTURES, size, size, 3), np.uint8)
  classes = config.model.num_classes or 10
  path = folder / "random.npz"
  np.savez(path, images=images, labels=np.arange(RANDOM_PICTURES) % classes)
  return str(path)


if __name__ == "__main__":
  cli.run(main)
