"""Trains a classifier of noisy images.

Each logged line has the accuracy by quarter of t, the cleanest first: on the
last training batch, and on the held-out images.
"""

import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import checks, datasets, networks, processes
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.training import reporting, setup
from diffusion_jax.runs.training.reporting import Log

# A number that no step and no image reaches, for a key of its own; more are in
# ``runs.planning`` and ``dj.conditions``.
HELD_OUT = 2**32 - 4
MEASURED = 1024  # most held-out images to classify at every logged line


def prepare(config: Config, workdir: pathlib.Path) -> setup.Training:
  """Builds a run from its configuration.

  Raises:
    ValueError: For any mistake of the user.
  """
  mesh = setup.training_mesh(config, workdir)
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  tx = networks.optimizer(config)
  source, held = datasets.training_source(config), None
  datasets.count_classes(config, source)
  if config.get("held_out"):
    source, held = dj.data.hold_out(source, config.held_out)
    held = dj.data.subset(held, MEASURED)
  net = networks.classifier(config, source.image_shape, source.num_classes)

  objective = dj.objectives.classification(
    setup.applied(config, net, mesh), schedule, draw=processes.draw(config)
  )
  right = jax.jit(
    functools.partial(right_by_quarter, net, schedule),
    out_shardings=dj.parallel.replicated(mesh),
  )
  measured = functools.partial(measure_held_out, right, held, config.batch_size)
  return setup.build(
    config,
    workdir,
    mesh,
    source,
    net,
    tx,
    objective,
    measure=functools.partial(measure, right, measured),
    finish=functools.partial(_finish, workdir, measured),
  )


def right_by_quarter(net, schedule, params, image, label, key):
  """Numbers of correctly classified and of all images, by quarter of t.

  Args:
    net: The classifier.
    schedule: The noise schedule.
    params: Parameters of the classifier.
    image: [B, H, W, C] in [-1, 1].
    label: [B].
    key: For a step and noise for each image.

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
  """Accuracies of the current parameters."""
  counts = right(
    dj.optimizers.evaluated(state),
    batch["image"],
    batch["label"],
    jax.random.fold_in(key, state.step),
  )
  learnt = dj.training.quartiles(*jax.device_get(counts), name="accuracy")
  return {**learnt, **measured(state, key)}


def measure_held_out(right, held, batch_size, state, key) -> dict[str, float]:
  """Accuracies on the held-out images, always with the same noise."""
  if held is None:
    return {}
  totals, params = [], dj.optimizers.evaluated(state)
  key = jax.random.fold_in(key, HELD_OUT)  # steps fold it, too
  for start in range(0, len(held), batch_size):
    stop = min(start + batch_size, len(held))
    part = held.gather(np.arange(start, stop))
    image = held.values.floats(part["image"])
    key_part = jax.random.fold_in(key, start)
    totals.append(right(params, image, part["label"], key_part))
  counts = np.sum(jax.device_get(totals), axis=0)
  return dj.training.quartiles(*counts, name="held_out_accuracy")


def _finish(workdir: pathlib.Path, measured, state, key, log: Log) -> None:
  """Loss plot and accuracies."""
  if jax.process_index() == 0:
    reporting.plot_loss(workdir, workdir / "samples" / "loss.png")
  figures: Mapping[str, float] = measured(state, key)
  if figures:
    parts = ", ".join(f"{value:.1%}" for value in figures.values())
    log.say(f"held-out pictures classified rightly, by quarter of t: {parts}")
