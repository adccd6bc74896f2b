"""DDPM on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

  python -m experiments.train --config=configs/digits.py

Variants: ``:smoke`` is a run of seconds that only shows that all is well.
"""

import ml_collections

from experiments import cli


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The configuration."""
  cli.variant_of(variant, ("smoke",))
  config = ml_collections.ConfigDict(
    {
      "seed": 0,
      "num_steps": 1800,
      "batch_size": 128,
      "micro_batches": 1,
      "data": {"name": "digits"},
      "flip": False,  # a mirrored 3 is no digit
      "schedule": {"name": "cosine", "T": 1000},
      "target": "eps",
      "variance": "fixed_small",
      "loss": {"weight": "none"},
      "model": {
        "channels": 32,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_levels": (1,),  # 4 x 4
      },
      "optim": {
        "lr": 2e-3,
        "warmup_steps": 100,
        "decay_steps": 1800,
        "clip": 1.0,
      },
      "ema": {"rates": (0.995,), "warmup": True},
      "every": {"log": 50, "preview": 600, "checkpoint": 600},
      "preview": {"num": 64, "sampler": "ddim", "steps": 50},
      "sampling": {"sampler": "ancestral", "steps": 250},
      "keep_checkpoints": 3,
    }
  )
  if variant == "smoke":
    config.update(
      {
        "num_steps": 20,
        "batch_size": 32,
        "model": {"channels": 16},
        "optim": {"decay_steps": 20},
        "every": {"log": 5, "preview": 10, "checkpoint": 10},
        "preview": {"num": 16, "steps": 10},
        "sampling": {"steps": 20},
      }
    )
  return config
