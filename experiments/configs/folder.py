"""DDPM on a folder (or .zip) of your own pictures.

  python -m experiments.train --config=configs/folder.py \
    --config.data.name=PATH --config.data.size="(64,)" --workdir=runs/mine

Pictures are cropped to the centre and resized. Classes, if you want them, are
the sub-folders: --config.model.num_classes=N. The network has 35.7M
parameters; on one GPU expect good samples of a few thousand 32 x 32 pictures
after some 50,000 steps.
"""

from experiments.configs import common


def get_config(variant: str = ""):
  """The configuration; there are no variants."""
  common.check_variant(variant, ())
  return common.make(
    num_steps=100_000,
    data={"name": "pictures", "size": (32,)},
    flip=True,
    schedule={"name": "cosine"},
    variance="fixed_small",
    model={"dropout": 0.1},
    optim={"warmup_steps": 1000},
    ema={"rates": (0.999, 0.9999), "warmup": True},
    sampling={"steps": 250},
  )
