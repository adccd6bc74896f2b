"""Turns sampling options into a checked plan."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax import shapes
from diffusion_jax.runs import (
  choices,
  configuration,
  datasets,
  directory,
  guiding,
  networks,
  processes,
  restoring,
  samplers,
)
from diffusion_jax.runs.guiding import GuidingClassifier
from diffusion_jax.runs.options import PathLike, SamplingOptions

# A number that no step and no image reaches, for a key of its own; more are in
# ``training.classification`` and ``dj.conditions``.
STAGES = 2**32 - 3


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to draw, and the network that draws it.

  Attributes:
    workdir: The run directory.
    config: Its configuration.
    image_shape: (H, W, C).
    net: The network.
    params: Its parameters.
    step: The step of their checkpoint.
    options: The options, with defaults instead of None: the sampler, the
      average and the guidance by name, classes by number.
    pairs: The steps (t, s).
    classifier: The classifier to guide with.
    low_res: The small images to upsample, [N, h, w, C].
    pictures: Other images to condition on, [N, H, W, C] by name.
    values: The units of the data.
    root: The key of all noise, if it does not come from the seed.
    stage: The stage of a cascade, from 0.
    upsamplers: Its further stages.
  """

  workdir: pathlib.Path
  config: configuration.Config
  image_shape: tuple[int, ...]
  net: dj.models.Backbone
  params: Any
  step: int
  options: SamplingOptions
  pairs: dj.timesteps.Pairs
  classifier: GuidingClassifier | None = None
  low_res: np.ndarray | None = None
  pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  values: dj.data.values.Values = dj.data.values.BYTES
  root: jax.Array | None = None
  stage: int = 0
  upsamplers: tuple["Plan", ...] = ()

  @property
  def num(self) -> int:
    """How many images."""
    return self.options.num or 0

  @property
  def ema(self) -> str:
    """The parameters to use: raw, or the name of an average."""
    return self.options.ema or "raw"

  @property
  def key(self) -> jax.Array:
    """The root of this stage's noise, see ``stage_key``."""
    root = jax.random.key(self.options.seed) if self.root is None else self.root
    return stage_key(root, self.stage)

  @property
  def program(self) -> tuple[Any, ...]:
    """What the compiled program depends on: plans with equal ones share it."""
    guidance = self.options.guidance
    options = dataclasses.replace(
      self.options,
      guidance=1.0 if isinstance(guidance, float) else guidance,
      num=None,
      steps=None,  # see pairs
      ema=None,
      checkpoint=None,
      low_res=None,
      seed=0,
    )
    return self.workdir, options, self.pairs.tobytes()

  def asking(self, **changes: Any) -> "Plan":
    """The plan with other options, without upsamplers."""
    options = dataclasses.replace(self.options, **changes)
    return dataclasses.replace(self, options=options)

  @property
  def classes(self) -> tuple[int, ...]:
    """The classes to draw in turn; empty if there are none."""
    return guiding.classes_in_turn(self.config, self.options, self.classifier)

  @property
  def last(self) -> "Plan":
    """The stage of a cascade that makes the final images."""
    return (self, *self.upsamplers)[-1]


def stage_key(root: jax.Array, stage: int) -> jax.Array:
  """The root of the noise of a cascade's stage, counted from 0.

  Noise is keyed by image and step, which all stages share, so each needs its
  own root. The first has the same as without a cascade.
  """
  if stage == 0:
    return root
  return jax.random.fold_in(jax.random.fold_in(root, STAGES), stage)


def plan(
  workdir: PathLike, options: SamplingOptions, *, root: jax.Array | None = None
) -> Plan:
  """Reads a run directory and checks the options for it.

  Args:
    workdir: The directory.
    options: How to sample.
    root: The key of all noise, instead of the seed's.

  Returns:
    The plan.

  Raises:
    ValueError: If there is no such run, checkpoint, average or sampler.
  """
  first = _stage(options, pathlib.Path(workdir).expanduser())
  small = networks.low_res_shape(first.config, first.image_shape)
  if small is not None:
    first = dataclasses.replace(first, low_res=_low_res(options, first, small))
  elif options.low_res is not None:
    raise ValueError(f"`low_res`: {first.workdir} enlarges no pictures")
  stages = [first]
  for name in options.upsampler:
    place = pathlib.Path(name).expanduser()
    stages.append(_upsampler(options, place, stages[-1]))
  if options.low_res_noise and not any(
    networks.noisy_low_res(s.config, s.image_shape) for s in stages
  ):
    raise ValueError(
      "`low_res_noise`: no upsampler here was trained on noisy pictures, see "
      "low_res.noise of configurations"
    )
  stages = [dataclasses.replace(stage, root=root) for stage in stages]
  return dataclasses.replace(stages[0], upsamplers=tuple(stages[1:]))


def _stage(
  options: SamplingOptions, workdir: pathlib.Path, *, enlarges: bool = False
) -> Plan:
  """The plan of one run; ``enlarges`` if it is not the first stage."""
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  net = networks.model(config, shape, data["num_classes"])
  ema = restoring.average(config, None if enlarges else options.ema)
  sampler, spacing, pairs = walk(options, config)
  classifier = None
  if options.classifier is not None and not enlarges:
    classifier = guiding.guiding_classifier(
      pathlib.Path(options.classifier).expanduser(), config, data
    )
  skip = enlarges and config.model.num_classes is None
  names = data["class_names"]
  classes = () if skip else _classes(options, config, classifier, names)
  at = None if enlarges else options.checkpoint
  params, step = restoring.parameters(workdir, config, net, shape, ema, at)
  noisy = networks.noisy_low_res(config, shape)
  noise = options.low_res_noise if noisy else 0
  if noise and noise > config.low_res.noise:
    raise ValueError(
      f"`low_res_noise={noise}`: {workdir} was trained on pictures noised to "
      f"steps 0..{config.low_res.noise}"
    )
  cond = () if enlarges else options.cond
  networks.numbers(config, cond)  # raises for what the run does not have
  if enlarges:
    options = dataclasses.replace(options, guidance=None)
  return Plan(
    workdir=workdir,
    config=config,
    values=dj.data.values.from_json(data.get("values")),
    image_shape=shape,
    net=net,
    params=params,
    step=step,
    options=dataclasses.replace(
      options,
      sampler=sampler,
      spacing=spacing,
      classes=classes,
      cond=cond,
      guidance=_guidance(options, config, classifier),
      low_res_noise=noise,
      ema=ema,
      batch=min(options.batch, options.num or options.batch),
    ),
    pairs=pairs,
    classifier=classifier,
    pictures=datasets.given_pictures(config, cond, shape, options.num),
  )


def _upsampler(
  options: SamplingOptions, workdir: pathlib.Path, below: Plan
) -> Plan:
  """The next stage of a cascade.

  Raises:
    ValueError: If it does not upsample images as the stage below draws them.
  """
  stage = _stage(options, workdir, enlarges=True)
  small = networks.low_res_shape(stage.config, stage.image_shape)
  if small != below.image_shape:
    size = "nothing" if small is None else shapes.by(small)
    raise ValueError(
      f"`upsampler={workdir}` enlarges {size}; {below.workdir} draws "
      f"{shapes.by(below.image_shape)}"
    )
  labelled = stage.config.model.num_classes is not None
  if labelled and guiding.class_count(below.config, below.classifier) is None:
    raise ValueError(
      f"`upsampler={workdir}` is class-conditional; {below.workdir} draws no "
      "classes"
    )
  data = [directory.load(run.workdir)[1] for run in (stage, below)]
  guiding.check_same_data(f"`upsampler={workdir}`", *data, classes=labelled)
  return dataclasses.replace(stage, stage=below.stage + 1)


def _low_res(
  options: SamplingOptions, plan: Plan, shape: tuple[int, ...]
) -> np.ndarray:
  """The small images of `low_res`, or those of the run's data."""
  if isinstance(options.low_res, np.ndarray):
    if options.low_res.shape[1:] != shape:
      raise ValueError(
        f"`low_res` has shape {options.low_res.shape}: {plan.workdir} enlarges "
        f"pictures of [N, {', '.join(map(str, shape))}]"
      )
    return options.low_res
  if options.low_res is None:
    source = datasets.source(plan.config, elsewhere="`low_res`")
    return datasets.low_res(plan.config, source, options.num or len(source))
  size, channels, rank = shape[:-1], shape[-1], len(shape) - 1
  fit: Any = {"rank": rank}
  if rank == 2:  # images can be resized
    fit = {"size": size, "channels": channels}
  source = datasets.in_units_of(plan.values, "low_res", options.low_res, **fit)
  if source.image_shape != shape:
    raise ValueError(
      f"`low_res` has images of {source.image_shape}: {plan.workdir} enlarges "
      f"those of {shape}"
    )
  count = min(len(source), options.num or len(source))
  return source.floats(np.arange(count))


def walk(
  options: SamplingOptions, config: configuration.Config
) -> tuple[str, str | None, dj.timesteps.Pairs]:
  """The sampler, the spacing's name and the steps of these options."""
  usual = config.sampling.sampler
  few = options.steps is not None and options.steps <= samplers.FEW
  if few and config.objective.name == "diffusion":
    usual = samplers.FEW_STEPS_SAMPLER
  if options.eta is not None and usual not in samplers.TAKE_ETA:
    usual = "ddim"
  sampler = samplers.named("`sampler`", options.sampler or usual, config)
  if options.eta is not None and sampler not in samplers.TAKE_ETA:
    raise ValueError(
      f"`sampler={sampler}` has no eta; {', '.join(samplers.TAKE_ETA)} have"
    )
  spacing = options.spacing or config.sampling.get("spacing")
  steps = options.steps
  if steps is None and spacing in (None, *dj.spacing.NAMES):
    steps = config.sampling.steps
  schedule = processes.schedule(config)
  return sampler, spacing, samplers.walk(schedule, sampler, spacing, steps)


def _classes(
  options: SamplingOptions,
  config: configuration.Config,
  classifier: GuidingClassifier | None,
  names: Sequence[str],
) -> tuple[int, ...]:
  """The classes in `classes`; empty for all."""
  if not options.classes:
    return ()
  count = guiding.class_count(config, classifier)
  if count is None:
    raise ValueError(
      "`classes`: this run's network is unconditional; a `classifier` could "
      "guide it"
    )
  numbers = guiding.class_numbers(names, count)
  return tuple(
    numbers[choices.named("`classes`", str(name), numbers)]
    for name in options.classes
  )


def _guidance(
  options: SamplingOptions,
  config: configuration.Config,
  classifier: GuidingClassifier | None,
) -> float | str | None:
  """The scale of guidance, by default the configuration's."""
  if classifier is not None and isinstance(options.guidance, str):
    raise ValueError(
      f"`guidance={options.guidance}`: a classifier takes one scale, a number"
    )
  if classifier is not None:
    return 1.0 if options.guidance is None else options.guidance
  asked, said = options.guidance, "`guidance`"
  if asked is None:
    asked, said = config.sampling.get("guidance"), "sampling.guidance"
  if asked is None:
    return None
  given = guiding.given_parts(config, options.cond)
  if isinstance(asked, str):
    guiding.check_scales(config, asked, given)
    return asked
  guiding.check_guidable(config, said)
  if asked == 1 or (not given and options.guidance is None):
    return None  # The conditional network alone: half the work.
  if not given:
    raise guiding.no_direction("`guidance`", guiding.hidden_parts(config)[0])
  return asked
