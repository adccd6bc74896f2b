"""Trains a classifier of noisy images, to guide a diffusion model with.

  python -m experiments.train_classifier --config=configs/classifier.py:digits
  python -m experiments.sample --workdir=runs/digits \
    --classifier=runs/classifier-digits --guidance=1 --classes=3

The run is written and continued as that of experiments.train. Each logged
line has the part of the pictures that are classified rightly, by quarter of
t, the cleanest first: of a batch just learnt from, and of those held out.
"""

import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

import diffusion_jax as dj
from experiments import assemble, cli, loop
from experiments.cli import Config
from experiments.reporting import Log, plot_loss

DEFAULT_CONFIG = "configs/classifier.py"
MEASURED = 1024  # of the held-out pictures, at most, at every logged line


def prepare(config: Config, workdir: pathlib.Path) -> loop.Run:
  """Builds a run from its configuration.

  Raises:
    ValueError: For anything a user may have got wrong.
  """
  devices = loop.mesh(config, workdir)
  schedule = assemble.schedule(config)
  assemble.check(config, schedule)
  tx = assemble.optimizer(config)
  source, held = assemble.training_source(config), None
  assemble.count_classes(config, source)
  if config.get("held_out"):
    source, held = dj.data.hold_out(source, config.held_out)
  net = assemble.classifier(config, source.image_shape, source.num_classes)

  step = functools.partial(
    dj.training.train_step,
    objective=dj.objectives.classification(
      loop.applied(config, net, devices),
      schedule,
      draw=assemble.draw(config),
    ),
    tx=tx,
    micro_batches=config.micro_batches,
    ema_warmup=config.ema.warmup,
  )
  right = jax.jit(
    functools.partial(right_by_quarter, net, schedule),
    out_shardings=dj.parallel.replicated(devices),
  )
  measured = functools.partial(measure_held_out, right, held, config.batch_size)
  return loop.settle(
    config,
    workdir,
    devices,
    source,
    functools.partial(assemble.init, config, net, source.image_shape, tx),
    step,
    measure=functools.partial(measure, right, measured),
    finish=functools.partial(_finish, workdir, measured),
  )


def right_by_quarter(net, schedule, params, image, label, key):
  """How many are classified rightly, and how many there are, by quarter of t.

  Args:
    net: The classifier.
    schedule: The noise schedule.
    params: Of the classifier.
    image: [B, H, W, C] in [-1, 1].
    label: [B].
    key: For one step and one noise for each.

  Returns:
    [4] and [4].
  """
  key_t, key_eps = jax.random.split(key)
  t = dj.timesteps.antithetic(key_t, len(image), schedule.T)
  eps = jax.random.normal(key_eps, image.shape)
  x_t = dj.q_sample(schedule, image, t, eps)
  right = net.apply({"params": params}, x_t, t).argmax(axis=-1) == label
  quarter = jax.nn.one_hot((t - 1) * 4 // schedule.T, 4)
  return right @ quarter, quarter.sum(axis=0)


def measure(right, measured, state, batch, key) -> dict[str, float]:
  """Accuracies of the parameters as they are now."""
  counts = right(
    state.params,
    batch["image"],
    batch["label"],
    jax.random.fold_in(key, state.step),
  )
  learnt = dj.training.quartiles(*jax.device_get(counts), name="accuracy")
  return {**learnt, **measured(state, key)}


def measure_held_out(right, held, batch_size, state, key) -> dict[str, float]:
  """Accuracies on the first held-out pictures, always with the same noise."""
  if held is None:
    return {}
  totals = []
  key = jax.random.fold_in(key, assemble.HELD_OUT)  # steps fold it, too
  for start in range(0, min(len(held), MEASURED), batch_size):
    stop = min(start + batch_size, len(held), MEASURED)
    part = held.gather(np.arange(start, stop))
    image = held.values.floats(part["image"])
    key_part = jax.random.fold_in(key, start)
    totals.append(right(state.params, image, part["label"], key_part))
  counts = np.sum(jax.device_get(totals), axis=0)
  return dj.training.quartiles(*counts, name="held_out_accuracy")


def _finish(workdir: pathlib.Path, measured, state, key, log: Log) -> None:
  """Loss plot, accuracies, and what to do next."""
  if jax.process_index() == 0:
    plot_loss(workdir, workdir / "samples" / "loss.png")
  figures: Mapping[str, float] = measured(state, key)
  if figures:
    parts = ", ".join(f"{value:.1%}" for value in figures.values())
    log.say(f"held-out pictures classified rightly, by quarter of t: {parts}")
  then = cli.command(
    "sample", workdir="A_DIFFUSION_RUN", classifier=workdir, guidance=1
  )
  log.say(f"next: {then}")


def main(argv: list[str]) -> None:
  """The command."""
  loop.main(argv, DEFAULT_CONFIG, prepare)


if __name__ == "__main__":
  cli.run(main)
