"""Pixel-space diffusion models in JAX and Flax.

>>> import jax
>>> import diffusion_jax as dj
>>> schedule = dj.schedules.cosine(1000)
>>> x0 = jax.numpy.zeros((4, 8, 8, 1))
>>> eps = jax.random.normal(jax.random.key(0), x0.shape)
>>> dj.q_sample(schedule, x0, jax.numpy.array([1, 10, 100, 1000]), eps).shape
(4, 8, 8, 1)
"""

from diffusion_jax import (
  bound,
  checkpoint,
  clipping,
  conditions,
  data,
  diagnostics,
  editing,
  guidance,
  images,
  importance,
  likelihood,
  losses,
  metrics,
  mixtures,
  models,
  objectives,
  parallel,
  plots,
  prediction,
  pretrained,
  process,
  samplers,
  schedules,
  solvers,
  spacing,
  state,
  targets,
  timesteps,
  training,
  upsampling,
  weights,
)
from diffusion_jax.models import UNet
from diffusion_jax.prediction import (
  Prediction,
  clipped,
  p_mean_variance,
  predictor,
  thresholded,
)
from diffusion_jax.process import q_posterior, q_sample, q_step, snr
from diffusion_jax.samplers import ancestral_step, ddim_step, sample
from diffusion_jax.schedules import Schedule

__all__ = [
  "Prediction",
  "Schedule",
  "UNet",
  "ancestral_step",
  "bound",
  "checkpoint",
  "clipped",
  "clipping",
  "conditions",
  "data",
  "ddim_step",
  "diagnostics",
  "editing",
  "guidance",
  "images",
  "importance",
  "likelihood",
  "losses",
  "metrics",
  "mixtures",
  "models",
  "objectives",
  "p_mean_variance",
  "parallel",
  "plots",
  "prediction",
  "predictor",
  "pretrained",
  "process",
  "q_posterior",
  "q_sample",
  "q_step",
  "sample",
  "samplers",
  "schedules",
  "snr",
  "solvers",
  "spacing",
  "state",
  "targets",
  "thresholded",
  "timesteps",
  "training",
  "upsampling",
  "weights",
]
