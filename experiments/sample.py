"""Draws samples from a trained run; it needs only the run directory.

python -m experiments.sample --workdir=runs/digits
python -m experiments.sample --workdir=runs/digits --num=1797 --out=out.npz
python -m experiments.sample --workdir=runs/digits --steps=20
python -m experiments.sample --workdir=runs/digits-classes --classes=3,8
python -m experiments.sample --workdir=runs/digits4 --upsampler=runs/upsample
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax import shapes
from diffusion_jax.runs import drawing, planning
from diffusion_jax.runs.options import SamplingOptions
from experiments import cli
from experiments.cli import devices, options


def save(
  out: pathlib.Path,
  samples: np.ndarray,
  quantise: str = "round",
  values: dj.data.values.Values = dj.data.values.BYTES,
  classes: Sequence[int] = (),
) -> None:
  """Writes a .png grid; or an array or files, in the data's own units.

  Args:
    out: Where to, see ``check_out``.
    samples: [N, H, W, C].
    quantise: How floats become bytes.
    values: The units of the data.
    classes: Those that were drawn in turn; a .npz keeps each sample's.
  """
  suffix = out.suffix.lower()
  if suffix == ".png":
    dj.images.save_png(out, dj.images.grid(samples))
    return
  stored = values.restore(samples, floor=quantise == "floor")
  if not suffix:
    each = "png" if values.dtype == "uint8" else "tiff"
    for k, picture in enumerate(stored):
      dj.images.save_picture(out / f"{k:06}.{each}", picture)
    return
  out.parent.mkdir(parents=True, exist_ok=True)
  with out.open("wb") as file:  # NumPy adds .npz to the name A.NPZ
    if suffix == ".npz":
      arrays: dict[str, Any] = {"images": stored}
      if classes:
        arrays["labels"] = np.resize(classes, len(stored))
      np.savez(file, **arrays)
    else:
      np.save(file, stored)


def check_out(
  out: pathlib.Path,
  shape: tuple[int, ...],
  values: dj.data.values.Values = dj.data.values.BYTES,
) -> None:
  """Checks, before any work, that --out can be written.

  Raises:
    ValueError: If not; says what --out can be.
  """
  if out.suffix.lower() not in ("", ".png", ".npz", ".npy"):
    raise ValueError(
      f"--out={out} must end in .png (a grid), in .npz or .npy (an array) or "
      "have no suffix (a folder of pictures)"
    )
  cli.check_out(out)
  if out.suffix:
    return
  channels = shape[-1]
  if len(shape) != 3:
    raise ValueError(
      f"{shapes.noun(shape)}s of {shapes.by(shape)} are no "
      "pictures; pass --out=NAME.npy"
    )
  if channels not in (1, 3):
    raise ValueError(
      f"images of {channels} channels are no PNGs; pass --out=NAME.npz"
    )
  wide = values.dtype in ("uint16", "float32") and channels == 1
  if values.dtype != "uint8" and not wide:
    raise ValueError(
      f"samples of {values.dtype} with {channels} channels are no pictures; "
      "pass --out=NAME.npz"
    )
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(f"--out={out} is there already; name a new folder")


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  given = options.define(flags.FlagValues(), SamplingOptions)
  flags.DEFINE_string(
    "out",
    None,
    "NAME.png (a grid), NAME.npz or .npy (in the data's own units) or a folder "
    "of PNGs, or of TIFFs if values do not have 8 bits; by default "
    "samples/sample_SEED.png in the run directory",
    flag_values=given,
  )
  cli.parse(argv, given)
  with cli.user_errors():
    workdir = options.workdir(given)
    asked = options.read(given, SamplingOptions)
    planned = planning.plan(workdir, asked)
    default = workdir / "samples" / f"sample_{asked.seed}.png"
    out = pathlib.Path(given.out or default)
    values = planned.last.values
    check_out(out, planned.last.image_shape, values)
  write = functools.partial(
    save,
    samples=drawing.draw(planned),
    quantise=asked.quantise,
    values=values,
    classes=planned.classes,
  )
  try:
    write(out)
  except FloatingPointError as error:
    raise cli.fail(error, status=1) from error
  except OSError as error:
    raise _rescued(write, error) from error
  cli.say(f"written to {out}")


def _rescued(
  write: Callable[[pathlib.Path], None], error: OSError
) -> SystemExit:
  """Saves samples elsewhere, if they cannot be written to --out."""
  try:
    out = pathlib.Path(tempfile.mkdtemp(prefix="samples-")) / "samples.npz"
    write(out)
  except OSError:
    return cli.fail(error, status=1)
  return cli.fail(f"{error}; the samples are in {out} instead", status=1)


if __name__ == "__main__":
  cli.run(main)
