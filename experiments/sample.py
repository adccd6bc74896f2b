"""Draws samples from a trained run; needs nothing but its directory.

python -m experiments.sample --workdir=runs/digits
python -m experiments.sample --workdir=runs/digits --num=1797 --out=out.npz
"""

import pathlib
import sys

import jax
import numpy as np
import tqdm
from absl import flags

import diffusion_jax as dj
from experiments import assemble, cli, runs
from experiments.generate import Generator


def restore(workdir: pathlib.Path, ema: str | None):
  """Reads a run's network and parameters.

  Args:
    workdir: The run directory.
    ema: Which average: its rate, "raw" for none, None for the run's slowest.

  Returns:
    (config, data description, network, parameters, step).

  Raises:
    ValueError: If there is no such run, checkpoint or average.
  """
  config, data = runs.load(workdir)
  shape = tuple(data["image_shape"])
  net = assemble.model(config, shape, data["num_classes"])
  tx = assemble.optimizer(config)
  rates = [str(rate) for rate in sorted(config.ema.rates)]
  ema = ema or (rates[-1] if rates else "raw")
  if ema not in ("raw", *rates):
    raise ValueError(f"--ema={ema} is not one of raw, {', '.join(rates)}")
  if not (workdir / "checkpoints").is_dir():
    raise ValueError(f"{workdir} has no checkpoints yet; train first")
  abstract = jax.eval_shape(
    lambda key: assemble.init(config, net, shape, tx, key), jax.random.key(0)
  )
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract
  )
  with dj.checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints:
    state = checkpoints.restore(like)
  params = state.params if ema == "raw" else state.ema[ema]
  return config, data, net, params, int(state.step)


def save(out: pathlib.Path, samples: np.ndarray) -> None:
  """Writes a .png grid, an .npz of uint8, or a folder of single PNGs."""
  if out.suffix == ".npz":
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, images=dj.images.to_uint8(samples))
  elif out.suffix == ".png":
    dj.images.save_png(out, dj.images.grid(samples))
  else:
    for k, picture in enumerate(dj.images.to_uint8(samples)):
      dj.images.save_png(out / f"{k:06}.png", picture)


def check_out(out: pathlib.Path, channels: int) -> None:
  """Refuses, before any work, an --out that could not be written."""
  if out.suffix not in ("", ".png", ".npz"):
    raise ValueError(
      f"--out={out} must end in .png (a grid), in .npz (an array) or have no "
      "suffix (a folder of pictures)"
    )
  if out.suffix == "" and channels not in (1, 3):
    raise ValueError(
      f"images of {channels} channels are no PNGs; pass --out=NAME.npz"
    )
  if out.suffix == "" and out.is_dir() and any(out.iterdir()):
    raise ValueError(
      f"--out={out} is a folder with files in it; name a new one"
    )


def main(argv: list[str]) -> None:
  """The command."""
  values = flags.FlagValues()

  def define(kind, name, text, default=None, **options):
    kind(name, default, text, flag_values=values, **options)

  define(flags.DEFINE_string, "workdir", "run directory")
  define(flags.DEFINE_integer, "num", "how many images", 64, lower_bound=1)
  define(
    flags.DEFINE_integer,
    "steps",
    "network calls per image; by default the configuration's",
    lower_bound=1,
  )
  define(
    flags.DEFINE_string, "sampler", f"one of {', '.join(assemble.SAMPLERS)}"
  )
  define(flags.DEFINE_integer, "seed", "of all noise", 0)
  define(flags.DEFINE_string, "ema", "rate of the average, or raw")
  define(
    flags.DEFINE_string,
    "out",
    "NAME.png (a grid), NAME.npz (uint8 array) or a folder of PNGs; by "
    "default samples/sample_SEED.png in the run directory",
  )
  define(flags.DEFINE_integer, "batch", "images at a time", 64, lower_bound=1)
  cli.parse(argv, values)
  with cli.user_errors():
    if values.workdir is None:
      raise ValueError("--workdir is missing: the directory of a run")
    workdir = pathlib.Path(values.workdir)
    config, data, net, params, step = restore(workdir, values.ema)
    shape = tuple(data["image_shape"])
    sampler = assemble.named(
      "sampler", values.sampler or config.sampling.sampler, assemble.SAMPLERS
    )
    steps = values.steps or config.sampling.steps
    dj.timesteps.spaced(config.schedule.T, steps)
    default = workdir / "samples" / f"sample_{values.seed}.png"
    out = pathlib.Path(values.out or default)
    check_out(out, shape[-1])
  cli.say(
    f"{values.num} images from step {step}, {sampler} with {steps} network "
    "calls each"
  )
  generator = Generator(
    config,
    net,
    shape,
    sampler=sampler,
    steps=steps,
    batch=min(values.batch, values.num),
  )
  with tqdm.tqdm(total=100, unit="%", disable=not sys.stderr.isatty()) as bar:
    samples = generator(
      params,
      jax.random.key(values.seed),
      values.num,
      progress=lambda done: bar.update(int(100 * done) - bar.n),
    )
  save(out, samples)
  cli.say(f"written to {out}")


if __name__ == "__main__":
  main(sys.argv)
