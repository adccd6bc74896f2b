"""What a training run needs, without training: ``--dry_run``."""

import math
from typing import Any

import jax

import diffusion_jax as dj
from diffusion_jax.runs import console
from diffusion_jax.runs.training import flops


def report(run: Any) -> None:
  """Prints parameters, FLOPs of a step and bytes per device.

  The step is compiled for the devices of this machine, but not run; nothing is
  written.

  Args:
    run: A ``loop.Run``.
  """
  config, state = run.config, run.abstract_state
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  console.say_first(
    f"{count:,} parameters; {run.mesh.size} x "
    f"{run.mesh.devices.flat[0].device_kind}"
  )
  program = run.train_block.trace(*arguments(run, 1)).jaxpr.jaxpr
  cost = flops.count(program)
  console.say_first(
    f"{_si(cost)}FLOP per step of {config.batch_size} images, "
    f"{_si(cost / config.batch_size)}FLOP per image"
  )
  parts = {
    "parameters": state.params,
    "averages": state.ema,
    "optimizer": state.opt_state,
  }
  sizes = {k: dj.parallel.bytes_per_device(v) for k, v in parts.items()}
  listed = ", ".join(f"{_si(v)}B {k}" for k, v in sizes.items())
  together = arguments(run, config.steps_per_dispatch)
  total = _peak(run.train_block.lower(*together).compile())
  console.say_first(
    f"{_si(total)}B on each device: {listed}, "
    f"{_si(total - sum(sizes.values()))}B batches, activations and gradients"
  )


def _peak(program: jax.stages.Compiled) -> int:
  """Bytes that a program needs on each device while it runs."""
  memory: Any = program.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes  # outputs in the place of arguments
    + memory.temp_size_in_bytes
  )


def arguments(run: Any, steps: int) -> tuple[Any, ...]:
  """The abstract arguments of a program of some steps."""
  where = dj.parallel.split_block(run.mesh)
  size = run.config.batch_size
  batch = (
    {
      "image": ((steps, size, *run.source.image_shape), "float32"),
      "label": ((steps, size), "int32"),
    }
    | {
      name: ((steps, size, *numbers.shape[1:]), "float32")
      for name, numbers in run.source.vectors.items()
    }
    | {
      name: ((steps, size, *other.image_shape), "float32")
      for name, other in run.source.pictures.items()
    }
  )
  batches = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    for name, (shape, dtype) in batch.items()
  }
  return run.abstract_state, batches, jax.eval_shape(jax.random.key, 0)


def _si(number: float) -> str:
  """Three digits and a prefix.

  >>> _si(35_746_307), _si(1.2e12), _si(3.0)
  ('35.7 M', '1.2 T', '3 ')
  """
  prefixes = ("", "k", "M", "G", "T", "P", "E")
  power = 0
  while abs(number) >= 999.5 and power < len(prefixes) - 1:
    number, power = number / 1000, power + 1
  return f"{number:.3g} {prefixes[power]}"
