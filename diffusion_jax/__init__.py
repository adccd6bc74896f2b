"""Pixel-space diffusion models in JAX and Flax.

>>> import jax
>>> import diffusion_jax as dj
>>> schedule = dj.schedules.cosine(1000)
>>> x0 = jax.numpy.zeros((4, 8, 8, 1))
>>> eps = jax.random.normal(jax.random.key(0), x0.shape)
>>> dj.q_sample(schedule, x0, jax.numpy.array([1, 10, 100, 1000]), eps).shape
(4, 8, 8, 1)
"""

import importlib
import typing

from diffusion_jax import (
  apg as apg,
  augmentation as augmentation,
  averages as averages,
  bound as bound,
  clipping as clipping,
  composition as composition,
  conditions as conditions,
  consistency as consistency,
  continuous as continuous,
  diagnostics as diagnostics,
  distillation as distillation,
  editing as editing,
  edm as edm,
  flow as flow,
  guidance as guidance,
  images as images,
  importance as importance,
  likelihood as likelihood,
  losses as losses,
  meanflow as meanflow,
  metrics as metrics,
  mixtures as mixtures,
  models as models,
  objectives as objectives,
  optimizers as optimizers,
  parallel as parallel,
  plots as plots,
  prediction as prediction,
  pretrained as pretrained,
  process as process,
  restoration as restoration,
  samplers as samplers,
  schedules as schedules,
  solvers as solvers,
  spacing as spacing,
  state as state,
  targets as targets,
  timesteps as timesteps,
  training as training,
  upsampling as upsampling,
  weights as weights,
)
from diffusion_jax.models import (
  UNet as UNet,
)
from diffusion_jax.prediction import (
  Prediction as Prediction,
  clipped as clipped,
  given as given,
  p_mean_variance as p_mean_variance,
  predictor as predictor,
  thresholded as thresholded,
)
from diffusion_jax.process import (
  q_posterior as q_posterior,
  q_sample as q_sample,
  q_step as q_step,
  snr as snr,
)
from diffusion_jax.samplers import (
  ancestral_step as ancestral_step,
  ddim_step as ddim_step,
  sample as sample,
)
from diffusion_jax.schedules import (
  Schedule as Schedule,
)

if typing.TYPE_CHECKING:
  from diffusion_jax import checkpoint as checkpoint, data as data, runs as runs


def __getattr__(name: str) -> typing.Any:
  """Imports on first use what needs the packages of the extra "runs".

  These are Pillow and Grain, Orbax, ml_collections.
  """
  if name in ("checkpoint", "data", "runs"):
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
