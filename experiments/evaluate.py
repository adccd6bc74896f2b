"""Measures samples of a run, or any pictures, and how likely data are.

  python -m experiments.evaluate --workdir=runs/digits
  python -m experiments.evaluate --workdir=runs/digits --metrics=frechet,bpd
  python -m experiments.evaluate --workdir=runs/cifar --num=50000 \
    --metrics=fid,is,kid,pr --features=inception --inception=PATH
  python -m experiments.evaluate --samples=PICTURES --reference=REFERENCE.npz \
    --metrics=fid,sfid --features=inception --inception=PATH

  python -m experiments.evaluate --workdir=runs/digits --curve --ema=sweep

"frechet" is the Frechet distance in pixel space, next to that of one random
half of the data to the other, and which classes the samples look like. "bpd"
is the variational bound on -log2 p(x_0) in bits per dimension. "agreement" is
how often a classifier sees the class that was asked for. fid, sfid, is, kid,
pr, fid_inf and halves are explained in docs/evaluation.md.

--features names what they look at, any network of JAX, PyTorch or NumPy.
--curve measures each checkpoint that is kept, --ema=sweep each average.

Samples that are done are kept until the end, so that the same command goes on
after an interruption and gives the same figures. These are appended to
evaluation.jsonl in the run directory with how they were made.
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
