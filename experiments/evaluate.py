"""Evaluates samples of a run, or any images, and the likelihood of data.

  python -m experiments.evaluate --workdir=runs/digits
  python -m experiments.evaluate --workdir=runs/digits --metrics=frechet,bpd
  python -m experiments.evaluate --workdir=runs/cifar --num=50000 \
    --metrics=fid,is,kid,pr --features=inception --inception=PATH
  python -m experiments.evaluate --samples=PICTURES --reference=REFERENCE.npz \
    --metrics=fid,sfid --features=inception --inception=PATH

  python -m experiments.evaluate --workdir=runs/digits --curve --ema=sweep

"frechet" is the Frechet distance in pixel space, next to that of one random
half of the data to the other, and the classes that the samples look like. "bpd"
is the variational bound on -log2 p(x_0) in bits per dimension. "agreement" is
how often a classifier predicts the requested class. docs/evaluation.md explains
fid, sfid, is, kid, pr, fid_inf and halves.

--features chooses their feature network, in JAX, PyTorch or NumPy. --curve
measures every checkpoint that was kept, --ema=sweep every average.

Finished samples are kept until the end, so that the same command continues
after an interruption and gives the same results. These are appended to
evaluation.jsonl in the run directory, with the settings that produced them.
"""

from absl import flags

from diffusion_jax.runs.evaluation import evaluating
from diffusion_jax.runs.evaluation.options import EvaluationOptions
from experiments import cli
from experiments.cli import devices, options


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = options.define(flags.FlagValues(), EvaluationOptions)
  cli.parse(argv, values)
  with cli.user_errors():
    asked = options.read(values, EvaluationOptions)
    evaluating.evaluate(values.workdir, asked)


if __name__ == "__main__":
  cli.run(main)
