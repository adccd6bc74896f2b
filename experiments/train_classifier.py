"""The former name of ``experiments.train --config=configs/classifier.py``."""

import pathlib
import warnings

from diffusion_jax.runs import directory
from experiments import cli, train

CONFIG = "configs/classifier.py"


def main(argv: list[str]) -> None:
  """The command."""
  warnings.warn(
    f"experiments.train_classifier is now experiments.train --config={CONFIG}",
    DeprecationWarning,
    stacklevel=2,
  )
  known = cli.peek(argv, "config", "workdir")
  workdir = pathlib.Path(known["workdir"] or "")
  if not (known["config"] or directory.is_run(workdir)):
    argv = [argv[0], f"--config={CONFIG}", *argv[1:]]
  train.main(argv)


if __name__ == "__main__":
  cli.run(main)
