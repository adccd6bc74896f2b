"""The objective of a configuration, and the run that it starts from."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import (
  choices,
  directory,
  guiding,
  networks,
  processes,
  restoring,
  samplers,
  starting,
)
from diffusion_jax.runs.configuration import Config

OBJECTIVES = ("diffusion", "consistency", "meanflow", "distillation")


def check(config: Config) -> None:
  """Checks that the objective fits the rest of a configuration."""
  options = config.objective
  name = choices.named("objective", options.name, OBJECTIVES)
  _check_needed(config)
  for key, value in (
    ("augment", config.augment), ("loss.uncertainty", config.loss.uncertainty),
  ):  # fmt: skip
    if value and name != "diffusion":
      raise ValueError(
        f"{key}={value} is of objective.name=diffusion, not of {name}"
      )
  if name == "meanflow" and config.model.get("attention_kernel") == "cudnn":
    raise ValueError(
      "model.attention_kernel=cudnn has no forward-mode derivative, which "
      "objective.name=meanflow takes: set it to xla"
    )
  if name == "diffusion":
    processes.loss_at(config)  # raises if it does not fit
  continuous = processes.is_continuous(config)
  if name in ("consistency", "meanflow") and not continuous:
    raise ValueError(
      f"objective.name={name} needs continuous time, schedule.name="
      f"{config.schedule.name!r} is discrete: use one of "
      f"{', '.join(processes.CONTINUOUS)}"
    )
  if name == "meanflow" and config.target != "flow":
    raise ValueError(
      f"objective.name=meanflow predicts a velocity, not target="
      f"{config.target}: use target=flow"
    )
  if name != "diffusion" and config.variance.startswith("learned"):
    raise ValueError(
      f"objective.name={name} learns no variance: variance={config.variance!r} "
      "must be a fixed one"
    )
  if name != "diffusion" and config.timesteps == "importance":
    raise ValueError(
      f"objective.name={name} draws pairs of times, not by past losses: "
      "timesteps=importance must be another"
    )
  if starting.taught(config) and not config.init.run:
    raise ValueError(
      f"objective.name={name} learns from a teacher: name its run as "
      "`config.init.run=DIRECTORY`"
    )


def _check_needed(config: Config) -> None:
  """Refuses what nothing would look at."""
  name = config.objective.name
  for key, value, met, needed in (
    ("init.ema", config.init.ema, config.init.run, "init.run"),
    ("objective.teacher", config.objective.teacher, name != "diffusion",
     "an objective.name other than diffusion"),
  ):  # fmt: skip
    if value and not met:
      raise ValueError(f"{key}={value} needs {needed}")


def objective(
  config: Config,
  schedule: dj.schedules.Schedule,
  net: Any,
  apply: dj.objectives.Apply,
  conditions: dj.conditions.Conditions,
  gather: Callable[[Any], Any] = lambda params: params,
  values: dj.data.values.Values = dj.data.values.BYTES,
) -> dj.objectives.Objective:
  """The objective of a run.

  Args:
    config: The run's configuration.
    schedule: Its noise schedule.
    net: Its network, which is also the teacher's.
    apply: The network in training.
    conditions: The conditions of its data.
    gather: Gathers the teacher's sharded parameters.
    values: The units of its data.

  Returns:
    The objective.

  Raises:
    ValueError: If it does not fit the configuration.
  """
  check(config)
  options = config.objective

  def teacher(state):
    params = gather(state.teacher)
    predict = processes.predictor(config, schedule, net, params)
    if options.guidance is None:
      return predict
    return samplers.guide(config)(
      predict, schedule, conditions.null, options.guidance
    )

  door = processes.door(config)
  common: dict[str, Any] = {"condition": conditions.draw}
  if options.name in ("diffusion", "distillation"):
    common |= {**door, "loss_at": processes.loss_at(config, values)}
  if options.name == "diffusion":
    return _diffusion(config, apply, schedule, common)
  if options.name == "distillation":
    return dj.distillation.progressive(
      apply, schedule, teacher, teachers_walk(config, schedule), **common
    )
  del door["variance"]
  common |= {
    "draw": processes.draw(config),
    "teacher": teacher if options.teacher else None,
  }
  if options.name == "consistency":
    return dj.consistency.consistency(
      apply, schedule, nearer=dj.consistency.stages(options.stage),
      distance=functools.partial(dj.consistency.pseudo_huber, c=options.huber),
      **{"scale": None, "clock": None, **door}, **common,
    )  # fmt: skip
  learnt = None
  if options.kappa or options.omega != 1:
    if not networks.hides_labels(config):
      raise ValueError(
        f"objective.omega={options.omega} and kappa={options.kappa} guide away "
        "from no class, which is not learnt: set label_dropout"
      )
    learnt = dj.meanflow.Guidance(conditions.null, options.omega, options.kappa)
  return dj.meanflow.meanflow(
    apply, schedule, equal=options.equal, power=options.power,
    improved=options.improved, guidance=learnt, **common,
  )  # fmt: skip


def _diffusion(config, apply, schedule, common) -> dj.objectives.Objective:
  """The usual objective, with a learned uncertainty or augmented images."""

  def uncertainty(params, t) -> Any:
    clock = dj.edm.c_noise(schedule, t)
    return processes.UNCERTAINTY.apply({"params": params["uncertainty"]}, clock)

  made = dj.objectives.diffusion(
    apply, schedule, draw=processes.draw(config),
    uncertainty=uncertainty if config.loss.get("uncertainty") else None,
    **common,
  )  # fmt: skip
  if not config.augment:
    return made
  labels = config.model.get("augment_labels", 0)
  if labels != dj.augmentation.NUM_LABELS:
    raise ValueError(
      f"augment={config.augment} needs a network that is given its labels: "
      f"set model.augment_labels={dj.augmentation.NUM_LABELS}, not {labels}"
    )
  return dj.augmentation.augmented(made, config.augment)


def of_sampling(config: Config) -> tuple[str, ...]:
  """What the objective reads of ``config.sampling``, which is for drawing."""
  read: tuple[str, ...] = ()
  if config.objective.name == "distillation":
    read += ("sampling.sampler", "sampling.spacing")  # see teachers_walk
  if starting.taught(config) and config.objective.guidance is not None:
    read += ("sampling.apg.eta", "sampling.apg.radius")  # see samplers.guide
  return read


def teachers_walk(config: Config, schedule: dj.schedules.Schedule):
  """Two steps of the teacher for each of the student's ``objective.steps``.

  Raises:
    ValueError: If every second one is not a step of the student.
  """
  num, sampling = config.objective.steps, config.sampling
  if num < 1:
    raise ValueError(
      f"objective.steps={num} must be at least 1, the student's steps"
    )
  walk = functools.partial(
    samplers.walk, schedule, sampling.sampler, sampling.spacing
  )
  pairs = walk(2 * num)
  if not np.array_equal(dj.distillation.halved(pairs), walk(num)):
    raise ValueError(
      f"sampling.spacing={sampling.spacing!r} has other times for {num} steps "
      f"than for {2 * num}: use trailing in discrete time, even in continuous"
    )
  return pairs


# ----------------------------------------------------------- another run's


def start(config: Config, net: Any, source: dj.data.Source) -> Any:
  """The parameters of the run in ``config.init``; None if there is none.

  Raises:
    ValueError: If there is no such run, or it has another process, or is a
      teacher of data in other units or of other classes.
  """
  if not config.init.run:
    return None
  workdir = pathlib.Path(config.init.run).expanduser()
  theirs, data = directory.load(workdir)
  networks.check_draws(theirs)
  ours = {"target": config.target, "sigma_data": config.sigma_data}
  for key, value in ours.items():
    if theirs.get(key) != value:
      raise ValueError(
        f"init.run={workdir} has {key}={theirs.get(key)}, this run {value}: "
        "they must be the same"
      )
  if not processes.same_noise(config, theirs):
    raise ValueError(
      f"init.run={workdir} has the schedule {theirs.schedule.to_dict()}, this "
      f"run {config.schedule.to_dict()}: they must be the same"
    )
  shape, here = tuple(data["image_shape"]), tuple(source.image_shape)
  if shape != here:
    raise ValueError(
      f"init.run={workdir} has images of {shape}, this run of {here}"
    )
  if starting.taught(config):
    guiding.check_same_data(
      f"init.run={workdir}", data, directory.describe(source, config),
      classes=config.model.num_classes is not None,
    )  # fmt: skip
  there = networks.model(theirs, shape, data["num_classes"])
  ema = restoring.average(theirs, config.init.ema)
  params, _ = restoring.parameters(workdir, theirs, there, shape, ema)
  return jax.device_get(params)
