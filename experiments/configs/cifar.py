"""DDPM on CIFAR-10, as published (Ho et al. 2020, section 4, appendix B).

  python -m experiments.train --config=configs/cifar.py

35.7M parameters. The paper reports FID 3.17 after 800,000 steps, 10.6 hours
on a TPU v3-8. TFDS prepares the data the first time, which needs TensorFlow:
pip install -e '.[tfds]'. A folder or a .zip of the images, with a sub-folder
for each class, does not: --config.data.name=PATH.

Variants, as in --config=configs/cifar.py:fast,
  fast  class-conditional, in minutes on one GPU: docs/cifar.md
  dit   the same for longer, with DiT-S/2, 32.5M parameters; not yet measured
"""

from diffusion_jax.models import dit as transformers
from experiments.configs import common


def get_config(variant: str = ""):
  """The configuration; ``variant`` is "" or one of the above."""
  common.check_variant(variant, ("fast", "dit"))
  config = common.make(
    num_steps=800_000,
    batch_size=128,
    data={"name": "cifar10"},
    flip=True,
    schedule={"name": "linear", "T": 1000, "scale": False},
    target="eps",
    variance="fixed_large",
    model={
      "channels": 128,
      "multipliers": (1, 2, 2, 2),
      "num_blocks": 2,
      "attention_levels": (1,),  # 16 x 16
      "dropout": 0.1,
    },
    optim={"lr": 2e-4, "warmup_steps": 5000, "clip": 1.0},
    ema={"rates": (0.9999,), "warmup": False},
    every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    sampling={"sampler": "ancestral", "steps": 1000},
  )
  if variant in ("fast", "dit"):
    fast(config)
  if variant == "dit":
    dit(config)
  return config


def fast(config) -> None:
  """Settings with which it trains in minutes; docs/cifar.md has the reasons."""
  steps = 12_500
  config.update(
    {
      "num_steps": steps,
      "batch_size": 256,
      # Given, so that 50,000 headers need not be read first.
      "data": {"size": (32,), "channels": 3},
      # v is equally hard at every step; a shift of d / 64 = 1/2 suits 32 x 32.
      "schedule": {"name": "cosine", "T": 1000},
      "target": "v",
      "variance": "fixed_small",
      "timesteps": "antithetic",
      "label_dropout": 0.1,
      "model": {
        "num_classes": 0,  # as many as the data have
        "scale_shift": True,
        "attention_levels": (1, 2),  # 16 x 16 and 8 x 8
        "head_channels": 64,
        "dropout": 0.0,  # 60 epochs do not overfit
        "dtype": "bfloat16",
        "attention_kernel": "cudnn",
      },
      # To 0 at the end: most of the benefit of a longer run.
      "optim": {
        "lr": 8e-4,
        "warmup_steps": 400,
        "decay_steps": steps,
        "decay": "linear",
        "b2": 0.99,
      },
      "ema": {"rates": (0.995, 0.998), "warmup": True},
      "every": {"log": 100, "preview": steps, "checkpoint": steps // 4},
      "keep_checkpoints": 4,
      "preview": {"num": 0},
      "sampling": {"sampler": "unipc", "steps": 20},
    }
  )
  with config.schedule.unlocked():
    config.schedule.shift = 0.5
    del config.schedule.scale


def dit(config) -> None:
  """A transformer, which learns less per step and trains for longer."""
  steps = 100_000
  common.exchange_network(config, "dit")
  config.model.update(transformers.DIT["S"])
  config.update(
    {
      "num_steps": steps,
      "optim": {"lr": 4e-4, "warmup_steps": 5000, "decay_steps": steps},
      "ema": {"rates": (0.9996, 0.9999)},
      "every": {"preview": 10_000, "checkpoint": 5_000},
      "preview": {"num": 64},
    }
  )
