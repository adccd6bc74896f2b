"""Draws samples from a trained run; needs nothing but its directory.

python -m experiments.sample --workdir=runs/digits
python -m experiments.sample --workdir=runs/digits --num=1797 --out=out.npz
python -m experiments.sample --workdir=runs/digits --steps=20
python -m experiments.sample --workdir=runs/digits-classes --classes=3,8
python -m experiments.sample --workdir=runs/digits4 --upsampler=runs/upsample
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

import diffusion_jax as dj
from experiments import assemble, cli, devices, runs
from experiments.generate import Generator, Judge, class_count


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a command line asks to be drawn, and the network that draws it."""

  workdir: pathlib.Path
  config: cli.Config
  image_shape: tuple[int, int, int]
  net: dj.UNet
  params: Any
  step: int
  ema: str
  sampler: str
  spacing: str | None
  pairs: dj.timesteps.Pairs
  eta: float | None
  classes: tuple[int, ...]
  guidance: float | None
  judge: Judge | None
  low_res: np.ndarray | None
  low_res_noise: int
  num: int
  seed: int
  batch: int
  stage: int = 0
  upsamplers: tuple["Plan", ...] = ()
  values: dj.data.values.Values = dj.data.values.BYTES
  numbers: dict[str, list[float]] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> jax.Array:
    """The root of this stage's noise, see ``stage_key``."""
    return stage_key(self.seed, self.stage)

  @property
  def last(self) -> "Plan":
    """The stage of a cascade that makes the final images."""
    return (self, *self.upsamplers)[-1]


def stage_key(seed: int, stage: int) -> jax.Array:
  """The root of the noise of a cascade's stage, counted from 0.

  Noise is keyed by image and step, which all stages share: each needs a root
  of its own. That of the first is the one it has when it draws alone.
  """
  root = jax.random.key(seed)
  if stage == 0:
    return root
  return jax.random.fold_in(jax.random.fold_in(root, assemble.STAGES), stage)


def define_flags(
  values: flags.FlagValues, *, num: int | None
) -> flags.FlagValues:
  """Defines the flags that say what to draw."""

  def define(kind, name, text, default=None, **options):
    kind(name, default, text, flag_values=values, **options)

  text, whole = flags.DEFINE_string, flags.DEFINE_integer
  define(text, "workdir", "run directory")
  define(whole, "num", "how many images", num, lower_bound=1)
  define(
    whole,
    "steps",
    "moves per image (Heun calls the network twice in each); by default the "
    "configuration's",
    lower_bound=1,
  )
  define(
    text,
    "sampler",
    f"one of {', '.join(assemble.SAMPLERS)}; by default the configuration's, "
    f"and {assemble.FEW_STEPS_SAMPLER} where --steps asks for at most "
    f"{assemble.FEW}",
  )
  define(
    text,
    "spacing",
    f"where the steps are: {', '.join(dj.spacing.NAMES)}, or as published, "
    "like 250, 10,10,15,20 or ddim25; by default what suits the sampler",
  )
  define(
    flags.DEFINE_float,
    "eta",
    f"of {', '.join(assemble.TAKE_ETA)}: 0 adds no noise, 1 as much as "
    "ancestral sampling",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  define(
    flags.DEFINE_float,
    "guidance",
    "scale of classifier-free guidance, where the run was trained with "
    "label_dropout: 1 is off, more follows the class more closely. With "
    "--classifier that of its gradient: 0 is off, 1 the default",
  )
  define(text, "classifier", "run directory of a classifier to guide with")
  define(
    flags.DEFINE_list,
    "classes",
    "names of the classes to draw in turn; or their numbers, from 0 on, where "
    "no name is a number; by default all",
  )
  define(
    flags.DEFINE_list,
    "upsampler",
    "run directories of upsamplers, smallest first: each enlarges the images "
    "of the one before",
  )
  define(
    text,
    "low_res",
    "pictures (folder, .zip, .npz, .npy) for --workdir to enlarge, if it is "
    "an upsampler; by default those of its own data, made small",
  )
  define(
    whole,
    "low_res_noise",
    "step to which upsamplers that know noisy pictures have them noised: "
    "0 trusts the small picture, more makes up for its faults",
    0,
    lower_bound=0,
  )
  define(
    whole, "seed", "of all noise", 0, lower_bound=0, upper_bound=cli.MOST_SEED
  )
  define(
    text, "ema", "average: its rate, std:WIDTH, or raw; by default the slowest"
  )
  define(whole, "batch", "images at a time", 64, lower_bound=1)
  flags.DEFINE_enum(
    "quantise",
    "round",
    list(dj.images.QUANTISE),
    "how floats become bytes: to the nearest level or, as OpenAI's scripts "
    "do, the one below",
    flag_values=values,
  )
  return values


def plan(values: flags.FlagValues) -> Plan:
  """Reads the run directory and checks what is asked of it.

  Raises:
    ValueError: If there is no such run, checkpoint, average or sampler.
  """
  if values.workdir is None:
    raise ValueError("--workdir is missing: the directory of a run")
  first = _stage(values, pathlib.Path(values.workdir))
  small = assemble.low_res_shape(first.config, first.image_shape)
  if small is not None:
    first = dataclasses.replace(first, low_res=_low_res(values, first, small))
  elif values.low_res is not None:
    raise ValueError(f"--low_res: {first.workdir} enlarges no pictures")
  stages = [first]
  for name in values.upsampler or ():
    stages.append(_upsampler(values, pathlib.Path(name), stages[-1]))
  if values.low_res_noise and not any(s.net.noisy_low_res for s in stages):
    raise ValueError(
      "--low_res_noise: no upsampler here has learnt from noisy pictures, see "
      "low_res.noise of configurations"
    )
  return dataclasses.replace(first, upsamplers=tuple(stages[1:]))


def _stage(
  values: flags.FlagValues, workdir: pathlib.Path, *, enlarges: bool = False
) -> Plan:
  """What one run is to draw; ``enlarges`` where it is not the first."""
  config, data = runs.load(workdir)
  shape = tuple(data["image_shape"])
  net = assemble.model(config, shape, data["num_classes"])
  ema = average(config, None if enlarges else values.ema)
  sampler, spacing, pairs = _walk(values, config)
  judge = None
  if values.classifier is not None and not enlarges:
    judge = _judge(pathlib.Path(values.classifier), config, data)
  names = data["class_names"]
  skip = enlarges and config.model.num_classes is None
  params, step = parameters(workdir, config, net, shape, ema)
  noise = values.low_res_noise if net.noisy_low_res else 0
  if noise and noise > config.low_res.noise:
    raise ValueError(
      f"--low_res_noise={noise}: {workdir} has learnt from pictures noised to "
      f"steps 0..{config.low_res.noise}"
    )
  return Plan(
    workdir=workdir,
    config=config,
    values=dj.data.values.from_json(data.get("values")),
    image_shape=shape,
    net=net,
    params=params,
    step=step,
    ema=ema,
    sampler=sampler,
    spacing=spacing,
    pairs=pairs,
    eta=values.eta,
    classes=() if skip else _classes(values, config, judge, names),
    guidance=(
      config.sampling.get("guidance")
      if enlarges
      else _guidance(values, config, judge)
    ),
    judge=judge,
    low_res=None,
    low_res_noise=noise,
    num=values.num or 0,
    seed=values.seed,
    batch=min(values.batch, values.num or values.batch),
  )


def _upsampler(values, workdir: pathlib.Path, below: Plan) -> Plan:
  """The next stage of a cascade.

  Raises:
    ValueError: If it does not enlarge what the stage below it draws.
  """
  stage = _stage(values, workdir, enlarges=True)
  small = assemble.low_res_shape(stage.config, stage.image_shape)
  if small != below.image_shape:
    size = "nothing" if small is None else " x ".join(map(str, small))
    raise ValueError(
      f"--upsampler={workdir} enlarges {size}; {below.workdir} draws "
      f"{' x '.join(map(str, below.image_shape))}"
    )
  told = below.judge is not None or below.config.model.num_classes is not None
  if stage.config.model.num_classes is not None and not told:
    raise ValueError(
      f"--upsampler={workdir} is told classes; {below.workdir} draws none"
    )
  return dataclasses.replace(stage, stage=below.stage + 1)


def _low_res(values, plan: Plan, shape: tuple[int, int, int]) -> np.ndarray:
  """The small pictures that --low_res names, or those of the run's data."""
  if values.low_res is None:
    source = assemble.source(plan.config, elsewhere="--low_res")
    return assemble.low_res(plan.config, source, values.num or len(source))
  source = dj.data.load(values.low_res, size=shape[:2], channels=shape[2])
  count = min(len(source), values.num or len(source))
  return source.values.floats(source.gather(np.arange(count))["image"])


def _walk(values, config) -> tuple[str, str | None, dj.timesteps.Pairs]:
  """The sampler, the spacing's name and the walk that are asked for."""
  usual = config.sampling.sampler
  if values.steps is not None and values.steps <= assemble.FEW:
    usual = assemble.FEW_STEPS_SAMPLER
  if values.eta is not None and usual not in assemble.TAKE_ETA:
    usual = "ddim"
  sampler = assemble.named(
    "--sampler", values.sampler or usual, assemble.SAMPLERS
  )
  if values.eta is not None and sampler not in assemble.TAKE_ETA:
    raise ValueError(
      f"--sampler={sampler} has no eta; {', '.join(assemble.TAKE_ETA)} have"
    )
  spacing = values.spacing or config.sampling.get("spacing")
  steps = values.steps
  if steps is None and spacing in (None, *dj.spacing.NAMES):
    steps = config.sampling.steps
  schedule = assemble.schedule(config)
  return sampler, spacing, assemble.walk(schedule, sampler, spacing, steps)


def _classes(values, config, judge, names: Sequence[str]) -> tuple[int, ...]:
  """The classes that --classes names; none for all."""
  if not values.classes:
    return ()
  count = class_count(config, judge)
  if count is None:
    raise ValueError(
      "--classes: this run's network knows no classes; a --classifier could "
      "guide it"
    )
  known = class_numbers(names, count)
  return tuple(
    known[assemble.named("--classes", name, known)] for name in values.classes
  )


def class_numbers(names: Sequence[str], count: int) -> dict[str, int]:
  """What --classes may say, and the class that it means.

  A number counts from 0, unless classes are named by numbers themselves: of
  folders 3, 7 and 10, sorted as text, no. 1 is "3", which nobody would mean.

  >>> class_numbers(["cat", "dog"], 2)
  {'0': 0, '1': 1, 'cat': 0, 'dog': 1}
  >>> class_numbers(["10", "3", "7"], 3)
  {'10': 0, '3': 1, '7': 2}
  """
  known = {name: number for number, name in enumerate(names)}
  if any(name.isdecimal() for name in names):
    return known
  return {str(number): number for number in range(count)} | known


def _judge(workdir: pathlib.Path, config, data) -> Judge:
  """The classifier of a run, which must be made for what is sampled.

  Raises:
    ValueError: If it is of other images, classes or noise.
  """
  theirs, their_data = runs.load(workdir)
  ours = {
    "image_shape": data["image_shape"], "num_classes": data["num_classes"],
  }  # fmt: skip
  if not ours["num_classes"]:  # unknown, of imported weights
    del ours["num_classes"]
  for what, value in ours.items():
    if their_data[what] != value:
      raise ValueError(
        f"--classifier={workdir} has {what} {their_data[what]}, the run {value}"
      )
  shape = tuple(data["image_shape"])
  net = assemble.classifier(theirs, shape, their_data["num_classes"])
  if not assemble.same_noise(theirs, config):
    raise ValueError(
      f"--classifier={workdir} has the schedule {theirs.schedule.to_dict()}, "
      f"the run {config.schedule.to_dict()}"
    )
  state = restore(workdir, theirs, net, shape)
  ema = average(theirs, None)
  return Judge(str(workdir), net, weights(state, ema))


def _guidance(values, config, judge: Judge | None) -> float | None:
  """The scale of guidance, by default the configuration's."""
  if judge is not None:
    return 1.0 if values.guidance is None else values.guidance
  if values.guidance is None:
    return config.sampling.get("guidance")
  hides = any(part.dropout for part in assemble.vectors(config))
  if not hides and not assemble.hides_labels(config):
    raise ValueError(
      "--guidance: this run was trained without label_dropout, so its network "
      "does not know how to draw without a class; pass a --classifier"
    )
  # The conditional network alone: half the work.
  return None if values.guidance == 1 else values.guidance


def average(config: cli.Config, wanted: str | None) -> str:
  """The name of the average that --ema means, by default the slowest.

  Raises:
    ValueError: If the run has no such average.
  """
  names = assemble.averages(config)
  if wanted is None:
    rates = names[: len(config.ema.rates)]
    return (rates or names or ["raw"])[-1]
  kind, _, width = wanted.partition(":")
  if kind != dj.averages.PREFIX or not width:
    return assemble.named("--ema", wanted, ("raw", *names))
  try:
    dj.averages.exponent(float(width))
  except ValueError as error:
    raise ValueError(f"--ema={wanted}: {error}") from error
  if not config.ema.get("stds", ()):
    raise ValueError(
      f"--ema={wanted}: this run has kept no such averages; train with "
      "--config.ema.stds='(0.05, 0.1)'"
    )
  return dj.averages.name(float(width))


def weights(state: dj.state.TrainState, ema: str) -> Any:
  """The parameters that --ema names, of one state."""
  return dj.optimizers.evaluated(state) if ema == "raw" else state.ema[ema]


def parameters(workdir, config, net, shape, ema: str) -> tuple[Any, int]:
  """The parameters that --ema names, of the newest checkpoint, and its step.

  A width that was not tracked is made of those that the checkpoints keep.
  """
  newest = restore(workdir, config, net, shape)
  std = dj.averages.std_in(ema)
  if std is None or ema in newest.ema:
    return weights(newest, ema), int(newest.step)
  with dj.checkpoint.Checkpoints(
    workdir / "checkpoints", read_only=True
  ) as checkpoints:
    steps = [step for step in checkpoints.steps() if step <= newest.step]
  trees, ends, widths = [], [], []
  for step in steps:
    state = newest
    if step != newest.step:
      state = restore(workdir, config, net, shape, step)
    for width in config.ema.stds:
      trees.append(jax.device_get(state.ema[dj.averages.name(width)]))
      ends.append(step)
      widths.append(width)
  coefs = dj.averages.coefficients(ends, widths, int(newest.step), std)
  return dj.averages.combined(trees, coefs), int(newest.step)


def restore(
  workdir, config, net, shape, step: int | None = None
) -> dj.state.TrainState:
  """Reads a checkpoint, by default the newest good one, onto every device."""
  if not (workdir / "checkpoints").is_dir():
    raise ValueError(f"{workdir} has no checkpoints yet; train first")
  tx = assemble.optimizer(config)
  abstract = jax.eval_shape(
    lambda key: assemble.init(config, net, shape, tx, key), jax.random.key(0)
  )
  here = dj.parallel.replicated(dj.parallel.data_mesh())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract
  )
  with dj.checkpoint.Checkpoints(
    workdir / "checkpoints", read_only=True
  ) as checkpoints:
    tell = cli.say_first if step is None else None
    return checkpoints.restore(like, step, tell=tell)


def draw(plan: Plan) -> np.ndarray:
  """Draws the planned images, stage by stage: [num, H, W, C]."""
  images = _draw_stage(plan)
  for stage in plan.upsamplers:
    images = _draw_stage(
      dataclasses.replace(stage, low_res=images, num=plan.num, batch=plan.batch)
    )
  return images


def generator(plan: Plan) -> Generator:
  """What draws the images of one stage."""
  return Generator(
    plan.config,
    plan.net,
    plan.image_shape,
    sampler=plan.sampler,
    pairs=plan.pairs,
    batch=plan.batch,
    eta=plan.eta,
    classes=plan.classes,
    guidance=plan.guidance,
    judge=plan.judge,
    low_res=plan.low_res,
    low_res_noise=plan.low_res_noise,
    numbers=plan.numbers,
  )


def announce(plan: Plan) -> None:
  """Says what one stage is about to draw."""
  size = " x ".join(map(str, plan.image_shape[:2]))
  cli.say_first(
    f"{plan.num} images of {size} from step {plan.step}, {plan.sampler} with "
    f"{len(plan.pairs)} steps each, "
    + ("raw parameters" if plan.ema == "raw" else f"average {plan.ema}")
    + ("" if plan.guidance is None else f", guidance {plan.guidance:g}")
  )


def _draw_stage(plan: Plan) -> np.ndarray:
  """Draws what one run is to draw, under a progress bar."""
  announce(plan)
  with tqdm.tqdm(
    total=100, unit="%", disable=not sys.stderr.isatty(), leave=False
  ) as bar:
    return generator(plan)(
      plan.params,
      plan.key,
      plan.num,
      progress=lambda done: bar.update(int(100 * done) - bar.n),
    )


def save(
  out: pathlib.Path,
  samples: np.ndarray,
  quantise: str = "round",
  values: dj.data.values.Values = dj.data.values.BYTES,
) -> None:
  """Writes a .png grid to look at, or the data's own units: an array, files."""
  if out.suffix == ".png":
    dj.images.save_png(out, dj.images.grid(samples))
    return
  stored = values.restore(samples, floor=quantise == "floor")
  if out.suffix == ".npz":
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, images=stored)
  elif out.suffix == ".npy":
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, stored)
  else:
    suffix = "png" if values.dtype == "uint8" else "tiff"
    for k, picture in enumerate(stored):
      dj.images.save_picture(out / f"{k:06}.{suffix}", picture)


def check_out(
  out: pathlib.Path,
  channels: int,
  values: dj.data.values.Values = dj.data.values.BYTES,
) -> None:
  """Refuses, before any work, an --out that could not be written.

  Raises:
    ValueError: Saying what can be.
  """
  if out.suffix not in ("", ".png", ".npz", ".npy"):
    raise ValueError(
      f"--out={out} must end in .png (a grid), in .npz or .npy (an array) or "
      "have no suffix (a folder of pictures)"
    )
  cli.check_out(out)
  if out.suffix:
    return
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
  values = define_flags(flags.FlagValues(), num=64)
  flags.DEFINE_string(
    "out",
    None,
    "NAME.png (a grid), NAME.npz or .npy (in the data's own units) or a folder "
    "of PNGs, or of TIFFs where values are not of 8 bits; by "
    "default samples/sample_SEED.png in the run directory",
    flag_values=values,
  )
  flags.DEFINE_list(
    "cond",
    [],
    "numbers to draw given, such as angle=0.3,place=1:2, of a run that has "
    "learnt from data.cond",
    flag_values=values,
  )
  cli.parse(argv, values)
  with cli.user_errors():
    planned = plan(values)
    parts = assemble.vectors(planned.config)
    planned = dataclasses.replace(
      planned, numbers=numbers_of(values.cond, parts)
    )
    default = planned.workdir / "samples" / f"sample_{planned.seed}.png"
    out = pathlib.Path(values.out or default)
    final = planned.last.values
    check_out(out, planned.last.image_shape[-1], final)
  samples = draw(planned)
  try:
    save(out, samples, values.quantise, final)
  except FloatingPointError as error:
    raise cli.fail(error, status=1) from error
  except OSError as error:
    raise _rescued(samples, values.quantise, final, error) from error
  cli.say(f"written to {out}")


def numbers_of(
  asked: list[str], parts: tuple[dj.conditions.Vector, ...]
) -> dict[str, list[float]]:
  """The numbers of --cond=angle=0.3,place=1:2, by name.

  Raises:
    ValueError: If the run knows none of that name, or of so many numbers.
  """
  widths = {part.name: len(part.mean) for part in parts}
  found = {}
  for one in asked:
    name, _, text = one.partition("=")
    try:
      numbers = [float(number) for number in text.split(":")]
    except ValueError:
      numbers = []
    if widths.get(name) != len(numbers) or not np.isfinite(numbers).all():
      known = ", ".join(f"{k} ({n} numbers)" for k, n in widths.items())
      raise ValueError(
        f"--cond={one} must be NAME=NUMBER, or NAME=NUMBER:NUMBER and so on, of"
        f" what the run has learnt: {known or 'nothing, it has no data.cond'}"
      )
    found[name] = numbers
  return found


def _rescued(
  samples: np.ndarray, quantise: str, values, error: OSError
) -> SystemExit:
  """Saves samples elsewhere, where they cannot be written as asked."""
  try:
    out = pathlib.Path(tempfile.mkdtemp(prefix="samples-")) / "samples.npz"
    save(out, samples, quantise, values)
  except OSError:
    return cli.fail(error, status=1)
  return cli.fail(f"{error}; the samples are in {out} instead", status=1)


if __name__ == "__main__":
  cli.run(main)
