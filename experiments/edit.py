r"""Edits images with a trained model: inpaint, restore, vary, interpolate.

  python -m experiments.edit --workdir=runs/digits --edit=inpaint
  python -m experiments.edit --workdir=runs/digits --edit=restore \
      --operator=blur
  python -m experiments.edit --workdir=runs/digits --edit=vary
  python -m experiments.edit --workdir=runs/digits --edit=interpolate

The images are the first of the run's data, or those of --images. The result is
one grid, by default samples/EDIT.png in the run directory; the command prints
what its rows are.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax import runs, shapes
from diffusion_jax.runs import (
  configuration,
  datasets,
  restoring,
)
from experiments import cli
from experiments.cli import devices, options

JUMP = 10  # steps that inpainting repeats at a time
PARTS = (0.25, 0.5, 0.75)  # of the way to T, where variations start
NOISE = 0.02  # standard deviation of the noise on what is restored
# The rows and columns to fill in.
REGIONS = {
  "right": (slice(None), slice(1, 2)),
  "left": (slice(None), slice(0, 1)),
  "top": (slice(0, 1), slice(None)),
  "bottom": (slice(1, 2), slice(None)),
}


class Model(NamedTuple):
  """What editing needs from a run.

  Attributes:
    schedule: Its noise schedule.
    predict: Its network, without a class.
    pairs: The steps (t, s).
    bounded: Whether its data lie in [-1, 1], so that x0_hat is clipped to it.
  """

  schedule: dj.Schedule
  predict: dj.prediction.Predict
  pairs: dj.timesteps.Pairs
  bounded: bool = True


class Request(NamedTuple):
  """The options of an edit."""

  key: jax.Array
  region: str
  operator: str = "inpaint"


def mask_of(shape: tuple[int, ...], region: str) -> jax.Array:
  """1 where an image is known, 0 in the half to fill in.

  >>> mask_of((2, 4, 1), "right")[..., 0].tolist()
  [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
  """
  h, w, _ = shape
  mask = np.ones((h, w, 1))
  rows, columns = (
    slice(n // 2 * (part.start or 0), n if part.stop != 1 else n // 2)
    for n, part in zip((h, w), REGIONS[region], strict=True)
  )
  mask[rows, columns] = 0
  return jnp.asarray(mask)


def inpaint(model: Model, x0: jax.Array, asked: Request) -> list[jax.Array]:
  """Rows: the pictures, what is kept of them, two ways to fill in the rest."""
  mask = jnp.broadcast_to(mask_of(x0.shape[1:], asked.region), x0.shape)
  fill = jax.jit(
    lambda key: dj.editing.inpaint(
      dj.ancestral_step,
      model.predict,
      model.schedule,
      x0,
      mask,
      key,
      pairs=model.pairs,
      jump=JUMP,
    )
  )
  return [x0, x0 * mask, *map(fill, jax.random.split(asked.key))]


def observation(
  name: str, x0: jax.typing.ArrayLike, region: str
) -> dj.restoration.Observe:
  """The observation of an operator, for ``dj.restoration``.

  Raises:
    ValueError: If the images have an odd size, which cannot be halved.
  """
  _, h, w, c = np.shape(x0)
  if name == "inpaint":
    mask = np.broadcast_to(mask_of((h, w, c), region), (h, w, c))
    return dj.restoration.inpainting(mask)
  if name == "blur":
    return dj.restoration.blurring(h / 16)
  small = h // 2, w // 2
  dj.upsampling.check_size((h, w), small)
  return dj.restoration.downsampling(small)


def restore(model: Model, x0: jax.Array, asked: Request) -> list[jax.Array]:
  """Rows: the pictures, what is seen of them, two ways to restore them."""
  x0 = jnp.asarray(x0)
  observe = observation(asked.operator, x0, asked.region)
  key_noise, *keys = jax.random.split(asked.key, 3)
  clean = observe(x0)
  y = clean + NOISE * jax.random.normal(key_noise, clean.shape)
  given_y = dj.restoration.pigdm(
    model.predict, model.schedule, observe, y, std=NOISE
  )
  if model.bounded:
    given_y = dj.clipped(given_y, model.schedule)
  draw = jax.jit(
    lambda key: dj.sample(
      dj.ancestral_step,
      given_y,
      model.schedule,
      x0.shape,
      key,
      pairs=model.pairs,
    )[0]
  )
  if asked.operator == "inpaint":
    seen = dj.restoration.transpose(observe, y, x0)
  else:
    seen = jax.image.resize(y, x0.shape, "nearest")
  return [x0, seen, *map(draw, keys)]


OPERATORS = ("inpaint", "blur", "downsample")


def vary(model: Model, x0: jax.Array, asked: Request) -> list[jax.Array]:
  """Rows: the pictures, and what comes of them from ever noisier steps."""
  rows = [x0]
  for part, key in zip(PARTS, jax.random.split(asked.key, 3), strict=True):
    varied = functools.partial(
      dj.editing.vary,
      dj.ancestral_step,
      model.predict,
      model.schedule,
      start=part * model.schedule.T,
      pairs=model.pairs,
    )
    rows.append(jax.jit(varied)(x0, key))
  return rows


def interpolate(model: Model, x0: jax.Array, asked: Request) -> list[jax.Array]:
  """Each row: from a picture to the next one, through the noise of both."""
  columns = len(x0)
  ends = x0[: 2 * (min(columns, 8) // 2)]
  weights = jnp.linspace(0, 1, columns)

  @jax.jit
  def between(ends):
    noises = dj.solvers.encode(model.predict, model.schedule, ends, model.pairs)
    mixed = jax.vmap(dj.editing.slerp, in_axes=(0, 0, None))(
      noises[::2], noises[1::2], weights
    )
    x_T = mixed.reshape(-1, *ends.shape[1:])
    x, _ = dj.sample(
      dj.ddim_step,
      model.predict,
      model.schedule,
      x_T.shape,
      asked.key,
      pairs=model.pairs,
      x_T=x_T,
    )
    return x

  return [between(ends)]


EDITS: dict[str, Callable[..., list[jax.Array]]] = {
  "inpaint": inpaint,
  "restore": restore,
  "vary": vary,
  "interpolate": interpolate,
}


def check(run: runs.Run) -> None:
  """Checks that the model of a run can edit.

  Raises:
    ValueError: If not; says why.
  """
  conditions = run.conditions
  if conditions.low_res is not None:
    raise ValueError(f"{run.workdir} enlarges pictures; it does not edit them")
  if conditions.num_classes is not None and not conditions.label_dropout:
    raise ValueError(
      f"{run.workdir} was trained without label_dropout: its network "
      "cannot draw without a class, which editing needs"
    )
  parts = (*conditions.vectors, *conditions.planes)
  always = [part.name for part in parts if not part.dropout]
  if always:
    raise ValueError(
      f"{run.workdir} was trained with {', '.join(always)} of every picture, "
      f"which editing does not have; train with {' and '.join(always)} in "
      "cond_dropout"
    )


def load(values: flags.FlagValues) -> tuple[Model, np.ndarray]:
  """The model of the run, and the images to edit.

  Raises:
    ValueError: If there is no such run or its model cannot edit.
  """
  run = runs.open(options.workdir(values))
  config, conditions = run.config, run.conditions
  check(run)
  restoring.average(config, values.ema)  # raises if there is none
  pairs = dj.spacing.named(run.schedule, "even", values.steps)
  if values.edit == "inpaint" and len(pairs) % JUMP:
    raise ValueError(
      f"--steps={values.steps} must be a multiple of {JUMP} to inpaint"
    )
  if values.edit == "vary" and pairs[-1, 0] > PARTS[0] * run.schedule.T:
    raise ValueError(
      f"--steps={values.steps} leave none at {PARTS[0]:g} T or below, from "
      "where vary begins: take more"
    )
  if len(run.image_shape) != 3:
    raise ValueError(
      f"{run.workdir} is of {shapes.noun(run.image_shape)}s, and this "
      "command edits pictures; from Python dj.editing takes any rank"
    )
  units = dj.data.values.from_json(run.data.get("values"))
  x0 = pictures(values, config, run.image_shape, units)
  if values.edit == "restore":
    observation(values.operator, x0, values.region)
  predict = run.predict(
    values.ema, checkpoint=values.checkpoint, clip=units.bounded
  )
  no_class = conditions.num_classes or 0

  def without_class(x_t, t, cond=None):
    del cond
    none = conditions.given(
      jnp.full(len(x_t), no_class), None, count=len(x_t), size=x_t.shape[1:3]
    )
    return predict(x_t, t, none)

  return Model(run.schedule, without_class, pairs, units.bounded), x0


def pictures(values, config, shape, units) -> np.ndarray:
  """The first images of --images, or of the run's data: [N, H, W, C]."""
  if values.images is None:
    source = datasets.source(config, elsewhere="--images")
  else:
    source = datasets.in_units_of(
      units, "images", values.images, size=shape[:2], channels=shape[2]
    )
  count = min(values.num, len(source))
  if count < 2:
    raise ValueError(
      f"--num={values.num} of the {len(source)} pictures of {source.name}: at "
      "least 2 are needed"
    )
  return source.floats(np.arange(count))


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()
  for name, text in {
    "workdir": "run directory",
    "images": "images to edit: folder, .zip, .npz, .npy; by default the data",
    "ema": "average: its rate, std:WIDTH, or raw; by default the slowest",
    "out": "the .png to write; by default samples/EDIT.png in the run",
  }.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  for name, usual, text in (
    ("num", 8, "how many images"),
    ("steps", 100, "sampling steps from pure noise to an image"),
    ("seed", 0, "seed of all noise"),
    ("checkpoint", None, "step of the checkpoint; by default the newest"),
  ):
    flags.DEFINE_integer(
      name,
      usual,
      text,
      lower_bound=0,
      upper_bound=configuration.MOST_SEED,
      flag_values=values,
    )
  for name, usual, known, text in (
    ("edit", "inpaint", EDITS, "what to do"),
    ("region", "right", REGIONS, "the half that inpaint fills in"),
    ("operator", "inpaint", OPERATORS, "the damage that restore undoes"),
  ):
    flags.DEFINE_enum(name, usual, list(known), text, flag_values=values)
  cli.parse(argv, values)
  with cli.user_errors():
    default = pathlib.Path(
      values.workdir or "", "samples", f"{values.edit}.png"
    )
    out = pathlib.Path(values.out or default)
    cli.check_out(out, ".png")
    model, x0 = load(values)
  edit = EDITS[values.edit]
  asked = Request(jax.random.key(values.seed), values.region, values.operator)
  rows = np.concatenate([np.asarray(r) for r in edit(model, x0, asked)])
  with cli.system_errors():
    dj.images.save_png(out, dj.images.grid(rows, columns=len(x0)))
  cli.say((edit.__doc__ or "").strip())
  cli.say(f"written to {out}")


if __name__ == "__main__":
  cli.run(main)
