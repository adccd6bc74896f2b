"""Every key of a configuration, with what it means and its usual value."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from experiments.cli import Config


def make(**changes: Mapping[str, Any] | Any) -> Config:
  """The usual values, changed. An unknown key is an error.

  Args:
    **changes: By key; a dict changes the keys of a section.

  Returns:
    The configuration, to be changed further or returned.
  """
  config: Config = ml_collections.ConfigDict(
    {
      "seed": 0,  # of parameters, data order, noise: everything
      "num_steps": 100_000,
      "batch_size": 128,  # images per step, over all devices
      "micro_batches": 1,  # pieces of a batch in memory one after another
      "flip": False,  # mirror half of the images
      "data": {
        "name": "digits",  # or a folder, .zip, .npz, .npy, or a TFDS name
        "split": "train",  # of a TFDS data set
        "size": (),  # (), (n,) or (height, width); () is as stored
        "channels": config_dict.placeholder(int),  # 1 or 3 to convert
        "skip_broken": False,  # leave out pictures that cannot be read
        "data_dir": config_dict.placeholder(str),  # of TFDS
      },
      # A function of diffusion_jax.schedules, and its arguments.
      "schedule": {"name": "linear", "T": 1000},
      "target": "eps",  # what the network predicts: eps, x0, mean or v
      "variance": "fixed_large",  # of p(x_s | x_t), or fixed_small
      "loss": {"weight": "none"},  # bound, p2, min_snr, truncated_snr
      # Arguments of diffusion_jax.UNet.
      "model": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_blocks": 2,
        "attention_levels": (1,),  # 0 is the full size
        "heads": 1,
        "head_channels": config_dict.placeholder(int),  # instead of heads
        "qkv_order": "qkv",
        "dropout": 0.0,
        "scale_shift": False,  # adaptive group normalisation
        "resample": "conv",  # or block
        "out_channels": config_dict.placeholder(int),
        "num_classes": config_dict.placeholder(int),
        "time_scale": 1.0,
        "embedding": "sin_cos",
        "groups": config_dict.placeholder(int),
        "epsilon": 1e-6,
        "padding": "same",
        "dtype": "float32",
      },
      # Arguments of diffusion_jax.training.optimizer.
      "optim": {
        "lr": 2e-4,
        "warmup_steps": 5000,
        "decay_steps": config_dict.placeholder(int),  # to 0 along a cosine
        "clip": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
      },
      "ema": {"rates": (0.9999,), "warmup": False},
      # Steps between logged lines, sample grids, checkpoints.
      "every": {"log": 100, "preview": 5_000, "checkpoint": 5_000},
      "keep_checkpoints": 3,
      # Sample grids while training: few steps; and what experiments.sample
      # does unless told otherwise.
      "preview": {"num": 64, "sampler": "ddim", "steps": 50},
      "sampling": {"sampler": "ancestral", "steps": 1000},
    }
  )
  config.lock()
  # A schedule or a weight brings arguments of its own.
  with config.schedule.unlocked(), config.loss.unlocked():
    config.update(changes)
  return config


def check_variant(variant: str, allowed: Sequence[str]) -> None:
  """Checks the part of --config after the colon.

  Raises:
    ValueError: Naming what is allowed.
  """
  if variant not in ("", *allowed):
    raise ValueError(
      f"unknown variant {variant!r}; this configuration has "
      f"{', '.join(allowed) or 'none'}"
    )
