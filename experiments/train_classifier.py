"""The former name of ``experiments.train --config=configs/classifier.py``."""

import warnings

from experiments import cli, train


def main(argv: list[str]) -> None:
  """The command."""
  warnings.warn(
    "experiments.train_classifier is now experiments.train "
    "--config=configs/classifier.py",
    DeprecationWarning,
    stacklevel=2,
  )
  train.main(argv, default="configs/classifier.py")


if __name__ == "__main__":
  cli.run(main)
