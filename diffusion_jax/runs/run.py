"""A run directory as an object: open it, sample from it, evaluate it."""

import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax import concrete, shapes
from diffusion_jax.runs import (
  console,
  datasets,
  directory,
  drawing,
  networks,
  planning,
  processes,
  restoring,
)
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.options import PathLike, SamplingOptions


class Run:
  """One training run, as its directory describes it.

  It may still be training: parameters come from its newest intact checkpoint.
  Options that take the path of a run, such as ``classifier``, also take a
  ``Run``.

  Attributes:
    workdir: The directory.
    config: The configuration of its training.
    data: The description of its data: "image_shape", "class_names", ...

  Args:
    workdir: The directory.

  Raises:
    ValueError: If it is not a run directory; suggests the nearest one.
  """

  def __init__(self, workdir: PathLike):
    self.workdir = pathlib.Path(workdir).expanduser()
    self.config: Config
    self.config, self.data = directory.load(self.workdir)
    self._generators: drawing.Generators = {}

  def __repr__(self) -> str:
    return f"dj.runs.open({str(self.workdir)!r})"

  def __fspath__(self) -> str:
    return os.fspath(self.workdir)

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C)."""
    return tuple(self.data["image_shape"])

  @functools.cached_property
  def schedule(self) -> dj.schedules.Schedule:
    """The noise schedule."""
    return processes.schedule(self.config)

  @functools.cached_property
  def net(self) -> dj.models.Backbone:
    """The network, without its parameters."""
    count = self.data["num_classes"]
    return networks.network(self.config, self.image_shape, count)

  @functools.cached_property
  def conditions(self) -> dj.conditions.Conditions:
    """The conditions of the network; their ``given`` makes one."""
    networks.check_draws(self.config)
    return networks.conditions(self.config, self.schedule, self.image_shape)

  @functools.cached_property
  def source(self) -> dj.data.Source:
    """The data.

    Raises:
      ValueError: If they cannot be read; change ``config.data.name`` if they
        have moved.
    """
    return datasets.source(self.config)

  def params(
    self, ema: str | float | None = None, *, checkpoint: int | None = None
  ) -> Any:
    """The parameters of a checkpoint.

    Args:
      ema: "raw", or an average: its rate, or "std:WIDTH"; by default the
        slowest.
      checkpoint: Its step; by default the newest.

    Returns:
      The parameters of ``net``.

    Raises:
      ValueError: If there is no such checkpoint, or no such average, or JAX is
        tracing.
    """
    concrete.check_outside("run.params")
    name = restoring.average(self.config, None if ema is None else str(ema))
    params, _ = restoring.parameters(
      self.workdir, self.config, self.net, self.image_shape, name, checkpoint
    )
    return params

  def predict(
    self,
    ema: str | float | None = None,
    *,
    checkpoint: int | None = None,
    clip: bool | None = None,
  ) -> dj.prediction.Predict:
    """The trained network as ``predict``, ``(x_t, t, cond) -> Prediction``.

    Every function of the library takes it: samplers, guidance, editing,
    likelihood. If the network is conditional, its condition is
    ``run.conditions.given(y, low_res)``.

    Args:
      ema: See ``params``.
      checkpoint: Likewise.
      clip: Whether x0_hat is clipped to [-1, 1]; by default as for the run's
        samples.

    Returns:
      The prediction, of any size that the network takes. It raises ValueError
      for another rank or number of channels.

    Raises:
      ValueError: If the run is a classifier, or has no such parameters, or JAX
        is tracing.
    """
    concrete.check_outside("run.predict")
    networks.check_draws(self.config)
    params = self.params(ema, checkpoint=checkpoint)
    predict = processes.predictor(self.config, self.schedule, self.net, params)
    if clip is None:
      clip = self.config.sampling.get("clip", True)
    if clip:
      predict = dj.clipped(predict, self.schedule)
    shape = self.image_shape

    def checked(x_t, t, cond=None):
      if x_t.ndim != len(shape) + 1 or x_t.shape[-1] != shape[-1]:
        raise ValueError(
          f"x_t is {list(x_t.shape)}, and {self.workdir} is of "
          f"{shapes.noun(shape, 2)} [N, {', '.join(map(str, shape))}]"
        )
      return predict(x_t, t, cond)

    return checked

  def sample(
    self, num: int = 64, *, key: jax.Array | None = None, **options: Any
  ) -> np.ndarray:
    """Draws images, the same as experiments.sample with the same options.

    >>> run.sample(64, steps=20, classes=[3, "8"])  # doctest: +SKIP

    The compiled programs are kept for the next call.

    Args:
      num: How many.
      key: The root of all noise, instead of a ``seed``.
      **options: Those of ``SamplingOptions``: steps, sampler, spacing, eta,
        guidance, classifier, classes, upsampler, low_res, low_res_noise, seed,
        ema, checkpoint, batch.

    Returns:
      [num, H, W, C], in [-1, 1] if clipped.

    Raises:
      ValueError: If an option does not fit the run; the message names it. Or if
        JAX is tracing.
    """
    concrete.check_outside("run.sample", key)
    if key is not None and options.get("seed") is not None:
      raise ValueError("`key` and `seed` both say the noise: pass one of them")
    asked = SamplingOptions.of(num=num, **options)
    _check_key(key)
    with console.quiet():
      plan = planning.plan(self.workdir, asked, root=key)
      return drawing.draw(plan, self._generators)

  def images(self, num: int = 64) -> np.ndarray:
    """The first images of the data, [num, H, W, C] in [-1, 1].

    Args:
      num: How many; fewer if the data have fewer.

    Returns:
      The images.

    Raises:
      ValueError: If the data cannot be read, see ``source``, or num is below 1.
    """
    num = SamplingOptions(num=num).num or 0
    return self.source.floats(np.arange(min(num, len(self.source))))

  def evaluate(self, **options: Any) -> dict[str, Any]:
    """Evaluates samples, as experiments.evaluate.

    The result is also appended to evaluation.jsonl.

    >>> run.evaluate(num=1000, metrics=("fid", "kid"))  # doctest: +SKIP

    Args:
      **options: Those of ``evaluation.options.EvaluationOptions``: num,
        metrics, features, reference, ..., and all of ``SamplingOptions``.

    Returns:
      The metrics, and how they were computed.

    Raises:
      ValueError: If an option does not fit the run.
      OSError: If the result could not be written.
    """
    # Evaluation takes a second to import, which sampling need not wait for.
    from diffusion_jax.runs.evaluation import evaluating, sweep
    from diffusion_jax.runs.evaluation.options import EvaluationOptions

    asked = EvaluationOptions.of(**options)
    if asked.curve or sweep.asked(asked.ema):
      raise ValueError(
        f"`curve` and `ema={sweep.SWEEP}` make a table: experiments.evaluate "
        "prints it; evaluate each `ema` by itself here"
      )
    if len(asked.samples) > 1:
      raise ValueError(
        f"`samples` are {len(asked.samples)}, which make a table: evaluate "
        "each by itself here"
      )
    with console.quiet():
      return evaluating.evaluate(self.workdir, asked)[-1]


def _check_key(key: Any) -> None:
  """Raises for anything but a JAX key, such as a seed."""
  if key is None:
    return
  try:
    jax.random.fold_in(key, 0)
  except (TypeError, ValueError):
    raise ValueError(
      f"`key` is a {type(key).__name__}: pass one key, jax.random.key(SEED), "
      "or leave it out and pass `seed`"
    ) from None
