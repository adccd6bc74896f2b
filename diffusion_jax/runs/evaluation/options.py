"""Options for evaluation, which include those for sampling."""

import dataclasses

import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs.evaluation import features, scores, sweep
from diffusion_jax.runs.options import PathLike, SamplingOptions, option

OF_RUNS = ("frechet", "bpd")  # from pixels, and from the network
METRICS = (*OF_RUNS, *scores.METRICS)
NO_SAMPLES = {"bpd", *scores.OF_DATA}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(SamplingOptions):
  """What to measure, on how many samples, and how to draw them."""

  num: int | None = option(
    None, "how many images; by default as many as the data have", least=1
  )
  ema: str | None = option(
    None,
    "average of the parameters: its rate, std:WIDTH, or raw for none; by "
    f"default the slowest; {sweep.SWEEP} measures the raw parameters and every "
    f"average, {sweep.SWEEP}:0.05,0.1 averages of these widths",
  )
  metrics: tuple[str, ...] = option(
    ("frechet",), f"one or more of {', '.join(METRICS)}"
  )
  features: str = option(
    "pixels",
    f"feature network of {', '.join(scores.METRICS)}: "
    f"{', '.join(features.NAMES)}, or module:function or "
    "path/to/file.py:function, which returns a network of any framework, such "
    "as experiments.tools.efficientnet:lite0",
  )
  inception: str | None = option(
    None,
    "file or folder of Inception's weights, or 'download'; by default the "
    f"folder {dj.metrics.inception_weights.CACHE}",
  )
  reference: PathLike | None = option(
    None,
    "compare samples with this: an .npz of statistics or reference images, or "
    "any data; by default the run's data",
  )
  samples: tuple[PathLike, ...] = option(
    (),
    "images to measure (folder, .zip, .npz, .npy); of several, such as "
    "a.npz,b.npz, each has a row, and the data's features are computed once",
  )
  keep_samples: bool = option(False, "keep the samples that are drawn")
  curve: bool = option(
    False, "measure every checkpoint that was kept, not only the newest"
  )

  def of_drawing(self) -> list[str]:
    """The names of the options that were chosen and are of drawing alone."""
    drawing = {field.name for field in dataclasses.fields(SamplingOptions)}
    drawing = drawing - {"num", "seed", "batch"} | {"curve", "keep_samples"}
    return [
      field.name
      for field in dataclasses.fields(self)
      if field.name in drawing
      and np.any(getattr(self, field.name) != field.default)
    ]
