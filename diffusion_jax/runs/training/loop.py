"""The loop that every training run shares.

It resumes, logs, saves checkpoints, and stops for a signal or for numbers that
are not finite.
"""

import concurrent.futures
import contextlib
import math
import signal
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

import diffusion_jax as dj
from diffusion_jax import shapes
from diffusion_jax.runs import (
  checks,
  console,
  datasets,
  directory,
  processes,
)
from diffusion_jax.runs.training import (
  compiling,
  continuing,
  dry_run,
  stepping,
)
from diffusion_jax.runs.training.interruption import Interruption
from diffusion_jax.runs.training.reporting import Log
from diffusion_jax.runs.training.setup import Training

# Programs queued on the device. More would only hold more batches there.
AHEAD = 8


class Failed(RuntimeError):
  """A run cannot continue; the message is one line with the reason.

  Attributes:
    status: The exit status of a command: 2 if it should not have started.
  """

  def __init__(self, message: object, *, status: int = 1):
    super().__init__(str(message))
    self.status = status


@contextlib.contextmanager
def opened(
  run: Training, *, new_data: bool = False
) -> Iterator[continuing.Changes]:
  """Opens and locks the directory of a run.

  Nothing is written before all checks have passed.

  Args:
    run: The run to train.
    new_data: Whether to resume with other data than before.

  Yields:
    The changes, see ``continuing.check``.

  Raises:
    ValueError: If the run cannot train there.
  """
  with directory.opened(run.workdir):
    data = directory.describe(run.source, run.config)
    yield continuing.check(run.workdir, run.config, data, new_data=new_data)


def train(run: Training, changes: continuing.Changes) -> signal.Signals | None:
  """Trains from the last checkpoint, or the start, to the last step.

  Args:
    run: The run, whose directory is open.
    changes: See ``continuing.check``.

  Returns:
    The signal that stopped it, if one did.

  Raises:
    Failed: If the run cannot continue.
    OSError: If the system refuses something, such as space on the disk.
    FloatingPointError: If sampled images are NaN.
  """
  config, workdir = run.config, run.workdir
  with contextlib.ExitStack() as held:
    checkpoints = held.enter_context(
      dj.checkpoint.Checkpoints(
        workdir / "checkpoints",
        keep=config.keep_checkpoints,
        averages=workdir / "averages" if config.ema.get("stds") else None,
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
    return _train(run, state, start, checkpoints, log)


def _restore(run: Training, checkpoints: dj.checkpoint.Checkpoints):
  """The state of the newest intact checkpoint; None if there is none."""
  if checkpoints.latest_step() is None:
    return None
  try:
    return checkpoints.restore(run.abstract_state, tell=console.say_first)
  except ValueError as error:
    raise Failed(error, status=2) from error


def describe(run: Training, start: int, changes: continuing.Changes) -> None:
  """Writes the run's description, and what has changed."""
  config = directory.config_json(run.config)
  directory.describe_run(
    run.workdir, config, directory.describe(run.source, run.config)
  )
  if start and changes:
    continuing.note(run.workdir, start, changes)


def _train(run, state, start, checkpoints, log) -> signal.Signals | None:
  """Takes the steps, and ends the run after the last or a signal."""
  key_init, *keys = jax.random.split(jax.random.key(run.config.seed), 3)
  with Interruption() as stop:
    state = _ready(run, state, start, key_init)
    state, step = _loop(run, state, start, keys, checkpoints, log, stop)
    if stop.signal is None:
      try:
        with stop.at_once():
          run.finish(state, keys[-1], log)
      except dj.data.Unreadable as error:
        raise Failed(f"the run is complete, but {error}") from error
  if stop.signal is not None:
    saved = "is complete" if step >= run.config.num_steps else "is saved"
    log.say(
      f"stopped by {stop.signal.name}: the run {saved} after step {step}; "
      "the same command goes on"
    )
  return stop.signal


def _announce(
  run: Training, start: int, changes: continuing.Changes, log: Log
) -> None:
  """Prints the first lines: the directory, and what is about to happen."""
  config = run.config
  count = sum(
    math.prod(x.shape) for x in jax.tree.leaves(run.abstract_state.params)
  )
  source, shape = run.source, run.source.image_shape
  what = shapes.noun(shape, len(source))
  log.say(f"everything is written to {run.workdir}")
  log.say(
    f"{source.name}: {len(source)} {what} of {shapes.by(shape)}; "
    f"{count:,} "
    f"parameters; {jax.device_count()} {jax.devices()[0].device_kind} device(s)"
  )
  if changes:
    begins = "from here on" if start else "no checkpoint yet, begun anew"
    log.say(f"{begins}: {continuing.describe(changes)}")
  if start >= config.num_steps:
    decays = config.optim.decay_steps is not None
    also = " with as many optim.decay_steps" if decays else ""
    log.say(
      f"the run is complete after {start} steps; a larger num_steps"
      f"{also} goes on"
    )
    return
  begin = f"continues after step {start} of" if start else "has"
  log.say(
    f"the run {begin} {config.num_steps} steps of {config.batch_size} images; "
    "the first step compiles"
  )
  for doubt in checks.doubts(config, processes.schedule(config)):
    log.say(doubt)


def _ready(run: Training, state, start: int, key: jax.Array):
  """Compiles the block after ``start``, and makes a state if there is none.

  An accelerator's compiler leaves cores free to compile the initial state
  meanwhile. On a CPU one follows the other, so that the memory for compiling a
  step is not needed at the same time as a state.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as beside:
    compiled = beside.submit(_compile_block, run, start)
    if jax.default_backend() == "cpu":
      compiled.result()
    if state is None:
      state = run.init(key)
    compiled.result()
  compiling.return_memory()
  return state


def _compile_block(run: Training, start: int) -> None:
  """Compiles the block after ``start``, if any; its call then only runs it."""
  if start < run.config.num_steps:
    size = stepping.block_size(run.config, start)
    run.train_block.lower(*dry_run.arguments(run, size)).compile()
    compiling.return_memory()


def _loop(run, state, start, keys, checkpoints, log, stop):
  """Every step from start + 1 to num_steps, unless a signal comes."""
  config, (key_train, key_preview) = run.config, keys
  window = []  # metrics since the last check, still on the device
  batches = dj.data.iterate(run.batches, start=start)
  step = start
  try:
    for step, block in stepping.blocks(config, start, batches):
      stacked = jax.tree.map(lambda *x: np.stack(x), *block)
      placed = dj.parallel.put(stacked, dj.parallel.split_block(run.mesh))
      state, metrics = run.train_block(state, placed, key_train)
      window.append(metrics)
      stopped = stop.reached(step)
      now = stepping.actions(config, step)
      if not now and not stopped:
        jax.block_until_ready(window[-AHEAD:][0].loss)
        continue
      # The one place where the host waits for the device. Nothing is shown or
      # saved before its steps are known to be finite.
      window = jax.device_get(window)
      _check_finite(window, step, run.workdir, checkpoints)
      if "log" in now:
        last = dj.parallel.put(block[-1], dj.parallel.split(run.mesh))
        figures = run.measure(state, last, key_preview)
        log.metrics(step, {**stepping.summary(window), **figures})
        window = []
      if "checkpoint" in now or stopped:
        checkpoints.save(state)
      if "preview" in now and not stopped:
        with log.pause(), stop.at_once():
          run.preview(state, key_preview, step, log)
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


def _stopped_by_data(state, step, checkpoints, error) -> Failed:
  """Saves the state before the step whose data could not be read."""
  # A save takes all processes, and the others have not been stopped.
  saved = step > 0 and jax.process_count() == 1
  if saved:
    checkpoints.save(state)
    checkpoints.wait()
  advice = f"; the run is saved after step {step}" if saved else ""
  return Failed(
    f"{error}, or {datasets.REMEDIES[error.option]}{advice}; then the same "
    "command goes on, with `new_data` if pictures were changed or left out"
  )


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
    raise Failed(
      f"step {bad} is not finite: loss {loss}, gradient norm {grad_norm}, "
      f"parameter norm {param_norm}; stopped, "
      f"{kept}. Try a lower optim.lr or a longer optim.warmup_steps; a network "
      "of your own may not take all times"
    )
