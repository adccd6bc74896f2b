"""Draws the images of a plan, through all stages of a cascade."""

import dataclasses
import sys
from typing import Any

import numpy as np
import tqdm

from diffusion_jax import shapes
from diffusion_jax.runs import console, guiding
from diffusion_jax.runs.generate import Generator
from diffusion_jax.runs.planning import Plan

Generators = dict[tuple[Any, ...], Generator]
"""By what is compiled of a plan."""


def draw(plan: Plan, generators: Generators | None = None) -> np.ndarray:
  """Draws the planned images, stage by stage.

  Args:
    plan: The plan.
    generators: Those of earlier plans, which are reused if they compile to the
      same program; new ones are added.

  Returns:
    [num, H, W, C].
  """
  generators = {} if generators is None else generators
  images = _draw_stage(plan, generators)
  for stage in plan.upsamplers:
    stage = dataclasses.replace(stage, low_res=images)
    stage = stage.asking(num=plan.num, batch=plan.options.batch)
    images = _draw_stage(stage, generators)
  return images


def generator(plan: Plan) -> Generator:
  """The generator of one stage's images."""
  return Generator(
    plan.config,
    plan.net,
    plan.image_shape,
    plan.options,
    plan.pairs,
    classifier=plan.classifier,
    low_res=plan.low_res,
    pictures=plan.pictures,
  )


def announce(plan: Plan) -> None:
  """Prints what one stage is about to draw."""
  guidance = plan.options.guidance
  *size, _ = plan.image_shape
  what = shapes.noun(plan.image_shape, plan.num)
  console.say_first(
    f"{plan.num} {what} of {shapes.by(size)} from step {plan.step}, "
    f"{plan.options.sampler} with "
    f"{len(plan.pairs)} steps each, "
    + ("raw parameters" if plan.ema == "raw" else f"average {plan.ema}")
    + ("" if guidance is None else f", guidance {_words(guidance)}")
  )


def _words(guidance: float | str) -> str:
  return guidance if isinstance(guidance, str) else f"{guidance:g}"


def _draw_stage(plan: Plan, generators: Generators) -> np.ndarray:
  """Draws the images of one stage, with a progress bar."""
  announce(plan)
  if plan.program not in generators:
    generators[plan.program] = generator(plan)
  draws = generators[plan.program]
  draws.guidance = guiding.numbers(plan.options.guidance)
  draws.low_res, draws.pictures = plan.low_res, plan.pictures
  if plan.classifier is not None:
    draws.guiding = plan.classifier.params
  with tqdm.tqdm(
    total=100, unit="%", disable=not sys.stderr.isatty(), leave=False
  ) as bar:
    return draws(
      plan.params,
      plan.key,
      plan.num,
      progress=lambda done: bar.update(int(100 * done) - bar.n),
    )
