"""JiT on ImageNet, as published (Li and He 2025, appendix A).

  python -m experiments.train --config=configs/jit.py:b16-256

A plain transformer of large patches predicts x_0 and minimises the error of
the velocity. Variants: b16-256, l16-256, h16-256, g16-256, b32-512, l32-512,
h32-512, g32-512; 131M to 2.0B parameters. With guidance the paper reports FID
3.66 for b16-256 and 1.82 for g16-256, after 600 epochs. TFDS needs ImageNet's
archives downloaded by hand: www.tensorflow.org/datasets/catalog/imagenet2012.

Differences from the paper: guidance is not limited to t <= 0.9; at 512 x 512
the double noise is a shift of the path, so the network's input is 1 / (1 + t)
of the paper's.
"""

from diffusion_jax.models import dit
from experiments.configs import common

EPOCH = 1_281_167 / 1024  # steps
VARIANTS = tuple(
  f"{size}{kind}" for kind in ("16-256", "32-512") for size in "blhg"
)


def get_config(variant: str = "b16-256"):
  """The configuration of a variant, by default "b16-256"."""
  variant = variant or "b16-256"
  common.check_variant(variant, VARIANTS)
  size, patch = variant[0].upper(), int(variant[1:3])
  large = size in "HG"
  config = common.make(
    batch_size=1024,
    num_steps=round(600 * EPOCH),
    data={"name": "imagenet2012", "size": (16 * patch,), "channels": 3},
    flip=True,
    schedule={"name": "flow"},
    target="x0",
    loss={"space": "jit"},
    timesteps="logit_normal",
    time_mean=0.8,
    time_std=0.8,
    variance="fixed_small",
    label_dropout=0.1,
    model={
      "name": "jit", "patch": patch, **dit.JIT[size],
      "dropout": 0.2 if large else 0.0,
      "num_classes": 0,  # as many as the data have
      "dtype": "bfloat16",
    },
    optim={
      "lr": 2e-4, "b2": 0.95, "warmup_steps": round(5 * EPOCH), "clip": None,
    },
    ema={"rates": (0.9996, 0.9999), "warmup": False},
    every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    preview={"sampler": "flow_heun", "steps": 20},
    sampling={
      "sampler": "flow_heun", "steps": 50, "clip": False,
      "guidance": 2.2 if large else 2.9,
    },
  )  # fmt: skip
  if patch == 32:
    with config.schedule.unlocked():
      config.schedule.shift = 2.0
  return config
