"""Starting from another run's parameters, or learning from them."""

from typing import Any

import jax.numpy as jnp

from diffusion_jax.runs.configuration import Config


def taught(config: Config) -> bool:
  """Whether the run learns from the run that it starts from."""
  options = config.objective
  return options.name == "distillation" or (
    options.name != "diffusion" and options.teacher
  )


def grafted(new: Any, old: Any, *, where: str = "") -> Any:
  """The parameters of another run, and our own where it has none.

  Raises:
    ValueError: If a parameter of the other run does not exist here.
  """
  if not isinstance(new, dict):
    if new.shape != old.shape:
      raise ValueError(
        f"init.run: {where} is {old.shape} there and {new.shape} here; set "
        "the same model"
      )
    return jnp.asarray(old, new.dtype)
  stray = sorted(old.keys() - new.keys())
  if stray:
    raise ValueError(
      f"init.run: {where}{stray[0]} is there and not here; set the same model"
    )
  return {
    name: grafted(part, old[name], where=f"{where}{name}/")
    if name in old
    else part
    for name, part in new.items()
  }
