"""Trains a classifier of noisy images, to guide a diffusion model with.

  python -m experiments.train_classifier --config=configs/classifier.py:digits
  python -m experiments.sample --workdir=runs/digits \
    --classifier=runs/classifier-digits --guidance=1 --classes=3

The run is written and continued as that of experiments.train. Each logged
line has the part of the pictures that are classified rightly, by quarter of
t, the cleanest first: of a batch just learnt from, and of those held out.
"""

from diffusion_jax.runs.training import classification
from experiments import cli
from experiments.cli import training

DEFAULT_CONFIG = "configs/classifier.py"


def main(argv: list[str]) -> None:
  """The command."""
  training.main(
    argv,
    DEFAULT_CONFIG,
    classification.prepare,
    then=lambda workdir: cli.command(
      "sample", workdir="A_DIFFUSION_RUN", classifier=workdir, guidance=1
    ),
  )


if __name__ == "__main__":
  cli.run(main)
