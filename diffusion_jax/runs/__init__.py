"""Run directories: train a run, open it, sample from it, evaluate it.

  import diffusion_jax as dj

  run = dj.runs.open("runs/digits")
  pictures = run.sample(64, steps=20)  # [64, H, W, C] in [-1, 1]
  run.evaluate(num=1000, metrics=("fid",))

The commands of experiments/ take the same options. Each line imports only from
those above it:

  console, choices                  messages; names and arguments
  defaults, configuration           every key; configurations
  directory                         the files of a run directory
  starting                          parameters of another run
  processes, samplers, networks,    the objects that a configuration describes
  datasets, checks
  options                           options of sampling
  restoring, guiding, generate      parameters; classes; sampling
  planning, drawing                 a checked plan; drawing it
  training/, evaluation/            the loop; the metrics
  run                               the run as an object
"""

import pathlib
import signal

from diffusion_jax.extras import needed_for

with needed_for("diffusion_jax.runs"):
  import ml_collections

  from diffusion_jax.runs.configuration import (
    Config as Config,
    is_classifier as is_classifier,
    make as make,
    make_classifier as make_classifier,
    published as published,
    published_classifier as published_classifier,
  )
  from diffusion_jax.runs.options import (
    PathLike as PathLike,
    SamplingOptions as SamplingOptions,
  )
  from diffusion_jax.runs.run import Run as Run
  from diffusion_jax.runs.training import classification, diffusion, loop
  from diffusion_jax.runs.training.setup import Training


def open(workdir: PathLike) -> Run:
  """Opens a run directory.

  Args:
    workdir: A directory of experiments.train, experiments.import_weights or
      ``train``, which may still be writing it.

  Returns:
    The run.

  Raises:
    ValueError: If it is not a run directory; suggests the nearest one.
  """
  return Run(workdir)


def prepare(config: Config, workdir: PathLike) -> Training:
  """Builds a run from its configuration; nothing is compiled or written yet.

  Args:
    config: See ``make``, or ``make_classifier``.
    workdir: Its directory.

  Returns:
    The run, for ``training.loop``.

  Raises:
    ValueError: If the configuration, data and directory do not fit.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f"`config` is a {type(config).__name__}: pass one of dj.runs.make()"
    )
  kind = classification if is_classifier(config) else diffusion
  return kind.prepare(config, pathlib.Path(workdir).expanduser())


def train(config: Config, workdir: PathLike, *, new_data: bool = False) -> Run:
  """Trains a run to its last step, or resumes it, as experiments.train.

  Args:
    config: See ``make``; values that come from the data are filled in.
    workdir: Its directory: new, empty, or that of the same run.
    new_data: Whether to resume with other data than before.

  Returns:
    The run.

  Raises:
    ValueError: If the configuration, data and directory do not fit, before
      anything is written.
    RuntimeError: If training cannot continue; see ``training.loop.Failed``.
    KeyboardInterrupt: If Ctrl-C stops it, after the run is saved.
    SystemExit: If another signal stops it, after the run is saved.
  """
  prepared = prepare(config, workdir)
  with loop.opened(prepared, new_data=new_data) as changes:
    stopped = loop.train(prepared, changes)
  if stopped is signal.SIGINT:
    raise KeyboardInterrupt
  if stopped is not None:
    raise SystemExit(0)
  return Run(prepared.workdir)
