"""Builds a training run; nothing is compiled yet."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import optax

import diffusion_jax as dj
from diffusion_jax.runs import networks
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.training import compiling, continuing


def _nothing(*_) -> dict[str, float]:
  return {}


@dataclasses.dataclass(frozen=True)
class Training:
  """Everything that is decided before anything is compiled.

  Attributes:
    config: The run's configuration.
    workdir: Its directory.
    source: Its data.
    batches: Batches of the data, by step.
    mesh: The devices.
    train_block: ``(state, batches, key) -> (state, metrics)``, jitted; the
      batches and the metrics have one more axis, with an entry for each step.
    abstract_state: Shapes and shardings of the state.
    init: ``key -> state``, jitted.
    measure: ``(state, batch, key) -> figures`` for each logged line.
    preview: ``(state, key, step, log)``, draws previews.
    finish: ``(state, key, log)``, writes the final figures.
  """

  config: Config
  workdir: pathlib.Path
  source: dj.data.Source
  batches: grain.MapDataset
  mesh: jax.sharding.Mesh
  train_block: jax.stages.Wrapped
  abstract_state: Any
  init: Callable
  measure: Callable[..., Mapping[str, float]] = _nothing
  preview: Callable[..., object] = _nothing
  finish: Callable[..., object] = _nothing


def training_mesh(config: Config, workdir: pathlib.Path) -> jax.sharding.Mesh:
  """The devices, which the batch of ``config`` must fit.

  Raises:
    ValueError: If it does not; says what to do if the batch cannot change.
  """
  mesh = dj.parallel.data_mesh()
  size, parts = config.batch_size, config.micro_batches
  if continuing.has_learnt(workdir) and size % (mesh.size * parts):
    fitting = [n for n in range(1, mesh.size) if size % (n * parts) == 0]
    raise ValueError(
      f"batch_size={size} of the run in {workdir} in micro_batches={parts} "
      f"cannot be split over {mesh.size} devices, and is part of what it "
      f"learns: go on with {' or '.join(map(str, fitting))} devices "
      "(CUDA_VISIBLE_DEVICES=0 uses one)"
    )
  dj.parallel.check_batch(size, mesh, parts)
  return mesh


def applied(
  config: Config, net: Any, mesh: jax.sharding.Mesh
) -> dj.objectives.Apply:
  """The network as an objective calls it; it gathers sharded parameters."""
  gather = gathered(config, mesh)

  def apply(params, x_t, t, cond, key):
    return net.apply(
      {"params": gather(params)}, x_t, t, cond, train=True,
      rngs={"dropout": key},
    )  # fmt: skip

  return apply


def gathered(config: Config, mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
  """The function that gathers sharded parameters."""
  return dj.parallel.gather(mesh) if config.fsdp else lambda params: params


def build(
  config: Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  source: dj.data.Source,
  net: Any,
  tx: optax.GradientTransformation,
  objective: dj.objectives.Objective,
  *,
  start: Any = None,
  **shown: Callable,
) -> Training:
  """Decides the placement of everything; compiles nothing yet.

  Args:
    config: The run's configuration.
    workdir: Its directory.
    mesh: See ``training_mesh``.
    source: Its data.
    net: The network.
    tx: The optimizer.
    objective: The objective, for batches with "image" and "label".
    start: Parameters of another run to start from.
    **shown: ``measure``, ``preview`` and ``finish``, see ``Training``.

  Returns:
    The run.

  Raises:
    ValueError: If the data or the state do not fit.
  """
  batches = dj.data.batches(
    source,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  step = functools.partial(
    dj.training.train_step,
    objective=objective,
    tx=tx,
    micro_batches=config.micro_batches,
    ema_warmup=config.ema.warmup,
  )
  abstract, init = _state(config, mesh, net, source.image_shape, tx, start)
  place = jax.tree.map(lambda x: x.sharding, abstract)
  return Training(
    config=config,
    workdir=workdir,
    source=source,
    batches=batches,
    mesh=mesh,
    train_block=jax.jit(
      functools.partial(dj.training.train_block, step),
      donate_argnums=0,
      out_shardings=(place, dj.parallel.replicated(mesh)),
      compiler_options=compiling.compiler_options(effort=2),
    ),
    abstract_state=abstract,
    init=init,
    **shown,
  )


def _state(
  config: Config, mesh, net, image_shape, tx, start
) -> tuple[Any, Callable]:
  """The initial state: its shapes and shardings, and the function for it."""
  # Jitted, so that one trace serves both shapes and values.
  init = jax.jit(functools.partial(networks.init, config, net, image_shape, tx))
  begun = () if start is None else (start,)
  abstract = jax.eval_shape(init, jax.random.key(0), *begun)
  whole = dj.parallel.replicated(mesh)
  place = (
    dj.parallel.fully_split(abstract, mesh)
    if config.fsdp
    else jax.tree.map(lambda _: whole, abstract)
  )
  placed = jax.jit(
    init,
    out_shardings=place,
    compiler_options=compiling.compiler_options(effort=0),  # runs once
  )
  abstract = jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    abstract,
    place,
  )
  return abstract, lambda key: placed(key, *begun)
