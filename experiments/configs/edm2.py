"""EDM2 on ImageNet, 64 x 64, as published (Karras et al. 2024).

  python -m experiments.train --config=configs/edm2.py:s

Variants: xs, s, m, l, xl, networks of 125M to 1.1G parameters. The paper
reports FID 1.58, 1.43 and 1.33 for s, m and l, with 63 calls and an average
whose width was chosen after training: --ema=std:0.07 when sampling. Activations
are bfloat16 here and float16 in the paper.
"""

from diffusion_jax.models import presets
from experiments.configs import common

RATES = {"xs": 0.012, "s": 0.01, "m": 0.009, "l": 0.008, "xl": 0.007}
BATCH = 2048


def get_config(variant: str = "s"):
  """The configuration of a variant, by default "s"."""
  variant = variant or "s"
  common.check_variant(variant, tuple(RATES))
  return common.make(
    batch_size=BATCH,
    num_steps=2**30 // BATCH,
    flip=True,
    data={"name": "imagenet2012", "size": (64,), "channels": 3},
    schedule={"name": "ve"},
    target="edm",
    timesteps="log_normal",
    time_mean=-0.8,
    time_std=1.6,
    variance="fixed_small",
    loss={"uncertainty": True},
    model={
      "name": "edm2",
      "num_classes": 0,  # as many as the data have
      "dtype": "bfloat16",
      **presets.EDM2[variant],
    },
    optim={
      "lr": RATES[variant],
      "warmup_steps": 10_000_000 // BATCH,
      "decay": "inverse_sqrt",
      "decay_steps": 35_000,
      "clip": None,
      "b2": 0.99,
    },
    ema={"rates": (), "stds": (0.05, 0.1)},
    # Each checkpoint leaves a copy of the averages: every 8 Mi images.
    every={"log": 100, "preview": 8192, "checkpoint": 2**23 // BATCH},
    preview={"sampler": "edm_heun", "steps": 18},
    sampling={"sampler": "edm_heun", "steps": 32, "clip": False},
  )
