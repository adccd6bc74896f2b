"""Trains a diffusion model: objective, previews, final figures."""

import functools
import pathlib
from collections.abc import Callable

import jax

import diffusion_jax as dj
from diffusion_jax.runs import (
  checks,
  datasets,
  guiding,
  networks,
  processes,
  restoring,
  samplers,
)
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.generate import Generator
from diffusion_jax.runs.options import SamplingOptions
from diffusion_jax.runs.training import (
  continuing,
  objectives,
  reporting,
  setup,
)
from diffusion_jax.runs.training.monitor import Monitor
from diffusion_jax.runs.training.reporting import Log


def prepare(config: Config, workdir: pathlib.Path) -> setup.Training:
  """Builds a run from its configuration.

  Raises:
    ValueError: For any mistake of the user.
  """
  networks.check_draws(config)
  mesh = setup.training_mesh(config, workdir)
  schedule = processes.schedule(config)
  objectives.check(config)
  checks.check(config, schedule)
  tx = networks.optimizer(config)
  source = datasets.training_source(config)
  datasets.count_classes(config, source)
  datasets.note_parts(config, source)
  if (scale := config.sampling.guidance) is not None:
    guiding.check_guidable(config, f"sampling.guidance={scale}")
  net = networks.model(config, source.image_shape, source.num_classes)
  conditions = networks.conditions(config, schedule, source.image_shape)

  objective = objectives.objective(
    config,
    schedule,
    net,
    setup.applied(config, net, mesh),
    conditions,
    setup.gathered(config, mesh),
    source.values,
  )
  return setup.build(
    config,
    workdir,
    mesh,
    source,
    net,
    tx,
    objective,
    start=(
      None
      if continuing.has_learnt(workdir)
      else objectives.start(config, net, source)
    ),
    **_shown(config, workdir, schedule, source, net),
  )


def _shown(config, workdir, schedule, source, net) -> dict[str, Callable]:
  """The functions for previews and for the end of the run."""
  if config.preview.num == 0:
    return {}
  enlarges = networks.low_res_shape(config, source.image_shape) is not None
  generator = Generator(
    config,
    net,
    source.image_shape,
    SamplingOptions(
      sampler=config.preview.sampler,
      guidance=config.sampling.guidance,
      batch=config.preview.num,
    ),
    samplers.walk(
      schedule,
      config.preview.sampler,
      config.preview.spacing,
      config.preview.steps,
    ),
    low_res=(
      datasets.low_res(config, source, config.preview.num) if enlarges else None
    ),
    pictures=datasets.pictures(source, source.pictures, config.preview.num),
  )
  monitor = Monitor(
    source,
    num=config.preview.num,
    paired=enlarges,
    frechet=config.preview.frechet,
  )
  return {
    "preview": functools.partial(preview, workdir, generator, monitor),
    "finish": functools.partial(_finish, config, workdir, generator),
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
  """Sample grids of the raw and averaged parameters, from the same noise."""
  raw = dj.optimizers.evaluated(state)
  for name, params in {"raw": raw, **state.ema}.items():
    label = name if name == "raw" else f"ema{name}"
    samples = generator(params, key, generator.batch)
    log.preview(step, label, monitor(samples, params, raw))
    picture = dj.images.grid(samples)
    log.picture(f"samples/{label}", picture, step)
    if jax.process_index() == 0:
      path = workdir / "samples" / f"step{step:07}_{label}.png"
      dj.images.save_png(path, picture)


def _finish(
  config, workdir: pathlib.Path, generator, state, key, log: Log
) -> None:
  """Loss plot, and denoising animation of the slowest average."""
  folder = workdir / "samples"
  params = restoring.weights(state, restoring.average(config, None))
  film = [dj.parallel.fetch(x)[:32] for x in generator.walk(params, key, 0)]
  if jax.process_index() == 0:
    frames = [dj.images.grid(x, columns=8) for x in film]
    dj.images.save_gif(folder / "denoising.gif", frames)
    reporting.plot_loss(workdir, folder / "loss.png")
  log.say(f"samples, denoising.gif and loss.png are in {folder}")
