"""From a configuration to the objects that it describes."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import diffusion_jax as dj
from experiments import cli
from experiments.cli import MOST_SEED, Config

# A step, or what makes a solver.
SAMPLERS: dict[str, Callable] = {
  "ancestral": dj.ancestral_step,
  "ddim": dj.ddim_step,
  "euler": dj.solvers.euler_step,
  "heun": dj.solvers.heun_step,
  "dpmpp_2m": functools.partial(dj.solvers.dpm, 2),
  "dpmpp_3m": functools.partial(dj.solvers.dpm, 3),
  "unipc": dj.solvers.unipc,
  "deis": dj.solvers.deis,
  "edm_heun": dj.edm.heun,
  "flow_heun": dj.flow.heun_step,
  "flow_sde": dj.flow.sde_step,
}
SOLVERS = ("dpmpp_2m", "dpmpp_3m", "unipc", "deis")
TAKE_ETA = ("ddim", "dpmpp_2m", "dpmpp_3m")
# Few steps are best made by this one: docs/solvers.md.
FEW, FEW_STEPS_SAMPLER = 100, "unipc"
SCHEDULES = (
  "linear", "quadratic", "constant", "warmup", "jsd", "cosine", "sigmoid",
)  # fmt: skip
# Of real time: the paths of EDM, of the VP SDE, of flow matching, a circle's.
REAL_TIME = {
  "ve": dj.continuous.edm,
  "vp": dj.continuous.linear,
  "flow": dj.continuous.flow,
  "trig": dj.continuous.cosine,
}
LOSSES = ("simple", "vlb", "hybrid")
TIMESTEPS = ("uniform", "antithetic", "importance")
REAL_TIMESTEPS = {
  "log_normal": dj.timesteps.log_normal,
  "logit_normal": dj.timesteps.logit_normal,
}
# Numbers that no step and no image reaches, for keys of their own; two more
# are in ``dj.conditions``.
STAGES, HELD_OUT = (2**32 - n for n in (3, 4))
WEIGHTS = ("none", "bound", "p2", "min_snr", "truncated_snr", "edm", "sigmoid")


# By the option of dj.data.load that would help.
REMEDIES = {
  "size": "have all resized, by --config.data.size=64",
  "data_dir": "name another folder, by --config.data.data_dir=PATH",
  "skip_broken": "leave it out, by --config.data.skip_broken=True",
}


def named(kind: str, name: str, choices):
  """Checks a name that a configuration gives.

  Raises:
    ValueError: Naming the choices.
  """
  if name not in choices:
    raise ValueError(f"{kind} {name!r} is not one of {', '.join(choices)}")
  return name


def _call(kind: str, function: Callable, options: dict):
  """function(**options); a stray or missing option is a user's error."""
  try:
    return function(**options)
  except TypeError as error:
    raise ValueError(f"{kind}: {error}") from error


def _given(options: Any) -> dict[str, Any]:
  """The options that are not left to their defaults by None."""
  return {key: value for key, value in options.items() if value is not None}


def real_time(config: Config) -> bool:
  """Whether time is a number of the schedule, not a step."""
  return config.schedule.name in REAL_TIME


def schedule(config: Config) -> dj.schedules.Schedule:
  """The noise schedule of ``config.schedule``; real time has no steps T."""
  options = config.schedule.to_dict()
  name = named("schedule", options.pop("name"), (*SCHEDULES, *REAL_TIME))
  kind = f"schedule {name!r}"
  if name not in REAL_TIME:
    return _call(kind, getattr(dj.schedules, name), options)
  del options["T"]
  shift = options.pop("shift", 1.0)
  made = _call(kind, REAL_TIME[name], options)
  return made if shift == 1 else made.shifted(shift)


def training_source(config: Config) -> dj.data.Source:
  """``source`` for a command that trains: says what it has found.

  Raises:
    ValueError: With the override that would help, if there is one.
  """
  try:
    found = source(config)
  except dj.data.Unfit as error:
    raise ValueError(f"{error}, or {REMEDIES[error.option]}") from error
  cli.say_first(f"data: {dj.data.summary(found)}")
  if not found.values.bounded and config.get("sampling", {}).get("clip"):
    raise ValueError(
      f"the data have no range ({found.values}), so that samples must not be "
      "clipped to one: pass --config.sampling.clip=False"
    )
  return found


def same_noise(ours: Config, theirs: Config) -> bool:
  """Whether two configurations have the same schedule."""
  a, b = schedule(ours), schedule(theirs)
  if isinstance(a, dj.schedules.Table) and isinstance(b, dj.schedules.Table):
    return np.array_equal(a.log_snr, b.log_snr)
  return ours.schedule.to_dict() == theirs.schedule.to_dict()


def source(
  config: Config, *, elsewhere: str = "--config.data.name"
) -> dj.data.Source:
  """The data of ``config.data``; says so if they take long to read.

  Args:
    config: Of the run.
    elsewhere: The flag that names data instead.

  Raises:
    ValueError: If they cannot be read; says what to do if they have moved.
  """
  options = config.data.to_dict()
  if not options["name"]:
    raise ValueError(
      "no data are named; imported weights come without any, name them as "
      "--config.data.name=..., of experiments.import_weights or of "
      "experiments.train"
    )
  size = tuple(options.pop("size"))
  # (), (n,), (h, w): as stored, square, any.
  size = None if not size else size[0] if len(size) == 1 else size
  name, numbers = options["name"], options.pop("cond")
  with cli.said_if_slow(f"reading {name} ..."):
    try:
      found = _call("data", dj.data.load, {**options, "size": size})
    except ValueError as error:
      path = pathlib.Path(name)
      if not path.is_absolute() or path.exists():
        raise
      raise ValueError(
        f"no data at {path}: if they have moved, name where they are as "
        f"{elsewhere}=PATH"
      ) from error
  if numbers is None:
    return found
  return dj.data.vectors.attach(found, dj.data.vectors.read(numbers))


def loss_at(
  config: Config, values: dj.data.values.Values = dj.data.values.BYTES
) -> dj.losses.LossAt:
  """The loss of ``config.loss``, at given steps and noise.

  Args:
    config: Of the run.
    values: What the numbers of its data mean.

  Raises:
    ValueError: If loss, weight, variance and data do not fit together.
  """
  options = config.loss.to_dict()
  name = named("loss", options.pop("name"), LOSSES)
  weight = named("loss weight", options.pop("weight"), WEIGHTS)
  space = options.pop("space", None)
  if space is not None and (name != "simple" or weight != "none"):
    raise ValueError(
      f"loss.space={space!r} is of loss.name=simple and loss.weight=none, not "
      f"of {name!r} and {weight!r}"
    )
  if name == "simple":
    if config.variance.startswith("learned"):
      raise ValueError(
        f"variance={config.variance!r} is learned, which the simple loss does "
        "not do; use loss.name=hybrid or vlb, or a fixed variance"
      )
    if space is not None:
      named("loss.space", space, dj.targets.TARGETS)
      return functools.partial(
        dj.losses.weighted_mse, space=dj.targets.TARGETS[space]
      )
    if weight == "none":
      return dj.losses.weighted_mse
    shift = options.pop("shift", 1.0)
    weigh = _call(f"weight {weight!r}", getattr(dj.weights, weight), options)
    if shift != 1:
      weigh = dj.weights.shifted(weigh, shift)
    return functools.partial(dj.losses.weighted_mse, weight=weigh)
  if real_time(config):
    raise ValueError(
      f"loss {name!r} is of whole steps, schedule.name="
      f"{config.schedule.name!r} has none; use loss.name=simple"
    )
  if weight != "none":
    raise ValueError(f"loss {name!r} has no weight; {weight!r} was given")
  core = {"vlb": dj.losses.vlb_at, "hybrid": dj.losses.hybrid_at}[name]
  if name == "hybrid" and not config.variance.startswith("learned"):
    raise ValueError(
      "loss 'hybrid' learns the variance; "
      f"variance={config.variance!r} is fixed"
    )
  return functools.partial(core, levels=_levels(name, values), **options)


def _levels(name: str, values: dj.data.values.Values) -> int:
  """How many values a bound on probabilities counts."""
  if values.levels is None:
    raise ValueError(
      f"loss {name!r} counts levels, and {values} has none; use "
      "loss.name=simple and a fixed variance"
    )
  return values.levels


def draw(config: Config):
  """How the times to train on are drawn, where no loss history decides.

  Raises:
    ValueError: If the schedule has no such times.
  """
  name = named("timesteps", config.timesteps, (*TIMESTEPS, *REAL_TIMESTEPS))
  if name in REAL_TIMESTEPS:
    if not real_time(config):
      raise ValueError(
        f"timesteps={name!r} is of real time, schedule.name="
        f"{config.schedule.name!r} has whole steps; use one of "
        f"{', '.join(TIMESTEPS)}"
      )
    given = _given({"mean": config.time_mean, "std": config.time_std})
    return dj.timesteps.drawn_by(REAL_TIMESTEPS[name](**given))
  if real_time(config):
    even = name == "antithetic"
    return dj.timesteps.drawn_by(dj.timesteps.everywhere, even=even)
  name = "uniform" if name == "importance" else name
  return getattr(dj.timesteps, name)


def sampler(
  name: str, eta=None, *, num: int = 1, churn: Any = None
) -> dj.samplers.Step | dj.samplers.Solver:
  """The step or solver of this name, as ``dj.sample`` takes it.

  Args:
    name: Of the sampler.
    eta: Of those that take it.
    num: Steps of the whole walk.
    churn: ``config.sampling.churn``, of EDM's sampler.

  Returns:
    The step or solver.
  """
  if name == "edm_heun":
    return dj.edm.heun(num, **_given(churn or {}))
  options = {}
  if name in TAKE_ETA:
    options["eta"] = 0.0 if eta is None else eta
  make = SAMPLERS[name]
  return (
    make(**options) if name in SOLVERS else functools.partial(make, **options)
  )


def door(config: Config) -> dict[str, Any]:
  """How the network of ``config`` is read: arguments of ``dj.predictor``."""
  read = {"variance": config.variance}
  if config.target == "edm":
    return read | {
      "target": dj.targets.edm(config.sigma_data),
      "scale": dj.edm.c_in(config.sigma_data),
      "clock": dj.edm.c_noise,
    }
  return read | {"target": dj.targets.TARGETS[config.target]}


def predictor(
  config: Config, noise: dj.schedules.Schedule, net, params
) -> dj.prediction.Predict:
  """The network of a run, with these parameters, behind its door."""
  apply = functools.partial(net.apply, {"params": params})
  return dj.predictor(apply, noise, **door(config))


def guide(config: Config) -> Callable[..., dj.prediction.Predict]:
  """Guidance without a classifier: APG where ``sampling.apg`` names an eta."""
  given = _given(config.sampling.get("apg", {}))
  if "eta" not in given:
    return dj.guidance.classifier_free
  return functools.partial(dj.guidance.projected, **given)


def walk(
  noise: dj.schedules.Schedule,
  name: str,
  spacing: str | None,
  steps: int | None,
) -> dj.timesteps.Pairs | dj.timesteps.RealPairs:
  """The (t, s) that a sampler walks: by name, or as it is usually done.

  Raises:
    ValueError: If there is no such spacing, or not of that many steps.
  """
  evenly = ("ancestral", "ddim", "flow_heun", "flow_sde")
  usual = "even" if name in evenly else "scales"
  if name == "edm_heun":
    usual = "karras"
  return dj.spacing.named(noise, spacing or usual, steps)


def _check_process(config: Config) -> None:
  """Refuses what has no meaning in real time, or where no signal is left."""
  for key, value, whole in (
    ("kind", "classifier", config.get("kind") == "classifier"),
    ("target", "mean", config.target == "mean"),
    ("low_res.noise", config.low_res.noise, config.low_res.noise > 0),
  ):
    if whole and real_time(config):
      raise ValueError(
        f"{key}={value} is of whole steps, schedule.name="
        f"{config.schedule.name!r} has none; use one of {', '.join(SCHEDULES)}"
      )
  if not config.schedule.get("zero_terminal", False):
    return
  ends = config.loss.get("weight") in ("bound", "truncated_snr", "edm")
  if config.target == "eps" or ends or config.loss.name in ("vlb", "hybrid"):
    raise ValueError(
      f"schedule.zero_terminal leaves no signal at t = T, where target="
      f"{config.target}, loss.name={config.loss.name} and loss.weight="
      f"{config.loss.get('weight')} are not all finite: use target=v or x0 and "
      "the simple loss, its weight none, p2, min_snr or sigmoid"
    )


def _check_sampling(config: Config, noise: dj.schedules.Schedule) -> None:
  """Refuses what samples of a run cannot be drawn with."""
  for sampling in (config.preview, config.sampling):
    named("sampler", sampling.sampler, SAMPLERS)
    pairs = walk(noise, sampling.sampler, sampling.spacing, sampling.steps)
    if sampling.sampler == "edm_heun":
      sampler("edm_heun", num=len(pairs), churn=config.sampling.get("churn"))
  guidance = config.sampling.get("guidance")
  if guidance is not None and not math.isfinite(guidance):
    raise ValueError(f"sampling.guidance={guidance} must be a finite number")
  radius = config.sampling.get("apg", {}).get("radius")
  if radius is not None and not radius > 0:
    raise ValueError(f"sampling.apg.radius={radius} must be above 0, or None")


def check(config: Config, noise: dj.schedules.Schedule) -> None:
  """Refuses names and numbers that would only fail after compiling."""
  named("target", config.target, dj.targets.TARGETS)
  named("variance", config.variance, dj.prediction.VARIANCES)
  _check_process(config)
  if config.get("kind") != "classifier":
    _check_sampling(config, noise)
  for key, value in {
    "num_steps": config.num_steps,
    "keep_checkpoints": config.keep_checkpoints,
    "steps_per_dispatch": config.steps_per_dispatch,
  }.items():
    if value < 1:
      raise ValueError(f"{key}={value} must be at least 1")
  if config.preview.num < 0:
    raise ValueError(
      f"preview.num={config.preview.num} must be at least 1, or 0 for none"
    )
  if not 0 <= config.seed <= MOST_SEED:
    raise ValueError(f"seed={config.seed} must be in 0..{MOST_SEED}")
  decay = config.optim.decay_steps
  if config.optim.get("decay", "cosine") not in dj.optimizers.ENDING:
    decay = None
  if decay is not None and 0 < decay < config.num_steps:
    raise ValueError(
      f"num_steps={config.num_steps} goes beyond optim.decay_steps={decay}, "
      "after which the learning rate is 0: set --config.optim.decay_steps="
      f"{config.num_steps} as well"
    )
  for what, interval in config.every.items():
    if interval < 1:
      raise ValueError(f"every.{what}={interval} must be at least 1 step")


def check_draws(config: Config) -> None:
  """Refuses the configuration of a classifier."""
  if config.get("kind") == "classifier":
    raise ValueError(
      "this run is a classifier, which draws no images: train it with "
      "experiments.train_classifier, pass it as --classifier of "
      "experiments.sample"
    )


def model(
  config: Config,
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> dj.UNet:
  """The U-Net of ``config.model`` for images of this shape.

  Raises:
    ValueError: If the network does not fit the images or their classes, or
      the run is a classifier.
  """
  check_draws(config)
  options = config.model.to_dict()
  outputs = 2 if config.variance.startswith("learned") else 1
  options["out_channels"] = outputs * image_shape[-1]
  asked = options["num_classes"]
  if asked is not None and asked != num_classes:
    raise ValueError(
      f"model.num_classes={asked}, but the data have {num_classes} classes"
    )
  if hides_labels(config):
    options["num_classes"] = (asked or 0) + 1  # the last is no class
  if low_res_shape(config, image_shape) is not None:
    options["noisy_low_res"] = _low_res_noise(config) > 0
  options["vector"] = dj.conditions.width(vectors(config))
  net = _call("model", dj.UNet, options)
  dj.models.check_size(image_shape[:2], len(net.multipliers))
  return net


def low_res_shape(
  config: Config, image_shape: tuple[int, int, int]
) -> tuple[int, int, int] | None:
  """(h, w, C) of the pictures that a run enlarges; None if it does not.

  Raises:
    ValueError: If they are no equal parts of the large ones, or are as large.
  """
  size = config.low_res.size if "low_res" in config else ()
  if not size:
    return None
  if len(size) > 2 or not all(isinstance(n, int) for n in size):
    raise ValueError(
      f"low_res.size={tuple(size)} must be (), (n,) or (height, width)"
    )
  small = size[0], size[-1]
  if small == tuple(image_shape[:2]):
    raise ValueError(
      f"low_res.size={tuple(size)} is the size of the data: an upsampler must "
      "enlarge; name a smaller one, or () for no upsampler"
    )
  dj.upsampling.check_size(image_shape[:2], small)
  return *small, image_shape[-1]


def low_res(config: Config, source: dj.data.Source, num: int) -> np.ndarray:
  """The first images of the data of a run that enlarges, made small."""
  images = source.gather(np.arange(min(num, len(source))))["image"]
  x0 = jnp.asarray(source.values.floats(images))
  small = low_res_shape(config, source.image_shape) or source.image_shape
  return np.asarray(dj.upsampling.shrink(x0, small[:2]))


def count_classes(config: Config, source: dj.data.Source) -> None:
  """Writes the number of the data's classes where the configuration has 0."""
  for name in ("num_classes", "num_labels"):
    if config.model.get(name) == 0:
      if not source.num_classes:
        raise ValueError(
          f"model.{name}=0 takes the number of classes from the data, but "
          f"{source.name} has none; sort the pictures into one folder each"
        )
      config.model[name] = source.num_classes


def note_vectors(config: Config, source: dj.data.Source) -> None:
  """Writes what a run needs to know of its data's vectors into ``vectors``.

  Raises:
    ValueError: If the dropout does not fit them.
  """
  rates, names = tuple(config.cond_dropout), list(source.vectors)
  if len(rates) not in (0, 1, len(names)):
    raise ValueError(
      f"cond_dropout={rates} must be one number, or one for each of "
      f"{', '.join(names) or 'no parts: name them by data.cond'}"
    )
  rates = (
    rates * len(names) if len(rates) == 1 else rates or (0.0,) * len(names)
  )
  dropout = dict(zip(names, rates, strict=True))
  parts = dj.conditions.standardised(source.vectors, dropout)
  config.vectors = tuple(map(tuple, parts))


def vectors(config: Config) -> tuple[dj.conditions.Vector, ...]:
  """The vectors that a run conditions on."""
  return tuple(
    dj.conditions.Vector(name, tuple(mean), tuple(std), rate)
    for name, mean, std, rate in config.get("vectors", ())
  )


def _low_res_noise(config: Config) -> int:
  """The largest step of noise on small pictures."""
  most = config.low_res.noise
  if not 0 <= most <= config.schedule.T:
    raise ValueError(
      f"low_res.noise={most} must be a step in 0..T={config.schedule.T}"
    )
  return most


def classifier(
  config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> dj.models.Classifier:
  """The classifier of ``config.model`` for images of this shape.

  Raises:
    ValueError: If it does not fit the images or their classes, or the run is
      not a classifier.
  """
  if config.get("kind") != "classifier":
    raise ValueError(
      "this run is not a classifier; experiments.train_classifier trains one"
    )
  net = _call("model", dj.models.Classifier, config.model.to_dict())
  if net.num_labels != num_classes:
    raise ValueError(
      f"model.num_labels={net.num_labels}, but the data have {num_classes} "
      "classes"
    )
  dj.models.check_size(image_shape[:2], len(net.multipliers))
  return net


def network(
  config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> dj.UNet | dj.models.Classifier:
  """The network of a run, a U-Net or a classifier."""
  make = classifier if config.get("kind") == "classifier" else model
  return make(config, image_shape, num_classes)


def hides_labels(config: Config) -> bool:
  """Whether training hides labels, which classifier-free guidance needs.

  Raises:
    ValueError: If there are no labels to hide, or the part is none.
  """
  rate = config.get("label_dropout", 0.0)
  if not 0 <= rate < 1:
    raise ValueError(f"label_dropout={rate} must be in [0, 1)")
  if rate and config.model.num_classes is None:
    raise ValueError(
      f"label_dropout={rate} hides labels, but the network takes none: "
      "set model.num_classes"
    )
  return rate > 0


def conditions(
  config: Config,
  noise: dj.schedules.Schedule,
  image_shape: tuple[int, int, int],
) -> dj.conditions.Conditions:
  """What the network is told of each image.

  Its class, where the network knows any, and the picture made small, where it
  is to enlarge.
  """
  small = low_res_shape(config, image_shape)
  return dj.conditions.Conditions(
    noise,
    num_classes=config.model.num_classes,
    label_dropout=config.label_dropout if hides_labels(config) else 0.0,
    low_res=None if small is None else small[:2],
    noise=0 if small is None else _low_res_noise(config),
    vectors=vectors(config),
  )


def optimizer(
  config: Config,
) -> optax.GradientTransformation:
  """The optimizer of ``config.optim``."""
  return _call("optim", dj.training.optimizer, config.optim.to_dict())


def init(config, net, image_shape, tx, key) -> dj.state.TrainState:
  """The state before the first step; a pure function of the key."""
  x, one = jnp.zeros((1, *image_shape)), jnp.ones((1,), jnp.int32)
  cond = None
  if config.get("kind") != "classifier":
    cond = conditions(config, schedule(config), image_shape).of(x, one - 1)
  return state(config, net.init(key, x, one, cond)["params"], tx)


def averages(config: Config) -> list[str]:
  """The names of a run's averages: by rate, the slowest last, then by width."""
  return [
    *(str(rate) for rate in sorted(config.ema.rates)),
    *(dj.averages.name(std) for std in sorted(config.ema.get("stds", ()))),
  ]


def state(config, params, tx) -> dj.state.TrainState:
  """The state before the first step, of known parameters."""
  history = (
    dj.importance.history(
      dj.objectives.BINS if real_time(config) else config.schedule.T
    )
    if config.get("timesteps") == "importance"
    else None
  )
  names = averages(config)
  rates = config.ema.rates
  return dj.state.create(params, tx, (*rates, *names[len(rates) :]), history)
