"""DDPM on CIFAR-10, as published (Ho et al. 2020, section 4, appendix B).

  python -m experiments.train --config=configs/cifar.py

35.7M parameters. The paper reports FID 3.17 after 800,000 steps, 10.6 hours
on a TPU v3-8. TFDS prepares the data the first time: pip install '.[tfds]'.
"""

import ml_collections

from experiments import cli


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The configuration."""
  cli.variant_of(variant, ())
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "num_steps": 800_000,
      "batch_size": 128,
      "micro_batches": 1,
      "data": {"name": "cifar10", "split": "train"},
      "flip": True,
      "schedule": {"name": "linear", "T": 1000, "scale": False},
      "target": "eps",
      "variance": "fixed_large",
      "loss": {"weight": "none"},
      "model": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_blocks": 2,
        "attention_levels": (1,),  # 16 x 16
        "dropout": 0.1,
        "dtype": "float32",
      },
      "optim": {"lr": 2e-4, "warmup_steps": 5000, "clip": 1.0},
      "ema": {"rates": (0.9999,), "warmup": False},
      "every": {"log": 100, "preview": 10_000, "checkpoint": 5_000},
      "preview": {"num": 64, "sampler": "ddim", "steps": 50},
      "sampling": {"sampler": "ancestral", "steps": 1000},
      "keep_checkpoints": 3,
    }
  )
