"""The loop that every training command shares.

A command settles what is learnt (its step), what is shown on the way
(``measure`` and ``preview``) and what is left at the end (``finish``); the
rest is here: resuming, logs, checkpoints, and a stop where numbers are not
finite or a signal asks for one.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

import diffusion_jax as dj
from experiments import assemble, cli, continuing, devices, dry_run, runs
from experiments.cli import Config
from experiments.interruption import Interruption
from experiments.reporting import Log

# Programs that wait on the device. More would only hold more batches there.
AHEAD = 8


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
    train_block: ``(state, batches, key) -> (state, metrics)``, compiled; the
      batches and the metrics have an axis more, one entry for each step.
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
  train_block: jax.stages.Wrapped
  abstract_state: Any
  init: Callable
  measure: Callable[..., Mapping[str, float]] = _nothing
  preview: Callable[..., object] = _nothing
  finish: Callable[..., object] = _nothing


def main(
  argv: list[str],
  default: str,
  prepare: Callable[[Config, pathlib.Path], Run],
) -> None:
  """A training command, from its command line to its last word.

  Args:
    argv: The command line.
    default: The configuration file where none is named.
    prepare: Builds the run of a configuration in a directory.
  """
  devices.start()
  asked = command_line(argv, default)
  config, workdir = asked.config, asked.workdir
  with contextlib.ExitStack() as held:
    with cli.user_errors():
      run = prepare(config, workdir)
      if asked.dry_run:
        return dry_run.report(run)
      # Nothing is written where another process trains, nor before all that
      # may refuse has looked.
      held.enter_context(runs.opened(workdir))
      changes = continuing.check(
        workdir,
        config,
        runs.describe(run.source, config),
        new_data=asked.new_data,
      )
    train(run, changes)


class Command(NamedTuple):
  """What a training command names.

  Attributes:
    config: The configuration, that of the directory itself where only a
      directory is named.
    workdir: The directory.
    dry_run: Whether to stop after saying what the run needs.
    new_data: Whether to go on with other data than before.
  """

  config: Config
  workdir: pathlib.Path
  dry_run: bool
  new_data: bool


def command_line(argv: list[str], default: str) -> Command:
  """Reads a command line.

  Args:
    argv: The command line.
    default: The configuration file where none is named.
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
  for name, text in {
    "dry_run": "print parameters, FLOPs and memory of a step, and stop",
    "new_data": "go on with other data than before, from the newest checkpoint",
  }.items():
    flags.DEFINE_bool(name, False, text, flag_values=values)
  cli.parse(argv, values)
  name = cli.config_name(argv, default)
  workdir = pathlib.Path(values.workdir or f"runs/{name}")
  return Command(values.config, workdir, values.dry_run, values.new_data)


def mesh(config: Config, workdir: pathlib.Path) -> jax.sharding.Mesh:
  """The devices, which the batch of ``config`` must fit.

  Raises:
    ValueError: If it does not; says what a run can do whose batch is given.
  """
  found = dj.parallel.data_mesh()
  size, parts = config.batch_size, config.micro_batches
  if continuing.has_learnt(workdir) and size % (found.size * parts):
    fitting = [n for n in range(1, found.size) if size % (n * parts) == 0]
    raise ValueError(
      f"batch_size={size} of the run in {workdir} in micro_batches={parts} "
      f"cannot be split over {found.size} devices, and is part of what it "
      f"learns: go on with {' or '.join(map(str, fitting))} devices "
      "(CUDA_VISIBLE_DEVICES=0 uses one)"
    )
  dj.parallel.check_batch(size, found, parts)
  return found


def applied(
  config: Config, net: nn.Module, found: jax.sharding.Mesh
) -> dj.objectives.Apply:
  """The network as an objective calls it, its split parameters put together."""
  gather = gathered(config, found)

  def apply(params, x_t, t, cond, key):
    return net.apply(
      {"params": gather(params)}, x_t, t, cond, train=True,
      rngs={"dropout": key},
    )  # fmt: skip

  return apply


def gathered(config: Config, found: jax.sharding.Mesh) -> Callable[[Any], Any]:
  """Puts split parameters together, where they are."""
  return dj.parallel.gather(found) if config.fsdp else lambda params: params


def settle(
  config: Config,
  workdir: pathlib.Path,
  found: jax.sharding.Mesh,
  source: dj.data.Source,
  init: Callable,
  step: Callable,
  start: Any = None,
  **shown: Callable,
) -> Run:
  """Decides where everything lies, and compiles nothing yet.

  Args:
    config: Of the run.
    workdir: Its directory.
    found: See ``mesh``.
    source: What it is trained on.
    init: ``(key, start) -> state``, or ``key -> state`` without a start.
    step: ``(state, batch, key) -> (state, metrics)``; the batch has "image"
      and "label".
    start: Parameters of another run to begin with.
    **shown: ``measure``, ``preview`` and ``finish``, see ``Run``.

  Returns:
    The run.

  Raises:
    ValueError: If the data or the state do not allow it.
  """
  batches = dj.data.batches(
    source,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  init = jax.jit(init)  # So it is traced once, for shapes and for values.
  begun = () if start is None else (start,)
  abstract = jax.eval_shape(init, jax.random.key(0), *begun)
  whole = dj.parallel.replicated(found)
  place = (
    dj.parallel.fully_split(abstract, found)
    if config.fsdp
    else jax.tree.map(lambda _: whole, abstract)
  )
  placed = jax.jit(
    init,
    out_shardings=place,
    compiler_options=devices.compiler_options(effort=0),  # runs once
  )
  return Run(
    config=config,
    workdir=workdir,
    source=source,
    batches=batches,
    mesh=found,
    train_block=jax.jit(
      functools.partial(dj.training.train_block, step),
      donate_argnums=0,
      out_shardings=(place, whole),
      compiler_options=devices.compiler_options(effort=2),
    ),
    abstract_state=jax.tree.map(
      lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
      abstract,
      place,
    ),
    init=lambda key: placed(key, *begun),
    **shown,
  )


def train(run: Run, changes: continuing.Changes) -> None:
  """Trains from the last checkpoint, or the start, to the last step.

  Args:
    run: Whose directory is open.
    changes: See ``continuing.check``.

  Raises:
    SystemExit: Status 1 after one line where the run cannot go on, 2 where it
      should not have started; 0 or 130 where a signal stopped it.
  """
  config, workdir = run.config, run.workdir
  with contextlib.ExitStack() as held:
    held.enter_context(cli.system_errors())
    checkpoints = held.enter_context(
      dj.checkpoint.Checkpoints(
        workdir / "checkpoints", keep=config.keep_checkpoints
      )
    )
    state = _restore(run, checkpoints)
    start = 0 if state is None else int(state.step)
    if jax.process_index() == 0:
      describe(run, start, changes)
    multihost_utils.sync_global_devices("run directory written")
    log = held.enter_context(
      Log(
        workdir,
        first_step=start,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        quiet=jax.process_index() > 0,
      )
    )
    _announce(run, start, changes, log)
    _train(run, state, start, checkpoints, log)


def _restore(run: Run, checkpoints: dj.checkpoint.Checkpoints):
  """The state of the last good checkpoint; None where there is none."""
  if checkpoints.latest_step() is None:
    return None
  try:
    return checkpoints.restore(run.abstract_state, tell=cli.say_first)
  except ValueError as error:
    raise cli.fail(error) from error


def describe(run: Run, start: int, changes: continuing.Changes) -> None:
  """Writes what the run is from here on, and what has changed."""
  config = runs.config_json(run.config)
  runs.describe_run(run.workdir, config, runs.describe(run.source, run.config))
  if start and changes:
    continuing.note(run.workdir, start, changes)


def _train(run, state, start, checkpoints, log) -> None:
  """Takes the steps, and ends as the last of them or a signal asks."""
  key_init, *keys = jax.random.split(jax.random.key(run.config.seed), 3)
  with Interruption() as stop:
    state = _ready(run, state, start, key_init)
    state, step = _loop(run, state, start, keys, checkpoints, log, stop)
    if stop.signal is None:
      try:
        with stop.at_once():
          run.finish(state, keys[-1], log)
      except dj.data.Unreadable as error:
        raise cli.fail(f"the run is complete, but {error}", status=1) from error
  if stop.signal is not None:
    saved = "is complete" if step >= run.config.num_steps else "is saved"
    log.say(
      f"stopped by {stop.signal.name}: the run {saved} after step {step}; "
      "the same command goes on"
    )
    raise SystemExit(stop.status)


def _announce(
  run: Run, start: int, changes: continuing.Changes, log: Log
) -> None:
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
  if changes:
    begins = "from here on" if start else "no checkpoint yet, begun anew"
    log.say(f"{begins}: {continuing.describe(changes)}")
  if start >= config.num_steps:
    decays = config.optim.decay_steps is not None
    also = " with as many --config.optim.decay_steps" if decays else ""
    log.say(
      f"the run is complete after {start} steps; a larger --config.num_steps"
      f"{also} goes on"
    )
    return
  begin = f"continues after step {start} of" if start else "has"
  log.say(
    f"the run {begin} {config.num_steps} steps of {config.batch_size} images; "
    "the first step compiles"
  )


def _ready(run: Run, state, start: int, key: jax.Array):
  """Compiles the block after ``start``, and begins where there is no state.

  An accelerator's compiler leaves cores free to compile the initial state
  meanwhile. On a CPU one follows the other: what compiling a step needs is
  then not in memory together with a state.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as beside:
    compiled = beside.submit(_compile_block, run, start)
    if jax.default_backend() == "cpu":
      compiled.result()
    if state is None:
      state = run.init(key)
    compiled.result()
  devices.return_memory()
  return state


def _compile_block(run: Run, start: int) -> None:
  """Compiles the block after ``start``, if any; its call then only runs it."""
  if start < run.config.num_steps:
    size = block_size(run.config, start)
    run.train_block.lower(*dry_run.arguments(run, size)).compile()
    devices.return_memory()


def _loop(run, state, start, keys, checkpoints, log, stop):
  """Every step from start + 1 to num_steps, unless a signal comes."""
  config, (key_train, key_preview) = run.config, keys
  window = []  # metrics since the last look, still on the device
  batches = dj.data.iterate(run.batches, start=start)
  step = start
  try:
    for step, block in blocks(config, start, batches):
      stacked = jax.tree.map(lambda *x: np.stack(x), *block)
      placed = dj.parallel.put(stacked, dj.parallel.split_block(run.mesh))
      state, metrics = run.train_block(state, placed, key_train)
      window.append(metrics)
      stopped = stop.reached(step)
      now = due(config, step)
      if not now and not stopped:
        jax.block_until_ready(window[-AHEAD:][0].loss)
        continue
      # The one place where the host waits for the device. Nothing is shown or
      # saved before its steps are known to be good.
      window = jax.device_get(window)
      _check_finite(window, step, run.workdir, checkpoints)
      if "log" in now:
        last = dj.parallel.put(block[-1], dj.parallel.split(run.mesh))
        figures = run.measure(state, last, key_preview)
        log.metrics(step, {**summary(window), **figures})
        window = []
      if "checkpoint" in now or stopped:
        checkpoints.save(state)
      if "preview" in now and not stopped:
        with stop.at_once():
          run.preview(state, key_preview, step, log)
        log.pause()
        if stop.signal is not None:
          checkpoints.save(state)
          stopped = True
      if stopped:
        break
    else:
      step = max(start, config.num_steps)
  except dj.data.Unreadable as error:
    window = jax.device_get(window)
    _check_finite(window, step, run.workdir, checkpoints)
    raise _stopped_by_data(state, step, checkpoints, error) from error
  checkpoints.wait()
  return state, step


def _stopped_by_data(state, step, checkpoints, error) -> SystemExit:
  """Saves what has been learnt before the data could not be read."""
  # A save takes all processes, and the others have not been stopped.
  saved = step > 0 and jax.process_count() == 1
  if saved:
    checkpoints.save(state)
    checkpoints.wait()
  advice = f"; the run is saved after step {step}" if saved else ""
  return cli.fail(
    f"{error}, or {assemble.REMEDIES[error.option]}{advice}; then the same "
    "command goes on, with --new_data if pictures were changed or left out",
    status=1,
  )


def due(config: Config, step: int) -> set[str]:
  """What is to be done after a step: at its interval, and at the end."""
  last = step == config.num_steps
  return {n for n, every in config.every.items() if last or step % every == 0}


def blocks(
  config: Config, start: int, batches: Iterator
) -> Iterator[tuple[int, list]]:
  """The steps, in blocks of which each is one program.

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
  steps, unless something is due within it: then its steps go one by one. So
  how steps are grouped depends on the steps alone, not on where a run was
  interrupted, and at most two programs are compiled.
  """
  most = config.steps_per_dispatch
  whole = step % most == 0 and step + most <= config.num_steps
  within = range(step + 1, step + most)
  return most if whole and not any(due(config, n) for n in within) else 1


def summary(window: list[dj.training.Metrics]) -> dict[str, float]:
  """What is logged of a few blocks: means, and the loss by quarter of t."""
  stacked = jax.tree.map(lambda *x: np.concatenate(x), *window)
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
  if not window:
    return
  metrics = jax.tree.map(lambda *x: np.concatenate(x), *window)
  watched = np.stack([metrics.loss, metrics.grad_norm, metrics.param_norm])
  wrong = np.flatnonzero(~np.isfinite(watched).all(axis=0))
  if len(wrong):
    loss, grad_norm, param_norm = watched[:, wrong[0]]
    bad = step - watched.shape[1] + 1 + wrong[0]
    good = checkpoints.latest_step()
    kept = (
      "there is no checkpoint yet"
      if good is None
      else f"the checkpoint of step {good} in {workdir} is good"
    )
    raise cli.fail(
      f"step {bad} is not finite: loss {loss}, gradient norm {grad_norm}, "
      f"parameter norm {param_norm}; stopped, "
      f"{kept}. Try a lower optim.lr or a longer optim.warmup_steps",
      status=1,
    )
