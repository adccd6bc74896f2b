"""diffusion_jax as a worker of the benchmark.

  python -m experiments.tools.benchmark.ours

The training step is the training command's own, compiled by the same call.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import configuration, networks, processes, samplers
from diffusion_jax.runs.training import (
  compiling,
  diffusion,
  dry_run,
  flops,
  setup,
)
from experiments.cli import devices
from experiments.tools.benchmark import worker
from experiments.tools.benchmark.worker import Facts, Ready, Stopwatch

# Side of the matrices whose product measures the peak of a device.
SIDES = {"cpu": 2048}
SIDE = 8192
PIPELINE_IMAGES = 4096  # read in one repetition


def prepare(job: Facts) -> Ready:
  """Gets ready for a job.

  Args:
    job: "config"; "measure", "product" or a key of ``MEASURES``; "steps" of
      sampling.

  Returns:
    The call that the worker repeats.
  """
  config: configuration.Config = ml_collections.ConfigDict(job["config"])
  if job["measure"] == "product":
    return product(config.model.get("dtype", "float32"))
  with tempfile.TemporaryDirectory() as folder:
    run = diffusion.prepare(config, pathlib.Path(folder))
  return MEASURES[job["measure"]](run, job)


def step(run: setup.Training, job: Facts) -> Ready:
  """Training steps, as many as one program takes."""
  count = run.config.steps_per_dispatch
  key = jax.random.key(0)
  block = jax.tree.map(lambda x: np.stack([x] * count), run.batches[0])
  batches = dj.parallel.put(block, dj.parallel.split_block(run.mesh))
  watch = Stopwatch()
  train_block: Any = run.train_block
  traced = train_block.trace(*dry_run.arguments(run, count))
  watch.lap("trace")
  lowered = traced.lower()
  watch.lap("lower")
  compiled = lowered.compile()
  compiling.return_memory()
  watch.lap("compile")
  state = jax.block_until_ready(run.init(key))
  compiling.return_memory()
  watch.lap("init")

  def repeat():
    nonlocal state
    state, metrics = compiled(state, batches, key)
    jax.block_until_ready(metrics)

  repeat()
  watch.lap("run")
  facts = {
    "first_step": watch.seconds,
    "steps": count,
    "images": count * run.config.batch_size,
    "calls": 3 * count,  # forward, and twice that for both gradients
  }
  return Ready(repeat, _facts(run) | facts, _memory())


def forward(run: setup.Training, job: Facts) -> Ready:
  """The network, once."""
  call, (params, x, t, cond) = _network(run)
  facts = _facts(run) | {"images": len(x), "calls": 1}
  return _warm(lambda: call(params, x, t, cond), facts)


def sample(run: setup.Training, job: Facts) -> Ready:
  """Sampling from noise to images, one program."""
  config, steps = run.config, job["steps"]
  _, (params, x, _, cond) = _network(run)
  net, schedule = _net(run), processes.schedule(config)
  name = config.sampling.sampler
  if steps <= samplers.FEW:
    name = samplers.FEW_STEPS_SAMPLER
  pairs = samplers.walk(schedule, name, None, steps)

  @jax.jit
  def walk(params, cond, key):
    predict = processes.predictor(config, schedule, net, params)
    x_0, _ = dj.sample(
      samplers.sampler(name),
      dj.clipped(dj.given(predict, cond), schedule),
      schedule,
      x.shape,
      key,
      pairs=pairs,
    )
    return x_0

  key = jax.random.key(1)
  facts = {"images": len(x), "calls": steps, "sampler": name}
  return _warm(lambda: walk(params, cond, key), _facts(run) | facts)


def pipeline(run: setup.Training, job: Facts) -> Ready:
  """Batches, read and assembled, but not used."""
  size = run.config.batch_size
  batches = dj.data.iterate(run.batches, start=0)
  count = max(1, PIPELINE_IMAGES // size)

  def repeat():
    for _ in range(count):
      next(batches)

  repeat()
  return Ready(repeat, _facts(run) | {"images": count * size})


def product(dtype: str) -> Ready:
  """A product of two large matrices, the peak of the device."""
  side = SIDES.get(jax.default_backend(), SIDE)
  a = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
  call = jax.jit(jnp.matmul)
  return _warm(lambda: call(a, a), {"flops": 2 * side**3})


MEASURES: dict[str, Callable[[setup.Training, Facts], Ready]] = {
  "step": step,
  "forward": forward,
  "sample": sample,
  "pipeline": pipeline,
}


def _warm(call: Callable[[], Any], facts: dict[str, Any]) -> Ready:
  """Compiles by calling twice."""

  def repeat():
    jax.block_until_ready(call())

  repeat()
  repeat()
  return Ready(repeat, facts, _memory())


def _net(run: setup.Training) -> dj.UNet:
  return networks.model(
    run.config, run.source.image_shape, run.source.num_classes
  )


def _conditions(run: setup.Training) -> dj.conditions.Conditions:
  schedule = processes.schedule(run.config)
  return networks.conditions(run.config, schedule, run.source.image_shape)


def _call(run: setup.Training) -> tuple[Any, tuple[Any, ...]]:
  """The jitted network and its abstract arguments."""
  shape, net = run.source.image_shape, _net(run)
  size = run.config.batch_size
  x = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
  t = jax.ShapeDtypeStruct((size,), jnp.int32)
  cond = jax.eval_shape(_conditions(run).of, x, t)
  call = jax.jit(
    lambda params, x, t, cond: net.apply({"params": params}, x, t, cond)
  )
  return call, (run.abstract_state.params, x, t, cond)


def _network(run: setup.Training):
  """The network, and arguments for it: the first batch at t = T / 2."""
  call, _ = _call(run)
  config, batch = run.config, jax.tree.map(jnp.asarray, run.batches[0])
  t = jnp.full(config.batch_size, config.schedule.T // 2)
  cond = _conditions(run).of(batch["image"], batch["label"], batch)
  return call, (run.init(jax.random.key(0)).params, batch["image"], t, cond)


def _facts(run: setup.Training) -> dict[str, Any]:
  """The device, the network and the cost of one call."""
  call, arguments = _call(run)
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "parameters": sum(p.size for p in jax.tree.leaves(arguments[0])),
    "dtype": run.config.model.get("dtype", "float32"),
    "flops_per_call": flops.count(call.trace(*arguments).jaxpr.jaxpr),
  }


def _memory() -> Callable[[], int] | None:
  """A function that reads the device's peak memory; None if it has none."""
  device = jax.local_devices()[0]
  if not device.memory_stats():
    return None
  return lambda: (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


if __name__ == "__main__":
  devices.start()
  worker.serve(prepare)
