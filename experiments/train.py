"""Trains a diffusion model, or a classifier for guidance.

  python -m experiments.train --config=configs/digits.py
  python -m experiments.train --config=configs/cifar.py --config.optim.lr=1e-4

The run is written to --workdir (runs/NAME by default). Run the same command
again to continue from the last checkpoint; --workdir alone does that too, with
the run's own configuration. Fine-tune imported weights with

  python -m experiments.train --workdir=runs/imported --config.data.name=PATH

Train a classifier of noisy images, and guide with it:

  python -m experiments.train --config=configs/classifier.py:digits
  python -m experiments.sample --workdir=runs/digits \
    --classifier=runs/classifier-digits --guidance=1 --classes=3
"""

import pathlib

from diffusion_jax.runs.configuration import Config, is_classifier
from experiments import cli
from experiments.cli import training

DEFAULT_CONFIG = "configs/digits.py"


def main(argv: list[str]) -> None:
  """The command."""
  training.main(argv, DEFAULT_CONFIG, then)


def then(config: Config, workdir: pathlib.Path) -> str:
  """The command that shows the result of a run."""
  if is_classifier(config):
    return cli.command(
      "sample", workdir="A_DIFFUSION_RUN", classifier=workdir, guidance=1
    )
  return cli.command("sample", workdir=workdir)


if __name__ == "__main__":
  cli.run(main)
