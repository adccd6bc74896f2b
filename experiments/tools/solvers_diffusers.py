"""The schedulers of diffusers on the problems of ``solvers``."""

import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import diffusion_jax as dj
from experiments.tools import solvers

# What a scheduler raises for a setting that it does not support.
UNSUPPORTED = (TypeError, ValueError, IndexError, RuntimeError, AssertionError)
SPACINGS = ("linspace", "leading", "trailing")


def settings(diffusers: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
  """Every deterministic scheduler with every setting that moves its steps."""
  sigmas = ("", "karras_sigmas", "exponential_sigmas", "lu_lambdas")
  for spacing in SPACINGS:
    common = {"timestep_spacing": spacing}
    ddim = {**common, "clip_sample": False, "set_alpha_to_one": True}
    yield f"DDIM {spacing}", diffusers.DDIMScheduler, ddim
    pndm = {**common, "skip_prk_steps": True, "set_alpha_to_one": True}
    yield f"PNDM {spacing}", diffusers.PNDMScheduler, pndm
    for use in sigmas:
      moved = {**common, **({f"use_{use}": True} if use else {})}
      name = f"{spacing} {use}"
      for kind in ("Euler", "Heun"):
        if use in ("", "karras_sigmas"):
          scheduler = getattr(diffusers, f"{kind}DiscreteScheduler")
          yield f"{kind} {name}", scheduler, moved
      for order in (2, 3):
        ordered = {**moved, "solver_order": order}
        if use in ("", "karras_sigmas"):
          deis = diffusers.DEISMultistepScheduler
          yield f"DEIS {order} {name}", deis, ordered
        single = {
          "solver_order": order,
          **({f"use_{use}": True} if use else {}),
        }
        if spacing == SPACINGS[0]:
          scheduler = diffusers.DPMSolverSinglestepScheduler
          yield f"DPM-Solver++ {order}S {use}", scheduler, single
        for end in ("zero", "sigma_min"):
          ended = {**ordered, "final_sigmas_type": end}
          scheduler = diffusers.DPMSolverMultistepScheduler
          yield f"DPM-Solver++ {order}M {name} {end}", scheduler, ended
          if use != "lu_lambdas":
            scheduler = diffusers.UniPCMultistepScheduler
            yield f"UniPC {order} {name} {end}", scheduler, ended


def best(
  schedule: dj.schedules.Table,
  given: list[solvers.Problem],
  counts: Sequence[int],
) -> list[tuple[float, str]]:
  """The least error, and its scheduler, for each number of network calls.

  Raises:
    ValueError: If torch or diffusers is missing.
  """
  try:
    diffusers = importlib.import_module("diffusers")
    torch = importlib.import_module("torch")
  except ImportError as error:
    raise ValueError(f"{error}; pip install torch diffusers") from None
  logging.disable(logging.WARNING)
  abar = np.asarray(schedule.alpha, np.float64) ** 2
  betas = 1 - abar[1:] / abar[:-1]

  def run(scheduler, problem) -> tuple[np.ndarray, int]:
    x, calls = torch.tensor(problem.x_T), 0
    x = x * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
      at = np.exp(np.interp(float(t) + 1, np.arange(len(abar)), np.log(abar)))
      alpha, sigma = np.sqrt(at), np.sqrt(1 - at)
      x_t = scheduler.scale_model_input(x, t).numpy().astype(np.float64)
      x0 = dj.mixtures.x0_given(
        problem.mixture, x_t / alpha, sigma / alpha, xp=np
      )
      eps = torch.tensor((x_t - alpha * x0) / sigma)
      x = scheduler.step(eps, t, x).prev_sample
      calls += 1
    return x.numpy(), calls

  found = []
  for num in counts:
    rows = [(np.inf, "none")]
    for name, kind, options in settings(diffusers):
      moves = (num + 1) // 2 if name.startswith("Heun") else num
      each = []
      for problem in given:
        try:
          scheduler = kind(trained_betas=betas, **options)
          scheduler.set_timesteps(moves)
          x, calls = run(scheduler, problem)
        except UNSUPPORTED:
          break
        error = solvers.rmse(x, problem.x_0)
        if calls > num or not np.isfinite(error):
          break
        each.append(error)
      if len(each) == len(given):
        rows.append((float(np.exp(np.mean(np.log(each)))), name))
    found.append(min(rows))
  return found
