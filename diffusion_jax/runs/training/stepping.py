"""How steps are grouped into programs, and what to do after each."""

from collections.abc import Iterator

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs.configuration import Config


def actions(config: Config, step: int) -> set[str]:
  """What to do after a step: at each one's interval, and at the end."""
  last = step == config.num_steps
  return {n for n, every in config.every.items() if last or step % every == 0}


def blocks(
  config: Config, start: int, batches: Iterator
) -> Iterator[tuple[int, list]]:
  """The steps in blocks; each block is one program.

  Yields:
    The last step of the block, and its batches.

  Raises:
    Unreadable: If a batch cannot be read; names its step.
  """
  step = start
  while step < config.num_steps:
    size = block_size(config, step)
    try:
      block = [next(batches) for _ in range(size)]
    except (ValueError, OSError) as error:
      raise dj.data.Unreadable(
        f"the data of step {step + 1} cannot be read: {error}", "skip_broken"
      ) from error
    step += size
    yield step, block


def block_size(config: Config, step: int) -> int:
  """How many steps the block after a step has.

  A block starts at a multiple of ``steps_per_dispatch`` and has that many
  steps, unless there is something to do within it: then its steps run one by
  one. So the grouping depends on the steps alone, not on where a run was
  interrupted, and at most two programs are compiled.
  """
  most = config.steps_per_dispatch
  whole = step % most == 0 and step + most <= config.num_steps
  within = range(step + 1, step + most)
  return most if whole and not any(actions(config, n) for n in within) else 1


def summary(window: list[dj.training.Metrics]) -> dict[str, float]:
  """The logged values of a few blocks: means, and the loss by quarter of t."""
  stacked = jax.tree.map(lambda *x: np.concatenate(x), *window)
  return {
    "loss": float(stacked.loss.mean()),
    **dj.training.quartiles(
      stacked.quartile_loss.sum(axis=0), stacked.quartile_count.sum(axis=0)
    ),
    "grad_norm": float(stacked.grad_norm.mean()),
    "param_norm": float(stacked.param_norm[-1]),
  }
