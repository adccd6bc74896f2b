"""Checks a configuration before anything is compiled."""

import math

import jax

import diffusion_jax as dj
from diffusion_jax.runs import choices, configuration, processes, samplers
from diffusion_jax.runs.configuration import Config, is_classifier


def _check_process(config: Config) -> None:
  """Checks targets and losses in continuous time, and at zero terminal SNR."""
  for key, value, whole in (
    ("kind", "classifier", is_classifier(config)),
    ("target", "mean", config.target == "mean"),
    ("loss.space", "mean", config.loss.get("space") == "mean"),
    ("loss.weight", "bound", config.loss.get("weight") == "bound"),
    ("low_res.noise", config.low_res.noise, config.low_res.noise > 0),
  ):
    if whole and processes.is_continuous(config):
      raise ValueError(
        f"{key}={value} needs discrete time, schedule.name="
        f"{config.schedule.name!r} is continuous; use one of "
        f"{', '.join(processes.SCHEDULES)}"
      )
  if not config.schedule.get("zero_terminal", False):
    return
  if config.target == "eps" or config.loss.name in ("vlb", "hybrid"):
    raise ValueError(
      f"schedule.zero_terminal leaves no signal at t = T, where target="
      f"{config.target} and loss.name={config.loss.name} are not both finite: "
      "use target=v or x0 and the simple loss"
    )


def _check_sampling(config: Config, noise: dj.schedules.Schedule) -> None:
  """Checks that samples of the run can be drawn."""
  for name in ("preview", "sampling"):
    sampling = config[name]
    samplers.named(f"{name}.sampler", sampling.sampler, config)
    try:
      pairs = samplers.walk(
        noise, sampling.sampler, sampling.spacing, sampling.steps
      )
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from error
    if sampling.sampler == "edm_heun":
      samplers.sampler(
        "edm_heun", num=len(pairs), churn=config.sampling.get("churn")
      )
  guidance = config.sampling.get("guidance")
  if guidance is not None and not math.isfinite(guidance):
    raise ValueError(f"sampling.guidance={guidance} must be a finite number")
  apg = choices.given(config.sampling.get("apg", {}))
  if not apg.get("radius", 1.0) > 0:
    raise ValueError(
      f"sampling.apg.radius={apg['radius']} must be above 0, or None"
    )
  if not abs(apg.get("momentum", 0.0)) < 1:
    raise ValueError(
      f"sampling.apg.momentum={apg['momentum']} must be above -1 and below 1"
    )
  if apg and "eta" not in apg:
    raise ValueError(
      f"sampling.apg.{next(iter(apg))} is of projected guidance: set "
      "sampling.apg.eta, 0 to take out all that saturates"
    )


def _check_numbers(config: Config) -> None:
  """Raises for NaN, which every comparison of a range would miss."""
  for path, value in jax.tree_util.tree_leaves_with_path(config.to_dict()):
    if isinstance(value, float) and math.isnan(value):
      key = jax.tree_util.keystr(path, simple=True, separator=".")
      raise ValueError(f"{key}={value} must be a number")


def check(config: Config, noise: dj.schedules.Schedule) -> None:
  """Raises for names and numbers that would fail only after compiling."""
  _check_numbers(config)
  choices.named("target", config.target, dj.targets.TARGETS)
  choices.named("variance", config.variance, dj.prediction.VARIANCES)
  _check_process(config)
  if not is_classifier(config):
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
  if not 0 <= config.seed <= configuration.MOST_SEED:
    raise ValueError(
      f"seed={config.seed} must be in 0..{configuration.MOST_SEED}"
    )
  decay = config.optim.decay_steps
  if config.optim.get("decay", "cosine") not in dj.optimizers.ENDING:
    decay = None
  if decay is not None and 0 < decay < config.num_steps:
    raise ValueError(
      f"num_steps={config.num_steps} goes beyond optim.decay_steps={decay}, "
      "after which the learning rate is 0: set `config.optim.decay_steps="
      f"{config.num_steps}` as well"
    )
  for what, interval in config.every.items():
    if interval < 1:
      raise ValueError(f"every.{what}={interval} must be at least 1 step")


# Largest alpha at T, where samples start from noise alone. DDPM's table ends at
# 0.006, that of quadratic betas at 0.03.
MOST_SIGNAL = 0.2


def doubts(config: Config, noise: dj.schedules.Schedule) -> list[str]:
  """Warnings about settings that are valid but hardly intended, a line each."""
  said = []
  warmup, last = config.optim.warmup_steps, config.num_steps
  fall = config.optim.decay_steps
  if warmup > (last if fall is None else min(last, fall)):
    end = f"num_steps={last}" if warmup > last else f"optim.decay_steps={fall}"
    said.append(
      f"warning: optim.warmup_steps={warmup} is beyond {end}, so the learning "
      f"rate never gets to optim.lr={config.optim.lr:g}: shorten the warm-up"
    )
  left = float(noise.at(noise.T).alpha)
  if dj.schedules.is_discrete(noise) and left > MOST_SIGNAL:
    said.append(
      f"warning: schedule {config.schedule.name!r} of T={noise.T} leaves "
      f"{left:.0%} of the signal at T, but samples begin with noise alone: "
      "take more steps, or another schedule"
    )
  return said
