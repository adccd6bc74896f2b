"""Classifiers of noisy images (Dhariwal and Nichol 2021, section 4).

  python -m experiments.train --config=configs/classifier.py

Variants: digits (two minutes on 2 CPU cores), smoke, and as published
imagenet64, imagenet128, imagenet256, imagenet512 (42.6M to 65.4M
parameters). The schedule must be that of the diffusion model to guide.
"""

from experiments.configs import common

SIZES = (64, 128, 256, 512)


def get_config(variant: str = "digits"):
  """The configuration of a variant, by default "digits"."""
  variant = variant or "digits"
  published = {f"imagenet{size}": size for size in SIZES}
  common.check_variant(variant, ("digits", "smoke", *published))
  if variant in published:
    size = published[variant]
    return common.published_classifier(
      f"adm-classifier{size}",
      data={"name": "imagenet2012", "size": (size,), "random_crop": True},
      held_out=1000,
      every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    )
  config = common.make_classifier(
    num_steps=500,
    batch_size=128,
    data={"name": "digits"},
    schedule={"name": "cosine"},
    model={
      "channels": 32,
      "multipliers": (1, 2),
      "num_blocks": 1,
      "attention_levels": (1,),
      "num_labels": 10,
    },
    optim={
      "lr": 2e-3,
      "warmup_steps": 50,
      "decay_steps": 500,
      "weight_decay": 0.05,
    },
    held_out=5,
    every={"log": 50, "preview": 500, "checkpoint": 250},
  )
  if variant == "smoke":
    config.update(
      {
        "num_steps": 20,
        "batch_size": 32,
        "model": {"channels": 16},
        "optim": {"warmup_steps": 5, "decay_steps": 20},
        "every": {"log": 5, "preview": 10, "checkpoint": 10},
      }
    )
  return config
