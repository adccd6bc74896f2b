"""Trains a diffusion model.

  python -m experiments.train --config=configs/digits.py
  python -m experiments.train --config=configs/cifar.py --config.optim.lr=1e-4

The run is written to --workdir (runs/NAME by default). The same command
again continues it from its last checkpoint; so does --workdir alone, with the
run's own configuration. A run of imported weights is fine-tuned:

  python -m experiments.train --workdir=runs/imported --config.data.name=PATH
"""

import functools
import pathlib
from collections.abc import Callable

import jax

import diffusion_jax as dj
from experiments import assemble, cli, loop
from experiments.cli import Config
from experiments.generate import Generator
from experiments.monitor import Monitor
from experiments.reporting import Log, plot_loss

DEFAULT_CONFIG = "configs/digits.py"


def prepare(config: Config, workdir: pathlib.Path) -> loop.Run:
  """Builds a run from its configuration.

  Raises:
    ValueError: For anything a user may have got wrong.
  """
  assemble.check_draws(config)
  devices = loop.mesh(config, workdir)
  schedule = assemble.schedule(config)
  assemble.loss_at(config)
  assemble.check(config, schedule)
  tx = assemble.optimizer(config)
  source = assemble.training_source(config)
  loss_at = assemble.loss_at(config, source.values)
  assemble.count_classes(config, source)
  assemble.note_vectors(config, source)
  net = assemble.model(config, source.image_shape, source.num_classes)
  conditions = assemble.conditions(config, schedule, source.image_shape)

  step = functools.partial(
    dj.training.train_step,
    objective=dj.objectives.diffusion(
      loop.applied(config, net, devices),
      schedule,
      loss_at=loss_at,
      draw=assemble.draw(config),
      condition=conditions.draw,
      **assemble.door(config),
    ),
    tx=tx,
    micro_batches=config.micro_batches,
    ema_warmup=config.ema.warmup,
  )

  return loop.settle(
    config,
    workdir,
    devices,
    source,
    functools.partial(assemble.init, config, net, source.image_shape, tx),
    step,
    **_shown(config, workdir, schedule, source, net),
  )


def _shown(config, workdir, schedule, source, net) -> dict[str, Callable]:
  """What shows the run on its way and at its end."""
  if config.preview.num == 0:
    return {"finish": functools.partial(_say_next, workdir)}
  enlarges = assemble.low_res_shape(config, source.image_shape) is not None
  generator = Generator(
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
    low_res=(
      assemble.low_res(config, source, config.preview.num) if enlarges else None
    ),
  )
  monitor = Monitor(
    source,
    num=config.preview.num,
    paired=enlarges,
    frechet=config.preview.frechet,
  )
  return {
    "preview": functools.partial(preview, workdir, generator, monitor),
    "finish": functools.partial(_finish, workdir, generator),
  }


def preview(
  workdir: pathlib.Path,
  generator,
  monitor: Monitor,
  state,
  key,
  step: int,
  log: Log,
) -> None:
  """Sample grids of the raw and the averaged parameters, same noise."""
  for name, params in {
    "raw": dj.optimizers.evaluated(state),
    **state.ema,
  }.items():
    label = name if name == "raw" else f"ema{name}"
    samples = generator(params, key, generator.batch)
    log.preview(step, label, monitor(samples, params, state.params))
    picture = dj.images.grid(samples)
    log.picture(f"samples/{label}", picture, step)
    if jax.process_index() == 0:
      path = workdir / "samples" / f"step{step:07}_{label}.png"
      dj.images.save_png(path, picture)


def _finish(workdir: pathlib.Path, generator, state, key, log: Log) -> None:
  """Loss plot, denoising animation, and what to do next."""
  folder = workdir / "samples"
  best = list(state.ema.values())[-1] if state.ema else state.params
  film = [dj.parallel.fetch(x)[:32] for x in generator.walk(best, key, 0)]
  if jax.process_index() == 0:
    frames = [dj.images.grid(x, columns=8) for x in film]
    dj.images.save_gif(folder / "denoising.gif", frames)
    plot_loss(workdir, folder / "loss.png")
  log.say(f"samples, denoising.gif and loss.png are in {folder}")
  _say_next(workdir, state, key, log)


def _say_next(workdir: pathlib.Path, state, key, log: Log) -> None:
  """The command that shows what has been learnt."""
  log.say(f"next: {cli.command('sample', workdir=workdir)}")


def main(argv: list[str]) -> None:
  """The command."""
  loop.main(argv, DEFAULT_CONFIG, prepare)


if __name__ == "__main__":
  cli.run(main)
