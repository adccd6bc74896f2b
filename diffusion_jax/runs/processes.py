"""Builds a schedule, a loss and a predictor from a configuration."""

import functools
from typing import Any

import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import choices
from diffusion_jax.runs.configuration import Config

SCHEDULES = (
  "linear", "quadratic", "constant", "warmup", "jsd", "cosine", "sigmoid",
)  # fmt: skip
# Continuous: EDM's, the VP SDE's, flow matching's, and that of a circle.
CONTINUOUS = {
  "ve": dj.continuous.edm,
  "vp": dj.continuous.linear,
  "flow": dj.continuous.flow,
  "trig": dj.continuous.cosine,
}
UNCERTAINTY = dj.models.edm2.Uncertainty()
LOSSES = ("simple", "vlb", "hybrid")
TIMESTEPS = ("uniform", "antithetic", "importance")
CONTINUOUS_TIMESTEPS = {
  "log_normal": dj.timesteps.log_normal,
  "logit_normal": dj.timesteps.logit_normal,
}


WEIGHTS = ("none", "bound", "p2", "min_snr", "truncated_snr", "edm", "sigmoid")


def is_continuous(config: Config) -> bool:
  """Whether the schedule is continuous."""
  return config.schedule.name in CONTINUOUS


def schedule(config: Config) -> dj.schedules.Schedule:
  """The noise schedule of ``config.schedule``; continuous ones have no T."""
  options = config.schedule.to_dict()
  name = choices.named(
    "schedule", options.pop("name"), (*SCHEDULES, *CONTINUOUS)
  )
  kind = f"schedule {name!r}"
  if name not in CONTINUOUS:
    return choices.call(kind, getattr(dj.schedules, name), options)
  del options["T"]
  shift = options.pop("shift", 1.0)
  made = choices.call(kind, CONTINUOUS[name], options)
  return made if shift == 1 else made.shifted(shift)


def same_noise(ours: Config, theirs: Config) -> bool:
  """Whether two configurations have the same schedule."""
  a, b = schedule(ours), schedule(theirs)
  if isinstance(a, dj.schedules.Table) and isinstance(b, dj.schedules.Table):
    return np.array_equal(a.log_snr, b.log_snr)
  return ours.schedule.to_dict() == theirs.schedule.to_dict()


def loss_at(
  config: Config, values: dj.data.values.Values = dj.data.values.BYTES
) -> dj.losses.LossAt:
  """The loss of ``config.loss``, at given times and noise.

  Args:
    config: The run's configuration.
    values: The units of its data.

  Raises:
    ValueError: If loss, weight, variance and data do not fit together.
  """
  options = config.loss.to_dict()
  name = choices.named("loss", options.pop("name"), LOSSES)
  weight = choices.named("loss weight", options.pop("weight"), WEIGHTS)
  space = options.pop("space", None)
  options.pop("uncertainty", None)
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
      choices.named("loss.space", space, dj.targets.TARGETS)
      return functools.partial(
        dj.losses.weighted_mse, space=dj.targets.TARGETS[space]
      )
    if weight == "none":
      return dj.losses.weighted_mse
    shift = options.pop("shift", 1.0)
    weigh = choices.call(
      f"weight {weight!r}", getattr(dj.weights, weight), options
    )
    if shift != 1:
      weigh = dj.weights.shifted(weigh, shift)
    return functools.partial(dj.losses.weighted_mse, weight=weigh)
  if is_continuous(config):
    raise ValueError(
      f"loss {name!r} needs discrete time, schedule.name="
      f"{config.schedule.name!r} is continuous; use loss.name=simple"
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
  """The number of values of a pixel, for the variational bound."""
  if values.levels is None:
    raise ValueError(
      f"loss {name!r} counts levels, and {values} has none; use "
      "loss.name=simple and a fixed variance"
    )
  return values.levels


def draw(config: Config):
  """The distribution of training times, if no loss history decides.

  Raises:
    ValueError: If it does not fit the schedule.
  """
  name = choices.named(
    "timesteps", config.timesteps, (*TIMESTEPS, *CONTINUOUS_TIMESTEPS)
  )
  given = choices.given({"mean": config.time_mean, "std": config.time_std})
  if given and name not in CONTINUOUS_TIMESTEPS:
    key, value = next(iter(given.items()))
    raise ValueError(
      f"time_{key}={value} is of timesteps="
      f"{' or '.join(CONTINUOUS_TIMESTEPS)}, not of {name!r}, which would not "
      "look at it"
    )
  if name in CONTINUOUS_TIMESTEPS:
    if not is_continuous(config):
      raise ValueError(
        f"timesteps={name!r} needs continuous time, schedule.name="
        f"{config.schedule.name!r} is discrete; use one of "
        f"{', '.join(TIMESTEPS)}"
      )
    return dj.timesteps.drawn_by(CONTINUOUS_TIMESTEPS[name](**given))
  if is_continuous(config):
    even = name == "antithetic"
    return dj.timesteps.drawn_by(dj.timesteps.everywhere, even=even)
  name = "uniform" if name == "importance" else name
  return getattr(dj.timesteps, name)


def door(config: Config) -> dict[str, Any]:
  """The arguments of ``dj.predictor`` for the network of ``config``."""
  read = {"variance": config.variance}
  if config.target == "edm":
    return read | {
      "target": dj.targets.edm(config.sigma_data),
      "scale": dj.edm.c_in(config.sigma_data),
      "clock": dj.edm.c_noise,
    }
  choices.named("target", config.target, dj.targets.TARGETS)
  return read | {"target": dj.targets.TARGETS[config.target]}


def predictor(
  config: Config, noise: dj.schedules.Schedule, net, params
) -> dj.prediction.Predict:
  """The network of a run with these parameters, as ``predict``."""
  apply = functools.partial(net.apply, {"params": params})
  return dj.predictor(apply, noise, **door(config))
