"""Draws samples from a trained run; needs nothing but its directory.

python -m experiments.sample --workdir=runs/digits
python -m experiments.sample --workdir=runs/digits --num=1797 --out=out.npz
python -m experiments.sample --workdir=runs/digits --steps=20
python -m experiments.sample --workdir=runs/digits-classes --classes=3,8
python -m experiments.sample --workdir=runs/digits4 --upsampler=runs/upsample
"""

import pathlib
import tempfile

import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax.runs import drawing, planning
from diffusion_jax.runs.options import SamplingOptions
from experiments import cli
from experiments.cli import devices, options


def save(
  out: pathlib.Path, samples: np.ndarray, quantise: str = "round"
) -> None:
  """Writes a .png grid, an .npz of uint8, or a folder of single PNGs."""
  if out.suffix.lower() == ".npz":
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:  # NumPy adds .npz to the name A.NPZ
      np.savez(file, images=dj.images.to_uint8(samples, quantise))
  elif out.suffix.lower() == ".png":
    dj.images.save_png(out, dj.images.grid(samples))
  else:
    for k, picture in enumerate(dj.images.to_uint8(samples, quantise)):
      dj.images.save_png(out / f"{k:06}.png", picture)


def check_out(out: pathlib.Path, channels: int) -> None:
  """Refuses, before any work, an --out that could not be written.

  Raises:
    ValueError: Saying what can be.
  """
  if out.suffix.lower() not in ("", ".png", ".npz"):
    raise ValueError(
      f"--out={out} must end in .png (a grid), in .npz (an array) or have no "
      "suffix (a folder of pictures)"
    )
  cli.check_out(out)
  if out.suffix:
    return
  if channels not in (1, 3):
    raise ValueError(
      f"images of {channels} channels are no PNGs; pass --out=NAME.npz"
    )
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(f"--out={out} is there already; name a new folder")


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = options.define(flags.FlagValues(), SamplingOptions)
  flags.DEFINE_string(
    "out",
    None,
    "NAME.png (a grid), NAME.npz (uint8 array) or a folder of PNGs; by "
    "default samples/sample_SEED.png in the run directory",
    flag_values=values,
  )
  cli.parse(argv, values)
  with cli.user_errors():
    workdir = options.workdir(values)
    asked = options.read(values, SamplingOptions)
    planned = planning.plan(workdir, asked)
    default = workdir / "samples" / f"sample_{asked.seed}.png"
    out = pathlib.Path(values.out or default)
    check_out(out, planned.last.image_shape[-1])
  samples = drawing.draw(planned)
  try:
    save(out, samples, asked.quantise)
  except FloatingPointError as error:
    raise cli.fail(error, status=1) from error
  except OSError as error:
    raise _rescued(samples, asked.quantise, error) from error
  cli.say(f"written to {out}")


def _rescued(samples: np.ndarray, quantise: str, error: OSError) -> SystemExit:
  """Saves samples elsewhere, where they cannot be written as asked."""
  try:
    out = pathlib.Path(tempfile.mkdtemp(prefix="samples-")) / "samples.npz"
    save(out, samples, quantise)
  except OSError:
    return cli.fail(error, status=1)
  return cli.fail(f"{error}; the samples are in {out} instead", status=1)


if __name__ == "__main__":
  cli.run(main)
