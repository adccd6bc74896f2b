"""Trains a diffusion model.

  python -m experiments.train --config=configs/digits.py
  python -m experiments.train --config=configs/cifar.py --config.optim.lr=1e-4

The run is written to --workdir (runs/NAME by default). The same command
again continues it from its last checkpoint; so does --workdir alone, with the
run's own configuration. A run of imported weights is fine-tuned:

  python -m experiments.train --workdir=runs/imported --config.data.name=PATH
"""

from diffusion_jax.runs.training import diffusion
from experiments import cli
from experiments.cli import training

DEFAULT_CONFIG = "configs/digits.py"


def main(argv: list[str]) -> None:
  """The command."""
  training.main(
    argv,
    DEFAULT_CONFIG,
    diffusion.prepare,
    then=lambda workdir: cli.command("sample", workdir=workdir),
  )


if __name__ == "__main__":
  cli.run(main)
