"""Samplers by name, with the usual spacing of each."""

import functools
from collections.abc import Callable
from typing import Any

import diffusion_jax as dj
from diffusion_jax.runs import choices
from diffusion_jax.runs.configuration import Config

# A step, or a function that makes a solver.
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
  "consistency": dj.consistency.renoise_step,
  "meanflow": dj.meanflow.step,
}
SOLVERS = ("dpmpp_2m", "dpmpp_3m", "unipc", "deis")
# These call the network twice in every step but the last.
TWICE = ("heun", "edm_heun", "flow_heun")
TAKE_ETA = ("ddim", "dpmpp_2m", "dpmpp_3m")
# The best sampler for few steps: docs/solvers.md.
FEW, FEW_STEPS_SAMPLER = 100, "unipc"


def sampler(
  name: str, eta=None, *, num: int = 1, churn: Any = None
) -> dj.samplers.Step | dj.samplers.Solver:
  """The step or solver of this name, as ``dj.sample`` takes it.

  Args:
    name: The sampler's name.
    eta: For the samplers that take it.
    num: The number of sampling steps.
    churn: ``config.sampling.churn``, for EDM's sampler.

  Returns:
    The step or solver.
  """
  if name == "edm_heun":
    return dj.edm.heun(num, **choices.given(churn or {}))
  options = {}
  if name in TAKE_ETA:
    options["eta"] = 0.0 if eta is None else eta
  make = SAMPLERS[name]
  return (
    make(**options) if name in SOLVERS else functools.partial(make, **options)
  )


def named(option: str, name: str, config: Config) -> str:
  """The name of a sampler that can draw from this run's network.

  Args:
    option: What names it, for errors.
    name: The name.
    config: The run's configuration.

  Raises:
    ValueError: If there is no such sampler, or it needs another network.
  """
  choices.named(option, name, SAMPLERS)
  if name == "meanflow" and config.objective.name != "meanflow":
    raise ValueError(
      f"{option}: meanflow needs a network that was trained with "
      "objective.name=meanflow; any other sampler draws from this one"
    )
  return name


def steps_for(name: str, calls: int) -> int:
  """The most steps of a sampler that call the network so often.

  >>> steps_for("unipc", 5), steps_for("heun", 5), steps_for("heun", 6)
  (5, 3, 3)
  """
  return (calls + 1) // 2 if name in TWICE else calls


def guide(config: Config) -> Callable[..., dj.prediction.Predict]:
  """Guidance without a classifier: APG if ``sampling.apg`` has an eta.

  It has no momentum, which needs a solver.
  """
  apg = choices.given(config.sampling.get("apg", {}))
  apg.pop("momentum", None)
  if not apg:
    return dj.guidance.classifier_free
  return functools.partial(dj.guidance.projected, **apg)


def guided(
  config: Config,
  step: dj.samplers.Step | dj.samplers.Solver,
  predict: dj.prediction.Predict,
  schedule: dj.schedules.Schedule,
  null: Callable[[dj.prediction.Cond], dj.prediction.Cond],
  scale: Any,
  cond: dj.prediction.Cond,
) -> tuple[dj.samplers.Step | dj.samplers.Solver, dj.prediction.Predict]:
  """The step and the network, guided without a classifier, then clipped.

  Guidance is APG if ``sampling.apg`` has an eta. With a momentum it is part of
  the solver's memory.

  Args:
    config: The run's configuration.
    step: A step or solver.
    predict: The network, which takes a condition.
    schedule: The noise schedule.
    null: See ``dj.guidance.classifier_free``.
    scale: 1 is off; None does not guide.
    cond: The condition.

  Returns:
    The step and the network for sampling, with the condition bound.
  """

  def clip(predict):
    if config.sampling.get("clip", True):
      predict = dj.clipped(predict, schedule)
    return predict

  apg = choices.given(config.sampling.get("apg", {}))
  if scale is not None and "momentum" in apg:
    weak = dj.given(predict, null(cond))
    step = dj.apg.solver(step, weak, scale, after=clip, **apg)
    return step, dj.given(predict, cond)
  if scale is not None:
    predict = guide(config)(predict, schedule, null, scale)
  return step, dj.given(clip(predict), cond)


def projects(config: Config) -> bool:
  """Whether guidance is projected."""
  return config.sampling.get("apg", {}).get("eta") is not None


def walk(
  noise: dj.schedules.Schedule,
  name: str,
  spacing: str | None,
  steps: int | None,
) -> dj.timesteps.Pairs | dj.timesteps.RealPairs:
  """The steps (t, s) of a spacing, by default the sampler's usual one.

  Raises:
    ValueError: If there is no such spacing, or none with that many steps, or
      the sampler divides by a signal that is 0 where they start.
  """
  evenly = ("ancestral", "ddim", "flow_heun", "flow_sde", "meanflow")
  usual = "even" if name in evenly else "scales"
  if name == "edm_heun":
    usual = "karras"
  pairs = dj.spacing.named(noise, spacing or usual, steps)
  if name == "edm_heun" and not noise.at(start := pairs[0, 0]).alpha > 0:
    raise ValueError(
      f"sampler=edm_heun divides by the signal, which is 0 at t={start}, where "
      f"spacing={spacing or usual} starts: use sampler=heun"
    )
  return pairs
