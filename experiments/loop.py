"""The loop that every training command shares.

A command settles what is learnt (its step), what is shown on the way
(``measure`` and ``preview``) and what is left at the end (``finish``); the
rest is here: resuming, logs, checkpoints, and a stop where numbers are not
finite.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

import diffusion_jax as dj
from experiments import cli, runs
from experiments.cli import Config
from experiments.reporting import Log


def _nothing(*_) -> dict[str, float]:
  return {}


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that is settled before anything is compiled.

  Attributes:
    config: Of the run.
    workdir: Its directory.
    source: What it is trained on.
    batches: Of the source, by step.
    mesh: The devices.
    train_step: ``(state, batch, key) -> (state, metrics)``, compiled.
    abstract_state: Shapes and shardings of the state.
    init: ``key -> state``, compiled.
    measure: ``(state, batch, key) -> figures`` that join each logged line.
    preview: ``(state, key, step, log)``, shows what has been learnt.
    finish: ``(state, key, log)``, leaves the last pictures and words.
  """

  config: Config
  workdir: pathlib.Path
  source: dj.data.Source
  batches: grain.MapDataset
  mesh: jax.sharding.Mesh
  train_step: Callable
  abstract_state: Any
  init: Callable
  measure: Callable[..., Mapping[str, float]] = _nothing
  preview: Callable[..., object] = _nothing
  finish: Callable[..., object] = _nothing


def command_line(argv: list[str], default: str) -> tuple[Config, pathlib.Path]:
  """The configuration and the directory that a training command names.

  Args:
    argv: The command line.
    default: The configuration file where none is named.

  Returns:
    Both; the configuration of the directory itself where only that is named.
  """
  values = flags.FlagValues()
  known = cli.peek(argv, "config", "workdir")
  folder = pathlib.Path(known["workdir"] or "")
  if not known["config"] and known["workdir"] and runs.is_run(folder):
    with cli.user_errors():
      cli.define_known_config(values, argv, runs.changeable(folder))
  else:
    cli.define_config(values, argv, default)
  flags.DEFINE_string(
    "workdir",
    None,
    "where the run is written; by default runs/NAME, NAME that of the config",
    flag_values=values,
  )
  cli.parse(argv, values)
  name = cli.config_name(argv, default)
  return values.config, pathlib.Path(values.workdir or f"runs/{name}")


def mesh(config: Config) -> jax.sharding.Mesh:
  """The devices, which the batch of ``config`` must fit."""
  devices = dj.parallel.data_mesh()
  dj.parallel.check_batch(config.batch_size, devices, config.micro_batches)
  return devices


def settle(
  config: Config,
  workdir: pathlib.Path,
  devices: jax.sharding.Mesh,
  source: dj.data.Source,
  init: Callable,
  step: Callable,
  **shown: Callable,
) -> Run:
  """Opens the run's directory and compiles nothing yet.

  Args:
    config: Of the run.
    workdir: Its directory.
    devices: See ``mesh``.
    source: What it is trained on.
    init: ``key -> state``.
    step: ``(state, batch, key) -> (state, metrics)``; the batch has "image"
      and "label".
    **shown: ``measure``, ``preview`` and ``finish``, see ``Run``.

  Returns:
    The run.

  Raises:
    ValueError: If the data, the state or the directory do not allow it.
  """
  batches = dj.data.batches(
    source,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  abstract = jax.eval_shape(init, jax.random.key(0))
  runs.start(workdir, config, runs.describe(source))
  replicated = dj.parallel.replicated(devices)
  return Run(
    config=config,
    workdir=workdir,
    source=source,
    batches=batches,
    mesh=devices,
    train_step=jax.jit(
      step, donate_argnums=0, out_shardings=(replicated, replicated)
    ),
    abstract_state=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      abstract,
    ),
    init=jax.jit(init, out_shardings=replicated),
    **shown,
  )


def train(run: Run) -> None:
  """Trains from the last checkpoint, or the start, to the last step."""
  config, workdir = run.config, run.workdir
  root = jax.random.key(config.seed)
  key_init, key_train, key_preview = jax.random.split(root, 3)
  checkpoints = dj.checkpoint.Checkpoints(
    workdir / "checkpoints", keep=config.keep_checkpoints
  )
  with checkpoints:
    start = checkpoints.latest_step()
    if start is None:
      start, state = 0, run.init(key_init)
    else:
      with cli.user_errors():
        state = checkpoints.restore(run.abstract_state)
    log = Log(
      workdir,
      first_step=start,
      num_steps=config.num_steps,
      batch_size=config.batch_size,
      quiet=jax.process_index() > 0,
    )
    with log:
      _announce(run, start, log)
      state = _loop(run, state, start, key_train, key_preview, checkpoints, log)
      run.finish(state, key_preview, log)


def _announce(run: Run, start: int, log: Log) -> None:
  """The first lines: where everything goes, and what is about to happen."""
  config = run.config
  count = sum(
    math.prod(x.shape) for x in jax.tree.leaves(run.abstract_state.params)
  )
  size = " x ".join(map(str, run.source.image_shape))
  log.say(f"everything is written to {run.workdir}")
  log.say(
    f"{run.source.name}: {len(run.source)} images of {size}; {count:,} "
    f"parameters; {jax.device_count()} {jax.devices()[0].device_kind} device(s)"
  )
  if start >= config.num_steps:
    log.say(
      f"the run is complete after {start} steps; a larger --config.num_steps "
      "goes on"
    )
    return
  begin = f"continues after step {start} of" if start else "has"
  log.say(
    f"the run {begin} {config.num_steps} steps of {config.batch_size} images; "
    "the first step compiles"
  )


def _loop(run, state, start, key_train, key_preview, checkpoints, log):
  """Every step from start + 1 to num_steps."""
  config = run.config
  window = []  # metrics since the last look, still on the device

  def due(what: str) -> bool:
    return step == config.num_steps or step % config.every[what] == 0

  for step, batch in zip(
    range(start + 1, config.num_steps + 1),
    dj.data.iterate(run.batches, start=start),
    strict=False,
  ):
    batch = dj.parallel.put_batch(batch, run.mesh)
    state, metrics = run.train_step(state, batch, key_train)
    window.append(metrics)
    if not any(due(what) for what in config.every):
      continue
    # The one place where the host waits for the device. Nothing is shown or
    # saved before its steps are known to be good.
    window = jax.device_get(window)
    _check_finite(window, step, run.workdir, checkpoints)
    if due("log"):
      figures = run.measure(state, batch, key_preview)
      log.metrics(step, {**summary(window), **figures})
      window = []
    if due("checkpoint"):
      checkpoints.save(state)
    if due("preview"):
      run.preview(state, key_preview, step, log)
      log.pause()
  return state


def summary(window: list[dj.training.Metrics]) -> dict[str, float]:
  """What is logged of a few steps: means, and the loss by quarter of t."""
  stacked = jax.tree.map(lambda *x: np.stack(x), *window)
  return {
    "loss": float(stacked.loss.mean()),
    **dj.training.quartiles(
      stacked.quartile_loss.sum(axis=0), stacked.quartile_count.sum(axis=0)
    ),
    "grad_norm": float(stacked.grad_norm.mean()),
    "param_norm": float(stacked.param_norm[-1]),
  }


def _check_finite(window, step, workdir, checkpoints) -> None:
  """Stops the run at the first step that is not finite."""
  for i, metrics in enumerate(window):
    watched = (metrics.loss, metrics.grad_norm, metrics.param_norm)
    if np.isfinite(watched).all():
      continue
    bad = step - len(window) + 1 + i
    good = checkpoints.latest_step()
    kept = (
      "there is no checkpoint yet"
      if good is None
      else f"the checkpoint of step {good} in {workdir} is good"
    )
    raise cli.fail(
      f"step {bad} is not finite: loss {metrics.loss}, gradient norm "
      f"{metrics.grad_norm}, parameter norm {metrics.param_norm}; stopped, "
      f"{kept}. Try a lower optim.lr or a longer optim.warmup_steps",
      status=1,
    )
