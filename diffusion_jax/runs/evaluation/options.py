"""Options for evaluation, which include those for sampling."""

import dataclasses

import diffusion_jax as dj
from diffusion_jax.runs.evaluation import features, scores, sweep
from diffusion_jax.runs.options import PathLike, SamplingOptions, option

OF_RUNS = ("frechet", "bpd")  # of pixels and of the network
METRICS = (*OF_RUNS, *scores.METRICS)
NO_SAMPLES = {"bpd", *scores.OF_DATA}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(SamplingOptions):
  """What to measure, of how many samples, drawn in which way."""

  num: int | None = option(
    None, "how many images; by default as many as there are data", least=1
  )
  ema: str | None = option(
    None,
    "average: its rate, std:WIDTH, or raw; by default the slowest; "
    f"{sweep.SWEEP} measures the raw parameters and each average, "
    f"{sweep.SWEEP}:0.05,0.1 averages of these widths",
  )
  metrics: tuple[str, ...] = option(("frechet",), f"of {', '.join(METRICS)}")
  features: str = option(
    "pixels",
    f"what {', '.join(scores.METRICS)} look at: {', '.join(features.NAMES)}, "
    "or module:function or path/to/file.py:function, which returns a network "
    "of any framework, such as experiments.tools.efficientnet:lite0",
  )
  inception: str | None = option(
    None,
    "file or folder of Inception's weights, or 'download'; by default the "
    f"folder {dj.metrics.inception_weights.CACHE}",
  )
  reference: PathLike | None = option(
    None,
    "what samples are compared with: an .npz of statistics or reference "
    "pictures, or any data; by default the run's data",
  )
  samples: PathLike | None = option(
    None, "pictures to measure (folder, .zip, .npz, .npy)"
  )
  keep_samples: bool = option(False, "keep the samples that are drawn")
  curve: bool = option(
    False, "measure each checkpoint that is kept, not only the newest"
  )
