"""Trains a diffusion model.

  python -m experiments.train --config=configs/digits.py
  python -m experiments.train --config=configs/cifar.py --config.optim.lr=1e-4

The run is written to --workdir (runs/NAME by default). The same command
again continues it from its last checkpoint; so does --workdir alone, with the
run's own configuration. A run of imported weights is fine-tuned:

  python -m experiments.train --workdir=runs/imported --config.data.name=PATH
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

import diffusion_jax as dj
from experiments import assemble, cli, runs
from experiments.cli import Config
from experiments.generate import Generator
from experiments.reporting import Log, plot_loss

LABELS = 2**32 - 1  # a number that no step reaches, for a key of its own
DEFAULT_CONFIG = "configs/digits.py"


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that is settled before anything is compiled."""

  config: Config
  workdir: pathlib.Path
  source: dj.data.Source
  batches: grain.MapDataset
  net: dj.UNet
  mesh: jax.sharding.Mesh
  generator: Generator
  train_step: Callable
  abstract_state: Any
  init: Callable


def prepare(config: Config, workdir: pathlib.Path) -> Run:
  """Builds a run from its configuration and opens its directory.

  Raises:
    ValueError: For anything a user may have got wrong.
  """
  mesh = dj.parallel.data_mesh()
  dj.parallel.check_batch(config.batch_size, mesh, config.micro_batches)
  schedule = assemble.schedule(config)
  loss_at = assemble.loss_at(config)
  assemble.check(config, schedule)
  tx = assemble.optimizer(config)
  source = assemble.source(config)
  batches = dj.data.batches(
    source,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.flip,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  net = assemble.model(config, source.image_shape, source.num_classes)
  init = functools.partial(assemble.init, config, net, source.image_shape, tx)
  abstract = jax.eval_shape(init, jax.random.key(0))
  runs.start(workdir, config, runs.describe(source))

  def apply(params, x_t, t, y, dropout_key):
    return net.apply(
      {"params": params}, x_t, t, y, train=True, rngs={"dropout": dropout_key}
    )

  take_step = functools.partial(
    dj.training.train_step,
    apply=apply,
    schedule=schedule,
    tx=tx,
    loss_at=loss_at,
    draw=assemble.draw(config),
    micro_batches=config.micro_batches,
    ema_warmup=config.ema.warmup,
  )

  def step(state, batch, key):
    if assemble.hides_labels(config):
      key_labels = jax.random.fold_in(key, LABELS)
      y = dj.guidance.drop_labels(
        jax.random.fold_in(key_labels, state.step),
        batch["label"],
        config.label_dropout,
        no_class=config.model.num_classes,
      )
      batch = {**batch, "label": y}
    return take_step(state, batch, key)

  replicated = dj.parallel.replicated(mesh)
  return Run(
    config=config,
    workdir=workdir,
    source=source,
    batches=batches,
    net=net,
    mesh=mesh,
    generator=Generator(
      config,
      net,
      source.image_shape,
      sampler=config.preview.sampler,
      pairs=assemble.walk(
        schedule,
        config.preview.sampler,
        config.preview.spacing,
        config.preview.steps,
      ),
      batch=config.preview.num,
      guidance=config.sampling.guidance,
    ),
    train_step=jax.jit(
      step, donate_argnums=0, out_shardings=(replicated, replicated)
    ),
    abstract_state=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      abstract,
    ),
    init=jax.jit(init, out_shardings=replicated),
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
      _finish(run, state, key_preview, log)


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
    if run.net.num_classes is None:
      batch = {**batch, "label": None}
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
      log.metrics(step, summary(window))
      window = []
    if due("checkpoint"):
      checkpoints.save(state)
    if due("preview"):
      preview(run, state, key_preview, step, log)
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


def preview(run: Run, state, key, step: int, log: Log) -> None:
  """Sample grids of the raw and the averaged parameters, same noise."""
  num = run.config.preview.num
  for name, params in {"raw": state.params, **state.ema}.items():
    label = name if name == "raw" else f"ema{name}"
    picture = dj.images.grid(run.generator(params, key, num))
    log.picture(f"samples/{label}", picture, step)
    if jax.process_index() == 0:
      path = run.workdir / "samples" / f"step{step:07}_{label}.png"
      dj.images.save_png(path, picture)


def _finish(run: Run, state, key, log: Log) -> None:
  """Loss plot, denoising animation, and what to do next."""
  folder = run.workdir / "samples"
  best = list(state.ema.values())[-1] if state.ema else state.params
  film = [np.asarray(x)[:32] for x in run.generator.walk(best, key, 0)]
  if jax.process_index() == 0:
    frames = [dj.images.grid(x, columns=8) for x in film]
    dj.images.save_gif(folder / "denoising.gif", frames)
    plot_loss(run.workdir, folder / "loss.png")
  log.say(f"samples, denoising.gif and loss.png are in {folder}")
  log.say(f"next: python -m experiments.sample --workdir={run.workdir}")


def main(argv: list[str]) -> None:
  """The command."""
  cli.tune_cpu()
  values = flags.FlagValues()
  known = cli.peek(argv, "config", "workdir")
  folder = pathlib.Path(known["workdir"] or "")
  if not known["config"] and known["workdir"] and runs.is_run(folder):
    with cli.user_errors():
      cli.define_known_config(values, argv, runs.changeable(folder))
  else:
    cli.define_config(values, argv, DEFAULT_CONFIG)
  flags.DEFINE_string(
    "workdir",
    None,
    "where the run is written; by default runs/NAME, NAME that of the config",
    flag_values=values,
  )
  cli.parse(argv, values)
  name = cli.config_name(argv, DEFAULT_CONFIG)
  workdir = pathlib.Path(values.workdir or f"runs/{name}")
  with cli.user_errors():
    run = prepare(values.config, workdir)
  train(run)


if __name__ == "__main__":
  main(sys.argv)
